"""Text to ids, ids to text as it arrives, and the text that ends a text."""

import json
import random
import re
import shutil

import pytest
from conftest import ROOT
from fuzzed_texts import fuzzed_texts
from tokenizer_json import small_kinds

from minilm_inf.text.sentence_pieces import SentencePieceTokenizer, model_proto
from minilm_inf.text.tokenizer import load


@pytest.fixture(params=["tiny-llama", "tiny-mpt", "tiny-gptj"])
def any_tokenizer(request):
    return load(ROOT / "weights" / request.param)


def pieces_folder(folder, **files):
    """tiny-llama's pieces, and JSON files beside them by the names before their dots."""
    shutil.copy(ROOT / "weights" / "tiny-llama" / "tokenizer.model", folder)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_text_survives_encoding(any_tokenizer):
    """A normaliser or a missing byte would change what people write."""
    pieces = isinstance(any_tokenizer, SentencePieceTokenizer)
    for text in fuzzed_texts(300, seed=len(type(any_tokenizer).__name__)):
        # sentencepiece's own space mark cannot be told from a space; a special leaves no trace
        expected = text.replace("▁", " ") if pieces else text.replace("<|endoftext|>", "")
        assert any_tokenizer.decode(any_tokenizer.encode(text)) == expected, repr(text)


def test_bos_only_where_it_is_asked_for_and_every_digit_alone(any_tokenizer):
    """With a second BOS, or none, a text is one that the model never saw; digits merged into
    pieces would make a pass key another task."""
    encode, bos = any_tokenizer.encode, any_tokenizer.bos_id
    assert encode("a") == [bos, *encode("a", bos=False)] and encode("") == [bos]
    assert encode("", bos=False) == []
    assert len(encode(" 40721")) == len(encode(" ")) + 5


def test_streamed_text_is_decoded_text(any_tokenizer):
    """Ids decoded one by one lose spaces and tear characters apart."""
    rng, size = random.Random(1), any_tokenizer.vocab_size
    space = any_tokenizer.encode(" ", bos=False)[-1]
    for text in fuzzed_texts(300, seed=2):
        ids = any_tokenizer.encode(text)
        drawn = rng.random()
        if drawn < 0.3:  # any ids at all, torn bytes among them
            ids = [rng.randrange(rng.choice((259, size))) for _ in range(20)]
        elif drawn < 0.4:  # of the first spaces, one is dropped
            ids = [rng.choice([any_tokenizer.bos_id, space, space, 68]) for _ in range(6)]
        stream = any_tokenizer.stream()
        pieces = [stream.push(id) for id in ids]
        assert "".join(pieces) + stream.flush() == any_tokenizer.decode(ids), (text, ids)
        if drawn >= 0.4 and "\ufffd" not in text:  # half a character is never shown
            assert not any("\ufffd" in piece for piece in pieces)


def test_pieces_are_decoded_as_sentencepiece_does(tokenizer):
    """An unknown piece, and bytes of no character, however many marks are shown for these."""
    rng, decode = random.Random(3), tokenizer.processor.DecodeIds
    for _ in range(500):
        ids = [rng.randrange(1, rng.choice((259, tokenizer.vocab_size))) for _ in range(12)]
        ours, theirs = (re.sub("\ufffd+", "\ufffd", f(ids)) for f in (tokenizer.decode, decode))
        assert ours == theirs
    assert tokenizer.decode([0, 0]) == decode([0, 0]) == " ⁇  ⁇ "


@pytest.mark.parametrize("prefix", [True, False])
def test_a_model_says_whether_a_text_begins_with_a_space(tmp_path, prefix):
    """Mistral's first piece with a space is two of them, of which one goes."""
    pieces = [("<unk>", 0.0, 2), ("▁▁", -1.0, 1), ("▁a", -2.0, 1), ("▁", 0.0, 1), ("a", 0.0, 1)]
    content = model_proto(pieces, {}, prefix=prefix, extra=False)
    (tmp_path / "tokenizer.model").write_bytes(content)
    ours = load(tmp_path)
    for ids in ([1], [2, 2], [1, 2], [3, 4], [4, 2], [3, 3, 4]):
        assert ours.decode(ids) == ours.processor.DecodeIds(ids)
    assert ours.encode("a") == ours.processor.EncodeAsIds("a") == [2 if prefix else 4]


def test_what_is_out_of_range_is_refused(any_tokenizer):
    """sentencepiece itself would end with an error of its own, or wrap -1 round; an argument
    can carry half a surrogate pair."""
    for id in (-1, any_tokenizer.vocab_size):
        for call in (lambda id: any_tokenizer.decode([id]), any_tokenizer.bytes_of):
            with pytest.raises(ValueError, match="out of range"):
                call(id)
    with pytest.raises(ValueError, match="not Unicode"):
        any_tokenizer.encode("\ud83d")


