"""Text to ids, ids to text as it arrives, and the text that ends a text."""

import json
import random
import shutil

import pytest
from conftest import ROOT
from fuzzed_texts import fuzzed_texts
from make_tokenizer_fixtures import piece_kinds, small_kinds
from tokenizer_json import added, template

from minilm_inf.terminal.json_parts import Part
from minilm_inf.text.piece_model import model_proto
from minilm_inf.text.sentence_pieces import SentencePieceTokenizer
from minilm_inf.text.tokenizer import load


@pytest.fixture(params=["tiny-llama", "tiny-mpt", "tiny-gptj"])
def any_tokenizer(request):
    return load(ROOT / "weights" / request.param)


def test_text_survives_encoding(any_tokenizer):
    """A normaliser or a missing byte would change what people write."""
    pieces = isinstance(any_tokenizer, SentencePieceTokenizer)
    for text in fuzzed_texts(400, seed=len(type(any_tokenizer).__name__)):
        # sentencepiece's own space mark cannot be told from a space; a special leaves no trace
        expected = text.replace("▁", " ") if pieces else text.replace("<|endoftext|>", "")
        assert any_tokenizer.decode(any_tokenizer.encode(text)) == expected, repr(text)


def test_bos_only_where_it_is_asked_for(any_tokenizer):
    """With a second BOS, or none, a text is one that the model never saw."""
    tokenizer = any_tokenizer
    assert tokenizer.encode("a")[0] == tokenizer.bos_id
    assert tokenizer.encode("a")[1:] == tokenizer.encode("a", bos=False)
    assert tokenizer.encode("") == [tokenizer.bos_id]
    assert tokenizer.encode("", bos=False) == []


def test_every_digit_is_a_token(any_tokenizer):
    """Digits merged into pieces would make a pass key another task."""
    tokenizer = any_tokenizer
    assert (
        len(tokenizer.encode(" 40721", bos=False)) == len(tokenizer.encode(" ", bos=False)) + 5
    )


def test_streamed_text_is_decoded_text(any_tokenizer):
    """Ids decoded one by one lose spaces and tear characters apart."""
    rng, size = random.Random(1), any_tokenizer.vocab_size
    space = any_tokenizer.encode(" ", bos=False)[-1]
    for text in fuzzed_texts(400, seed=2):
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
    """Bytes of no character: one mark for each, whatever follows them."""
    rng, decode = random.Random(3), tokenizer.processor.DecodeIds
    for _ in range(500):
        ids = [rng.randrange(1, rng.choice((259, tokenizer.vocab_size))) for _ in range(12)]
        assert tokenizer.decode(ids) == decode(ids)
    assert tokenizer.decode([0, 0]) == decode([0, 0]) == " ⁇  ⁇ "


@pytest.mark.parametrize("prefix", [True, False])
def test_a_model_says_whether_a_text_begins_with_a_space(tmp_path, prefix):
    """Mistral's first piece with a space is two of them, of which one goes."""
    pieces = [("<unk>", 0.0, 2), ("▁▁", -1.0, 1), ("▁a", -2.0, 1), ("▁", 0.0, 1), ("a", 0.0, 1)]
    (tmp_path / "tokenizer.model").write_bytes(
        model_proto(pieces, {}, prefix=prefix, extra=False)
    )
    ours = load(tmp_path)
    for ids in ([1], [2, 2], [1, 2], [3, 4], [4, 2], [3, 3, 4]):
        assert ours.decode(ids) == ours.processor.DecodeIds(ids)
    assert ours.encode("a") == ours.processor.EncodeAsIds("a") == [2 if prefix else 4]


def test_a_continuation_keeps_its_first_space(tokenizer):
    """Decoding the reply by itself would glue its first word to the prompt."""
    ids = tokenizer.encode("the", bos=False)
    assert tokenizer.stream(begun=False).push(ids[0])[0] != " "
    assert tokenizer.stream(begun=True).push(ids[0])[0] == " "


def test_what_is_out_of_range_is_refused(any_tokenizer):
    """sentencepiece itself would end with an error of its own, or wrap -1 round; an argument
    can carry half a surrogate pair."""
    for id in (-1, any_tokenizer.vocab_size):
        with pytest.raises(ValueError, match="out of range"):
            any_tokenizer.decode([id])
        with pytest.raises(ValueError, match="out of range"):
            any_tokenizer.bytes_of(id)
    with pytest.raises(ValueError, match="not Unicode"):
        any_tokenizer.encode("\ud83d")


