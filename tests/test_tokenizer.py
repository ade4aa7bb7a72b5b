"""Text to ids, ids to text as it arrives: the same as in the library that owns a file's format,
or a refusal."""

import itertools
import json
import random
import re
import shutil
import time
from collections import Counter

import pytest
from conftest import ROOT
from fuzzed_texts import fuzzed_texts
from tokenizer_json import (
    BARE,
    FOLDER,
    LEVEL,
    STRIP,
    added,
    checksums,
    folder_of,
    metaspace,
    piece_kinds,
    small_kinds,
    split,
    steps,
    template,
    whole,
)

from minilm_inf.terminal.json_parts import Part
from minilm_inf.text.around import Around
from minilm_inf.text.byte_level import GPT2, ByteLevelTokenizer, byte_letters
from minilm_inf.text.byte_pairs import WORDS, learn_merges, tokenizer_json
from minilm_inf.text.sentence_pieces import SentencePieceTokenizer, model_proto
from minilm_inf.text.tokenizer import load

PIECES = piece_kinds()
KINDS = small_kinds() | PIECES
EXPECTED = json.loads((FOLDER / "expected.json").read_text())


@pytest.fixture(params=["tiny-llama", "tiny-mpt", "tiny-gptj"])
def any_tokenizer(request):
    return load(ROOT / "weights" / request.param)


def pieces_folder(folder, **files):
    """tiny-llama's pieces, and JSON files beside them by the names before their dots."""
    shutil.copy(ROOT / "weights" / "tiny-llama" / "tokenizer.model", folder)
    return folder_of(folder, **files)


def test_bos_only_where_it_is_asked_for_and_every_digit_alone(any_tokenizer):
    """With a second BOS, or none, a text is one that the model never saw; digits merged into
    pieces would make a pass key another task."""
    encode, bos = any_tokenizer.encode, any_tokenizer.bos_id
    assert encode("a") == [bos, *encode("a", bos=False)] and encode("") == [bos]
    assert encode("", bos=False) == []
    assert len(encode(" 40721")) == len(encode(" ")) + 5


def test_text_survives_encoding_and_streams(any_tokenizer):
    """A normaliser or a missing byte would change what people write; ids decoded one by one
    lose spaces and tear characters apart."""
    rng, size = random.Random(1), any_tokenizer.vocab_size
    space = any_tokenizer.encode(" ", bos=False)[-1]
    pieces = isinstance(any_tokenizer, SentencePieceTokenizer)
    for text in fuzzed_texts(300, seed=2):
        ids = any_tokenizer.encode(text)
        # sentencepiece's own space mark cannot be told from a space; a special leaves no trace
        expected = text.replace("▁", " ") if pieces else text.replace("<|endoftext|>", "")
        assert any_tokenizer.decode(ids) == expected, repr(text)
        torn = [rng.randrange(rng.choice((259, size))) for _ in range(20)]
        spaces = [rng.choice([any_tokenizer.bos_id, space, space, 68]) for _ in range(6)]
        for row in (ids, torn, spaces):  # of the first spaces, one is dropped
            stream = any_tokenizer.stream()
            parts = [stream.push(id) for id in row]
            assert "".join(parts) + stream.flush() == any_tokenizer.decode(row), (text, row)
            if row is not torn and "\ufffd" not in text:  # half a character is never shown
                assert not any("\ufffd" in part for part in parts)


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
    ids, sea = plain.encode("The sea"), ours.encode("sea", bos=False, begun=True)
    assert ours.vocab_size == 2050 and ours.encode("The sea<pad>sea") == [*ids, 2049, *sea]
    assert ours.encode("The <pad> sea", special=False) == plain.encode("The <pad> sea")
    # as in many finetunes of Llama 2: a [PAD] without an embedding is text, and no refusal
    few = load(folder_of(tmp_path, config={"vocab_size": 2049}))
    assert few.vocab_size == 2049 and few.encode("<word>", bos=False) == [2048]
    assert few.encode("a <pad> b") == plain.encode("a <pad> b")
    for text in ("the sea<word>the sea", "<word> sea", "a <word><word>b"):
        ids = [2049, *ours.encode(text), 2049]
        stream = ours.stream()
        assert "".join(map(stream.push, ids)) + stream.flush() == ours.decode(ids) == text


@pytest.mark.parametrize("add_bos, add_eos", [(None, None), (True, False), (False, True)])
def test_bos_and_eos_stand_where_tokenizer_config_says(tmp_path, add_bos, add_eos):
    """A model that was trained without BOS, or with EOS, reads a text that it never saw."""
    about = {"add_bos_token": add_bos, "add_eos_token": add_eos} if add_bos is not None else {}
    ours = load(pieces_folder(tmp_path, tokenizer_config=about))
    sea = ours.encode("sea", bos=False)
    assert ours.encode("sea") == [1] * (add_bos is not False) + sea + [2] * (add_eos is True)
    assert ours.bos_id == (None if add_bos is False else 1)
    assert ours.bos_token_id == 1 and ours.eos_id == 2


