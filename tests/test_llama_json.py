"""A Llama's tokenizer.json: the ids and the text of the library that owns the file."""

import json
import random
import time

import pytest
from fuzzed_texts import fuzzed_texts
from make_tokenizer_fixtures import FOLDER, SEED, TEXTS, checksums, piece_kinds
from tokenizer_json import PREPEND, STRIP, UNDERLINE, added, metaspace, steps, template

from minilm_inf.text.tokenizer import load

EXPECTED = json.loads((FOLDER / "expected.json").read_text())
KINDS = piece_kinds()


def folder_of(path, raw):
    (path / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    return path


def changed(**parts):
    """The commonest kind with some of its parts, or of its model's, replaced."""
    raw = json.loads(json.dumps(KINDS["Llama 2"]))
    for name, part in parts.items():
        (raw if name in raw else raw["model"])[name] = part
    return raw


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_ids_of_the_tokenizers_library(tmp_path, kind):
    """A space, a byte or an added token that is read otherwise; bytes that are shown before
    they form a character, or a first space that comes back."""
    ours = load(folder_of(tmp_path, KINDS[kind]))
    found = checksums(fuzzed_texts(TEXTS, SEED), ours.encode, ours.decode)
    assert {name: found[name] for name in EXPECTED[kind]} == EXPECTED[kind]
    source = random.Random(1)
    for _ in range(100):
        ids = [source.randrange(source.choice((259, ours.vocab_size))) for _ in range(12)]
        stream = ours.stream()
        assert "".join(map(stream.push, ids)) + stream.flush() == ours.decode(ids)


def test_text_that_continues(tmp_path):
    """A reply glued to its prompt; between two marks a space that appears, or vanishes."""
    for kind, spaced in (("Llama 2", True), ("Llama, first", False), ("Metaspace", True)):
        ours = load(folder_of(tmp_path, KINDS[kind]))
        sea = ours.encode("sea", bos=False)
        assert ours.stream().push(sea[0]) == "sea" == ours.stream(begun=True).push(sea[0])[1:]
        after = ours.encode("sea", bos=False, begun=True)
        assert after == ours.encode("</s>sea", bos=False)[1:][: len(after)]
        assert (after == sea[: len(after)]) == spaced
    assert ours.mark_id("</s>") == 2 and ours.mark_id("sea") is None


def test_a_long_word_takes_no_square_of_its_length(tmp_path):
    """Without spaces a text is one word: a search for each next merge in all of it is hours."""
    began = time.monotonic()
    ours = load(folder_of(tmp_path, KINDS["Llama 2"]))
    for text in ("ab" * 20_000, "漢" * 10_000, " " * 40_000):
        assert ours.decode(ours.encode(text)) == text
    assert time.monotonic() - began < 20


def test_only_the_post_processor_tells_of_bos(tmp_path):
    """transformers drops add_bos_token and add_eos_token where there is a tokenizer.json."""
    about = {"add_bos_token": False, "add_eos_token": True, "bos_token": "<s>",
             "eos_token": {"content": "</s>"}}  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
    ours = load(folder_of(tmp_path, KINDS["Llama 2"]))
    assert ours.encode("")[:1] == [1] == [ours.bos_id] and ours.encode("") == [1]
    ours = load(folder_of(tmp_path, changed(post_processor=None)))
    assert ours.encode("") == [] and ours.bos_id is None
    assert ours.bos_token_id == 1 and ours.eos_id == 2
    assert ours.bytes_of(ours.encode("é")[-1]) == "é".encode()[1:] and ours.bytes_of(0) == b""


def test_a_token_that_no_merge_makes(tmp_path):
    """sentencepiece would join any letters that are a piece; the file's merges do not."""
    raw = changed()
    raw["model"]["vocab"]["zq"] = len(raw["model"]["vocab"])
    ours = load(folder_of(tmp_path, raw))
    assert raw["model"]["vocab"]["zq"] not in ours.encode("zq")
    assert ours.decode([raw["model"]["vocab"]["zq"]]) == "zq"


MERGES = KINDS["Llama 2"]["model"]["merges"]
REFUSED = {
    "its model is Unigram": {"type": "Unigram"},
    "neither null, Metaspace": {
        "pre_tokenizer": steps("pretokenizers", {"type": "Whitespace"})
    },
    'normalizer.type must be "NFC" or "Prepend"': {"normalizer": {"type": "Lowercase"}},
    "no longer than what it replaces": {"normalizer": UNDERLINE | {"content": "__"}},
    'a "String" of at least': {"normalizer": UNDERLINE | {"pattern": {"Regex": " "}}},
    "each space a ▁": {"normalizer": None},
    "must be Replace, ByteFallback, Fuse": {"decoder": {"type": "WordPiece"}},
    "and perhaps Strip": {"decoder": steps("decoders", STRIP)},
    "prepend_scheme must be": {"pre_tokenizer": metaspace("last", True)},
    "true where prepend_scheme": {
        "pre_tokenizer": metaspace("first", True) | {"add_prefix_space": False}
    },
    "replacement must be": {"pre_tokenizer": metaspace("first", True) | {"replacement": "_"}},
    "end_of_word_suffix": {"end_of_word_suffix": "</w>"},
    "dropout": {"dropout": 0.1},
    "merges[0] must be two tokens": {"merges": ["a b c"]},
    "and both joined another": {"merges": [["zq", "qz"]]},
    "do not stand together": {"merges": [*MERGES, MERGES[0]]},
    "of some of its parts only": {"merges": [m for m in MERGES if m != "th e"]},
    "unk_token must be a token": {"unk_token": "<none>"},
    "with a token for each byte": {"byte_fallback": False},
    "ignore_merges": {"ignore_merges": True},
    "leaves out ids": {"vocab": KINDS["Llama 2"]["model"]["vocab"] | {"zq": 9999}},
    "the text stands once": {"post_processor": template("<s>", 1) | {"single": []}},
    '"<s>" has the id 7': {"added_tokens": [added(7, "<s>")]},
    '"<x>" has the id 1': {"added_tokens": [added(1, "<x>")]},
    "single_word": {"added_tokens": [added(2048, "<x>") | {"single_word": True}]},
}  # fmt: skip


@pytest.mark.parametrize("named", REFUSED)
def test_what_cannot_be_done_exactly_is_refused(tmp_path, named):
    """Other ids than the model was trained with are a quiet loss of everything it learned."""
    parts = REFUSED[named]
    raw = changed(**parts)
    if "type" in parts:
        raw = changed() | {"model": parts}
    with pytest.raises(ValueError) as refusal:
        load(folder_of(tmp_path, raw))
    sentence = str(refusal.value)
    assert "tokenizer.json" in sentence and len(sentence.splitlines()) == 1
    assert named in sentence


def test_steps_in_a_deep_sequence_are_steps(tmp_path):
    """A file that nests its steps would end in a RecursionError."""
    raw = steps("normalizers", PREPEND, UNDERLINE)
    for _ in range(200):
        raw = steps("normalizers", raw)
    ours = load(folder_of(tmp_path, changed(normalizer=raw)))
    plain = load(folder_of(tmp_path, KINDS["Llama 2"]))
    assert ours.encode("the sea") == plain.encode("the sea")