def test_a_folder_without_a_readable_tokenizer_is_refused(tmp_path):
    """A missing or damaged file would show sentencepiece's error, which names no file."""
    with pytest.raises(ValueError, match="holds no tokenizer: copy"):
        load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="not a readable sentencepiece model"):
        load(tmp_path)


def test_marks_added_to_a_sentencepiece_model(tmp_path):
    """A padding token after the pieces would be out of range, or be letters in a prompt."""
    shutil.copy(ROOT / "weights" / "tiny-llama" / "tokenizer.model", tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 2048}')
    added = load(tmp_path)
    plain = load(ROOT / "weights" / "tiny-llama")
    assert added.vocab_size == 2049 and plain.vocab_size == 2048
    ids = plain.encode("The sea")
    assert added.encode("The sea") == ids
    assert added.decode([2048, *ids, 2048]) == "The sea"
    stream = added.stream()
    assert "".join(stream.push(id) for id in [2048, *ids, 2048]) + stream.flush() == "The sea"
    following = added.encode("sea", bos=False, begun=True)
    assert added.encode("The sea<pad>sea") == [*ids, 2048, *following]
    assert added.encode("The <pad> sea", special=False) == plain.encode("The <pad> sea")
    with pytest.raises(ValueError, match="out of range"):
        added.decode([2049])


def test_words_added_to_a_sentencepiece_model(tmp_path):
    """A word that was added is text, found whole; what follows it gets no space before it."""
    shutil.copy(ROOT / "weights" / "tiny-llama" / "tokenizer.model", tmp_path)
    known = {"content": "</s>", "id": 2, "special": True}
    word = {"content": "<word>", "id": 2048, "special": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [known, word]}))
    ours = load(tmp_path)
    pieces = [ours.processor.IdToPiece(id) for id in ours.encode("sea<word>the")[3:]]
    assert ours.encode("sea<word>the")[:3] == [*ours.encode("sea"), 2048][:3]
    for text in ("the sea<word>the sea", "<word> sea", "a <word><word>b"):
        ids = ours.encode(text)
        stream = ours.stream()
        assert ours.decode(ids) == text
        assert "".join(map(stream.push, ids)) + stream.flush() == text
    assert "▁" not in "".join(pieces)


def pieces_folder(folder, **files):
    """tiny-llama's pieces, and JSON files beside them by the names before their dots."""
    shutil.copy(ROOT / "weights" / "tiny-llama" / "tokenizer.model", folder)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


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
    added = {"<|im_end|>": 2048, "<|im_start|>": 2049}
    ours = load(pieces_folder(tmp_path, tokenizer_config=about, added_tokens=added))
    assert ours.eos_id == 2048 and ours.encode("")[0] == 2
    assert ours.mark_id("<|im_start|>") == 2049 and ours.mark_id("<s>") == 1
    assert ours.mark_id("sea") is None and ours.mark_id("no token") is None
    sea = ours.encode("sea", bos=False, begun=True)
    assert ours.encode("<|im_start|>sea", bos=False) == [2049, *sea]
    about |= {"legacy": True}
    ours = load(pieces_folder(tmp_path, tokenizer_config=about, added_tokens=added))
    assert ours.encode("<|im_start|>sea", bos=False) == [2049, *ours.encode("sea", bos=False)]


def test_a_template_beside_the_pieces_tells_of_bos(tmp_path):
    """transformers reads the tokenizer.json of such a folder, and drops add_bos_token then."""
    whole = {"added_tokens": [], "post_processor": template("</s>", 2)}
    about = {"add_bos_token": False}
    ours = load(pieces_folder(tmp_path, tokenizer_config=about, tokenizer=whole))
    assert ours.encode("") == [2]


PAD = {"content": "[PAD]", "special": True, "normalized": False}