@pytest.mark.parametrize("file", ["tokenizer_config", "special_tokens_map"])
def test_bos_and_eos_are_those_that_are_named(tmp_path, file):
    """A chat model ends its replies with a mark that was added, not with the pieces' EOS."""
    about = {"eos_token": "<|im_end|>", "bos_token": {"content": "</s>"}, "legacy": True}
    marks = {"<|im_end|>": 2048, "<|im_start|>": 2049}
    ours = load(pieces_folder(tmp_path, added_tokens=marks, **{file: about}))
    assert ours.eos_id == 2048 and ours.encode("")[0] == 2
    assert ours.marks == {"<s>": 1, "</s>": 2} | marks
    legacy = file == "tokenizer_config"  # a space before every part of a text
    sea = ours.encode("sea", bos=False, begun=not legacy)
    assert ours.encode("<|im_start|>sea", bos=False) == [2049, *sea]
    assert (sea == ours.encode("sea", bos=False)) == legacy


# ---- files that are not as they should be


@pytest.mark.parametrize("id", [True, 1.5, -1, "3", None, 2**40, 0])
@pytest.mark.parametrize("name", ["tokenizer", "vocab", "added_tokens"])
def test_ids_are_whole_numbers_and_each_given_once(tmp_path, name, id):
    """true would be 1, and an id of two tokens would be whichever stands last."""
    raw = small_kinds()["GPT-2, json"]
    raw["model"]["vocab"]["the"] = id
    contents = {"tokenizer": raw, "vocab": raw["model"]["vocab"], "added_tokens": {"the": id}}
    shutil.copy(FOLDER / "merges.txt", tmp_path)
    if name == "added_tokens":
        pieces_folder(tmp_path)
    with pytest.raises(ValueError, match=f'(?s){tmp_path}.*"the"'):
        load(folder_of(tmp_path, **{name: contents[name]}))


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


# ---- files of BPE


def tiny(merges=(("a", "b"), ("ab", "c")), extra=(), **more):
    """A tokenizer.json of the 256 bytes and a few merges."""
    tokens = [*byte_letters(), *dict.fromkeys(a + b for a, b in merges), *extra]
    step, marks = more.pop("pre_tokenizer", LEVEL), more.pop("added_tokens", [])
    vocab = {token: id for id, token in enumerate(tokens)}
    return whole(vocab, [list(pair) for pair in merges], step, marks, **more)


def llama(**parts):
    """The commonest kind of a Llama with some of its parts, or of its model's, replaced."""
    raw = json.loads(json.dumps(PIECES["Llama 2"]))
    for name, part in parts.items():
        (raw["model"] if name in raw["model"] else raw)[name] = part
    return raw


@pytest.mark.parametrize("kind", ["two files", *KINDS])
def test_every_kind_gives_the_ids_of_the_tokenizers_library(tmp_path, kind):
    """A cut, a space, a byte, a normaliser or an added token that is read otherwise; text that
    comes out differently when it is decoded, whole or torn."""
    two = kind == "two files"
    ours = load(FOLDER if two else folder_of(tmp_path, tokenizer=KINDS[kind]))
    found = checksums(fuzzed_texts(300, seed=5), ours.encode, ours.decode)
    assert {name: found[name] for name in EXPECTED[kind]} == EXPECTED[kind]


def specified(word: str, merges, ids: dict[str, int], whole_words: bool) -> list[int]:
    """BPE as the tokenizers library defines it: of all listed pairs the first in the list."""
    if whole_words and word in ids:
        return [ids[word]]
    parts = list(word)
    while True:
        pairs = [(merges.index(pair), at) for at, pair in enumerate(zip(parts, parts[1:]))
                 if pair in merges]  # fmt: skip
        if not pairs:
            return [ids[part] for part in parts]
        _, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def random_bpe(seed: int):
    """Merges as nobody would learn them: in any order, with unreachable tokens."""
    source = random.Random(seed)
    tokens, merges = list("abc"), []
    for _ in range(source.randint(1, 6)):
        pair = source.choice(tokens), source.choice(tokens)
        if pair not in merges and len("".join(pair)) <= 6:
            merges.append(pair)
            tokens.append("".join(pair))
    if source.random() < 0.2:
        source.shuffle(merges)
    unlisted = ["".join(source.choices("abc", k=3))] * (source.random() < 0.3)
    return merges, unlisted, source.random() < 0.4