def test_tokens_added_to_a_sentencepiece_model(tmp_path):
    """A padding token after the pieces would be out of range, or letters in a prompt; a word
    that was added is text, found whole, and what follows it gets no space before it."""
    known, pad = ({"content": content, "special": True} for content in ("</s>", "<pad>"))
    tokens = {"2": known, "2048": {"content": "<word>", "special": False}, "2049": pad}
    about = {"added_tokens_decoder": tokens}
    ours = load(pieces_folder(tmp_path, tokenizer_config=about))
    plain = load(ROOT / "weights" / "tiny-llama")
    assert ours.vocab_size == 2050 and plain.vocab_size == 2048
    ids, sea = plain.encode("The sea"), ours.encode("sea", bos=False, begun=True)
    assert ours.encode("The sea") == ids
    assert ours.encode("The sea<pad>sea") == [*ids, 2049, *sea]
    assert ours.encode("The <pad> sea", special=False) == plain.encode("The <pad> sea")
    for text in ("the sea<word>the sea", "<word> sea", "a <word><word>b"):
        ids = [2049, *ours.encode(text), 2049]
        stream = ours.stream()
        assert "".join(map(stream.push, ids)) + stream.flush() == ours.decode(ids) == text
    with pytest.raises(ValueError, match="out of range"):
        ours.decode([2050])


def test_a_token_without_an_embedding_is_text(tmp_path):
    """Catches a [PAD] that was added to the tokenizer alone, as in many finetunes of Llama 2:
    an id that the model cannot look up, or a folder that is refused for it."""
    parts = dict(config={"vocab_size": 2049}, added_tokens={"<word>": 2048, "[PAD]": 2049})
    ours, plain = load(pieces_folder(tmp_path, **parts)), load(ROOT / "weights" / "tiny-llama")
    assert ours.vocab_size == 2049 and ours.encode("<word>", bos=False) == [2048]
    assert ours.encode("a [PAD] b") == plain.encode("a [PAD] b")


@pytest.mark.parametrize("add_bos, add_eos", [(None, None), (True, False), (False, True)])
def test_bos_and_eos_stand_where_tokenizer_config_says(tmp_path, add_bos, add_eos):
    """A model that was trained without BOS, or with EOS, reads a text that it never saw."""
    flags = {"add_bos_token": add_bos, "add_eos_token": add_eos}
    about = {name: flag for name, flag in flags.items() if flag is not None}
    ours = load(pieces_folder(tmp_path, tokenizer_config=about))
    sea = ours.encode("sea", bos=False)
    assert ours.encode("sea") == [1] * (add_bos is not False) + sea + [2] * (add_eos is True)
    assert ours.bos_id == (None if add_bos is False else 1)
    assert ours.bos_token_id == 1 and ours.eos_id == 2


def test_bos_and_eos_are_those_that_are_named(tmp_path):
    """A chat model ends its replies with a mark that was added, not with the pieces' EOS."""
    about = {"eos_token": "<|im_end|>", "bos_token": {"content": "</s>"}}
    marks = {"<|im_end|>": 2048, "<|im_start|>": 2049}
    ours = load(pieces_folder(tmp_path, tokenizer_config=about, added_tokens=marks))
    assert ours.eos_id == 2048 and ours.encode("")[0] == 2
    assert ours.marks == {"<s>": 1, "</s>": 2} | marks
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(about))
    ours = load(tmp_path)
    assert ours.eos_id == 2048 and ours.encode("")[0] == 2
    sea = ours.encode("sea", bos=False, begun=True)
    assert ours.encode("<|im_start|>sea", bos=False) == [2049, *sea]
    about |= {"legacy": True}
    ours = load(pieces_folder(tmp_path, tokenizer_config=about, added_tokens=marks))
    assert ours.encode("<|im_start|>sea", bos=False) == [2049, *ours.encode("sea", bos=False)]


# ---- files that are not as they should be


@pytest.mark.parametrize("id", [True, 1.5, -1, "3", None, 2**40, 0])
@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "added_tokens.json"])
def test_ids_are_whole_numbers_and_each_given_once(tmp_path, name, id):
    """true would be 1, and an id of two tokens would be whichever stands last."""
    if name == "tokenizer.json":
        raw = small_kinds()["GPT-2, json"]
        raw["model"]["vocab"]["the"] = id
    elif name == "vocab.json":
        shutil.copy(ROOT / "tests" / "fixtures" / "tokenizers" / "merges.txt", tmp_path)
        raw = small_kinds()["GPT-2, json"]["model"]["vocab"] | {"the": id}
    else:
        pieces_folder(tmp_path)
        raw = {"<x>": id}
    (tmp_path / name).write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(ValueError, match='(?s).*("the"|<x>)') as refusal:
        load(tmp_path)
    assert str(tmp_path) in str(refusal.value)


def test_a_folder_without_a_readable_tokenizer_is_refused(tmp_path):
    """sentencepiece's own errors, and those of its texts, name no file."""
    with pytest.raises(ValueError, match="holds no tokenizer that can be read: copy"):
        load(tmp_path)
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")  # Llama 3's, of ranks
    with pytest.raises(ValueError, match="copy the model's tokenizer.json there"):
        load(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(small_kinds()["SmolLM2"])[:-9])
    with pytest.raises(ValueError, match="no JSON object"):
        load(tmp_path)
    content = (ROOT / "weights" / "nano-llama" / "tokenizer.model").read_bytes()
    source, refused = random.Random(2), 0
    for _ in range(40):
        at = source.randrange(len(content))
        spoilt = content[:at] + source.randbytes(source.choice((1, 9))) + content[at + 3 :]
        (tmp_path / "tokenizer.model").write_bytes(spoilt)
        try:
            ours = load(tmp_path)
            ours.decode(ours.encode("It was 1851."))
        except ValueError as error:
            assert "is not a readable sentencepiece model" in str(error)
            refused += 1
    assert refused > 12