def unresized(folder, kind: str):
    """A folder whose tokenizer has a [PAD] beyond its model's 2048 ids, or 758."""
    size = 2048
    if kind == "added_tokens.json":
        pieces_folder(folder, added_tokens={"[PAD]": size})
    elif kind == "tokenizer_config.json":
        pieces_folder(folder, tokenizer_config={"added_tokens_decoder": {str(size): PAD}})
    elif kind == "tokenizer.json beside":
        pieces_folder(folder, tokenizer={"added_tokens": [PAD | {"id": size}]})
    elif kind == "vocab.json":
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(ROOT / "tests" / "fixtures" / "tokenizers" / name, folder)
        size = len(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
        (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": size}))
    else:
        raw = {"byte-level": small_kinds()["SmolLM2"], "Llama": piece_kinds()["Llama 2"]}[kind]
        size = len(raw["model"]["vocab"])
        raw["added_tokens"].append(added(size, "[PAD]"))
        (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    return size


@pytest.mark.parametrize(
    "kind",
    ["added_tokens.json", "tokenizer_config.json", "tokenizer.json beside", "vocab.json",
     "byte-level", "Llama"],
)  # fmt: skip
def test_a_token_beyond_the_embedding_is_text(tmp_path, kind):
    """A [PAD] that was added, and no row for it: an index beyond the embedding, or a refusal of
    a folder that works."""
    size = unresized(tmp_path, kind)
    assert load(tmp_path).encode("a [PAD]", bos=False)[-1] == size
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": size}))
    ours = load(tmp_path)
    assert ours.vocab_size == size and max(ours.encode("a [PAD] b")) < size
    assert ours.decode(ours.encode("a [PAD] b")) == "a [PAD] b"
    with pytest.raises(ValueError, match="out of range"):
        ours.decode([size])


SHAPES = (None, True, 1.5, -1, 2**70, "x", [], [3], {}, {"a": 1}, [[]], "\ud800", "x" * 5000)


def spoiled(value, new, at: list):
    """A copy of a JSON value in which what stands at a path is another."""
    if not at:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = spoiled(value[at[0]], new, at[1:])
    return copy


def paths(value, depth: int = 4):
    """Paths to the parts of a JSON value, a few of each long list."""
    yield []
    if depth and isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for key in [*keys][:9]:
            yield from ([key, *path] for path in paths(value[key], depth - 1))


def shaped(kind: str) -> dict[str, object]:
    """The JSON files of a folder, by their names."""
    about = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": True,
             "legacy": False, "added_tokens_decoder": {"2048": PAD}}  # fmt: skip
    if kind == "pieces":
        whole = {"added_tokens": [PAD | {"id": 2049}], "post_processor": template("<s>", 1)}
        return {"tokenizer_config.json": about, "special_tokens_map.json": dict(about),
                "tokenizer.json": whole, "added_tokens.json": {"<x>": 2048}}  # fmt: skip
    raw = piece_kinds()["Llama, first"] if kind == "Llama" else small_kinds()["NeoX, NFC"]
    return {"tokenizer.json": raw, "tokenizer_config.json": about}


@pytest.mark.parametrize("kind", ["pieces", "Llama", "byte-level"])
def test_any_other_shape_is_one_sentence(tmp_path, kind):
    """A list for an object, or 1.5 for an id: a traceback, or an id that is none."""
    files, source = shaped(kind), random.Random(4)
    if kind == "pieces":
        pieces_folder(tmp_path)
    refused = 0
    for name, raw in files.items():
        others = {other: json.dumps(content) for other, content in files.items()}
        for other, text in others.items():
            (tmp_path / other).write_text(text)
        every = list(paths(raw))
        for path in source.sample(every, min(20, len(every))):
            (tmp_path / name).write_text(json.dumps(spoiled(raw, source.choice(SHAPES), path)))
            try:
                ours = load(tmp_path)
                ours.decode(ours.encode("It was 1851. [PAD]<x>"))
            except ValueError as error:
                refused += 1
                sentence = str(error)
                assert type(error) is ValueError and len(sentence.splitlines()) == 1, path
                assert str(tmp_path) in sentence and len(sentence) < 600, (path, sentence)
    assert refused > 5


@pytest.mark.parametrize("id, name", [
    (True, "vocab.json"), (1.5, "tokenizer.json"), (-1, "added_tokens.json"),
    ("3", "tokenizer.json"), (None, "vocab.json"), (2**40, "vocab.json"),
    (0, "tokenizer.json"), (0, "added_tokens.json"), (0, "vocab.json"),
])  # fmt: skip
def test_ids_are_whole_numbers_and_each_given_once(tmp_path, name, id):
    """true would be 1, and an id of two tokens would be whichever stands last."""
    if name == "tokenizer.json":
        raw = piece_kinds()["Llama 2"]
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
    if id != 0:
        with pytest.raises(
            ValueError, match="f: (x must be a whole number|the key x is missing)"
        ):
            Part(id, "f", "x").id()


def test_spoiled_pieces_are_refused(tmp_path):
    """sentencepiece's own errors, and those of its texts, name no file."""
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