def test_any_list_of_merges_is_done_exactly_or_refused():
    """tiktoken joins every pair that makes a token; a file of merges allows only its own."""
    words = ["".join(w) for n in range(1, 6) for w in itertools.product("abc", repeat=n)]
    done = 0
    for seed in range(80):
        merges, unlisted, whole_words = random_bpe(seed)
        vocab: dict[str, int] = {}
        for token in [*byte_letters(), *(a + b for a, b in merges), *unlisted]:
            vocab.setdefault(token, len(vocab))
        model = Part({"merges": [list(pair) for pair in merges]})
        try:
            ours = ByteLevelTokenizer(model, vocab, Around(), r"[\s\S]+", whole_words)
        except ValueError:
            continue
        done += 1
        for word in words:
            assert ours.encode(word) == specified(word, merges, vocab, whole_words), seed
    assert 30 <= done < 80


def test_a_piece_that_no_merge_makes(tmp_path):
    """sentencepiece joins any letters that are a piece, though no merges lead there."""
    ours = load(folder_of(tmp_path, tokenizer=llama(vocab=VOCAB | {"zq": 2048})))
    assert 2048 not in ours.encode("zq") and ours.decode([2048]) == "zq"


def test_only_the_post_processor_tells_of_bos(tmp_path):
    """BOS twice, or none, is a text that the model never saw; transformers drops add_bos_token
    and add_eos_token where there is a tokenizer.json."""
    both = template("<|x|>", 300)
    both["single"].append(both["single"][0])
    about = {"add_bos_token": False, "add_eos_token": True, "bos_token": "<|x|>",
             "eos_token": {"content": "abc"}}  # fmt: skip
    for processor, before, after in (
        (None, [], []),
        (template("<|x|>", 300), [300], []),
        ({"type": "Sequence", "processors": [LEVEL, both]}, [300], [300]),
    ):
        raw = tiny(added_tokens=[added(300, "<|x|>")], post_processor=processor)
        ours = load(folder_of(tmp_path, tokenizer=raw, tokenizer_config=about))
        assert ours.encode("ab") == [*before, 256, *after]
        assert ours.encode("ab", bos=False) == [256]
        assert ours.bos_id == (before[0] if before else None)
        assert ours.bos_token_id == 300 and ours.eos_id == 257
        assert ours.vocab_size == 301 and ours.decode([299]) == ""  # an id that none has


def test_text_that_continues(tmp_path):
    """A reply glued to its prompt; between two marks a space that appears, or vanishes."""
    for kind, spaced in (("Llama 2", True), ("Llama, first", False), ("Metaspace", True)):
        ours = load(folder_of(tmp_path, tokenizer=PIECES[kind]))
        sea = ours.encode("sea", bos=False)
        assert ours.stream().push(sea[0]) == "sea" == ours.stream(begun=True).push(sea[0])[1:]
        after = ours.encode("sea", bos=False, begun=True)
        assert after == ours.encode("</s>sea", bos=False)[1:][: len(after)]
        assert (after == sea[: len(after)]) == spaced
    assert ours.marks["</s>"] == 2 and "sea" not in ours.marks


REMOVED = split(GPT2) | {"behavior": "Removed"}
APART = (("a", "b"), ("b", "c"), ("ab", "c"), ("b", "b"), ("a", "bc"))  # abc, then abc again
LONG = ["a" * 8, "a" * 249]
MERGES, VOCAB = (PIECES["Llama 2"]["model"][name] for name in ("merges", "vocab"))
NORMAL, OTHER = [added(2048, "<x>", normalized=True)], "in another way than GPT-2"
REFUSED = [
    (tiny, OTHER, {"pre_tokenizer": steps("pretokenizers", REMOVED, BARE)}),
    (tiny, OTHER, {"pre_tokenizer": steps("pretokenizers", split("(a+)+$"), BARE)}),
    (tiny, "(NFKC, ByteLevel)", {"normalizer": {"type": "NFKC"}}),
    (tiny, "RobertaProcessing", {"post_processor": {"type": "RobertaProcessing"}}),
    (tiny, 'must be null or "ByteLevel"', {"decoder": {"type": "Metaspace"}}),
    (tiny, "do not stand together", {"merges": APART}),
    (tiny, "do not make", {"merges": [LONG], "extra": LONG}),
    (tiny, "normalized", {"added_tokens": NORMAL, "normalizer": {"type": "NFC"}}),
    (llama, OTHER, {"pre_tokenizer": metaspace("first", True)}),
    (llama, "and perhaps Strip", {"decoder": steps("decoders", STRIP)}),
    (llama, "merges[0] must be two tokens", {"merges": ["a b c"]}),
    (llama, "and both joined another", {"merges": [["zq", "qz"]]}),
    (llama, "its merges do not make", {"merges": [m for m in MERGES if m != "t he"]}),
    (llama, "unk_token", {"unk_token": "<none>"}),
    (llama, "with a token for each byte", {"byte_fallback": False}),
    (llama, "all ids", {"vocab": VOCAB | {"zq": 9999}}),
    (llama, "the text stands once", {"post_processor": template("<s>", 1) | {"single": []}}),
    (llama, '"<x>" has the id 1', {"added_tokens": [added(1, "<x>")]}),
    (llama, "lstrip", {"added_tokens": [added(2048, "<x>") | {"lstrip": True}]}),
    (llama, 'type must be null or "BPE"', {"model": {"type": "Unigram", "vocab": []}}),
    (llama, "model.vocab must be an object", {"model": {}}),
]  # fmt: skip


@pytest.mark.parametrize("make, named, parts", REFUSED)
def test_what_cannot_be_done_exactly_is_refused(tmp_path, make, named, parts):
    """Other ids than the model was trained with are a quiet loss of everything it learned."""
    with pytest.raises(ValueError, match=f"^.*tokenizer.json.*{re.escape(named)}.*$"):
        load(folder_of(tmp_path, tokenizer=make(**parts)))


def test_texts_that_cannot_be_encoded_are_refused(tmp_path):
    """A byte that the vocabulary lacks would be left out; tiktoken's own regular expressions
    would end the program at white space without end."""
    raw = tiny()
    del raw["model"]["vocab"]["A"]
    ours = load(folder_of(tmp_path, tokenizer=raw))
    assert ours.encode("abc") == [257]
    with pytest.raises(ValueError, match="no token of this"):
        ours.encode("aAbc")
    with pytest.raises(ValueError, match="white spaces in a row"):
        ours.encode("a" + " " * 1_000_000)
    assert ours.decode(ours.encode("a" + " " * 150_000)) == "a" + " " * 150_000


def test_a_long_word_takes_no_square_of_its_length(tmp_path):
    """Without spaces a text is one word: a search for each next merge in all of it is hours."""
    ours, began = load(folder_of(tmp_path, tokenizer=llama())), time.monotonic()
    for text in ("ab" * 20_000, "漢" * 10_000, " " * 40_000):
        assert ours.decode(ours.encode(text)) == text
    assert time.monotonic() - began < 20


def test_two_files_and_what_stands_beside_them(tmp_path):
    """GPT-J's 143 extra tokens are in a file of their own, and BOS only where it is asked;
    merges of another model would be a KeyError."""
    vocab = tiny()["model"]["vocab"] | {"<|endoftext|>": 258}
    (tmp_path / "merges.txt").write_text("#version: 0.2\r\na b\r\nab c\r\n")
    more = {"<|extratoken_1|>": 259}
    ours = load(folder_of(tmp_path, vocab=vocab, added_tokens=more))
    assert ours.encode("abc<|extratoken_1|>") == [257, 259]
    assert ours.bos_id is None and ours.eos_id == 258
    assert ours.decode([257, 258, 259]) == "abc<|extratoken_1|>"
    folder_of(tmp_path, tokenizer_config={"add_bos_token": True})
    assert load(tmp_path).encode("abc") == [258, 257]
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nq zz\n")
    with pytest.raises(ValueError, match=r"merges.txt: merges\[1\] must be two tokens of its"):
        load(tmp_path)


def test_merges_are_learned_by_frequency():
    """A stale count, an overlap counted twice, or a pair across words, learns other merges."""
    assert learn_merges(["ab ab ab abc"], 3) == [(b"a", b"b"), (b" ", b"ab"), (b" ab", b"c")]
    texts = [text for text in fuzzed_texts(200, seed=9) if text.isascii()]
    words = [[bytes([b]) for b in w.encode()] for t in texts for w in WORDS.findall(t)]
    for pair in learn_merges(texts, 30):  # counted again for each merge
        counts = Counter(other for word in words for other in itertools.pairwise(word))
        assert counts[pair] == max(counts.values())
        for word in words:
            for at in range(len(word)):
                if tuple(word[at : at + 2]) == pair:
                    word[at : at + 2] = [b"".join(pair)]
    with pytest.raises(ValueError, match="only 1 pairs to merge"):
        learn_merges(["ab"], 2)


def test_what_is_learned_can_be_loaded(tmp_path):
    """The trainer's file, read by the loader: one token before a text, and every byte."""
    merges = learn_merges(["the cat sat on the mat, the end. " * 3], 12)
    ours = load(folder_of(tmp_path, tokenizer=json.loads(tokenizer_json(merges))))
    assert ours.vocab_size == 257 + 12
    assert ours.encode("the 12")[0] == 0 and len(ours.encode("the 12")) == 5
    for text in fuzzed_texts(100):
        plain = text.replace("<|endoftext|>", "")
        assert ours.decode(ours.encode(plain)) == plain
