"""Which token comes next, and how many bytes it is: documents, passes and their order."""

import argparse

import numpy as np
import pytest
from conftest import ROOT

from minilm_inf import load_tokenizer
from minilm_inf.evaluate.documents import Stream, encoded, texts_of

TEXTS = {"x": "abc", "y": "de", "z": "f", "w": "ghijklm"}


class Words:
    """A tokenizer of letters: BOS 1, EOS 2, and 3 on for a to z."""

    bos_id, eos_id, vocab_size = 1, 2, 29

    def encode(self, text: str, bos: bool = True) -> list[int]:
        return [1] * bos + [3 + ord(letter) - ord("a") for letter in text]

    def bytes_of(self, id: int) -> bytes:
        return b"" if id < 3 else bytes([ord("a") + id - 3])


class NoMarks(Words):
    bos_id = eos_id = None


def read_all(stream: Stream, step: int) -> list[list[int]]:
    """The ids and places of a stream, in pieces that overlap by one as a chunk's do."""
    found = [stream.read(at, min(at + step + 1, stream.length))
             for at in range(0, stream.length, step)]  # fmt: skip
    assert {x.dtype for pair in found for x in pair} == {np.dtype(np.int64)}
    return [np.concatenate([x[:step] for x in part]).tolist() for part in zip(*found)]


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize("words", [Words(), NoMarks()], ids=["marks", "no marks"])
def test_a_stream_is_every_document_in_the_order_of_its_pass(words, step):
    """Passes in one order, or in another after a resume; a document that a chunk's edge cuts
    short, EOS after none of them; or a single pass that ends with EOS that nothing follows."""
    end = [2] if words.eos_id else []
    stream = Stream(TEXTS, words, True, 90)
    documents = [[*words.encode(text, bos=False), *end] for text in TEXTS.values()]
    starts = np.cumsum([0, *map(len, documents)]).tolist()
    ids, places, orders = [1] * len(stream.bos), [-1] * len(stream.bos), []
    for number in range(10):
        orders.append([starts.index(at) for at in stream.one_pass(number) if at in starts])
        for document in orders[-1]:
            ids += documents[document]
            places += range(starts[document], starts[document + 1])
    assert orders[0] == [0, 1, 2, 3] and len(set(map(tuple, orders))) > 4
    assert all(sorted(order) == orders[0] for order in orders)
    assert read_all(Stream(TEXTS, words, True, 90), step) == [ids[:90], places[:90]]
    later = Stream(TEXTS, words, True, 90).read(60, 69)
    assert [x.tolist() for x in later] == [ids[60:69], places[60:69]]
    once = Stream(TEXTS, words, False)
    assert read_all(once, step)[0] == ids[: once.length] and once.length == ids.index(15) + 1
    lengths = [Stream(TEXTS, words, False, asked).length for asked in (5, 99)]
    assert lengths == [5, once.length], "it does not repeat"


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-mpt"])
def test_the_bytes_of_all_tokens_are_those_of_the_text(name):
    """A leading space that sentencepiece adds, a byte token that counts for six, or BOS."""
    texts = {"a": "The sea was cold. ", "b": " It was late", "c": "No — never, said he."}
    stream = Stream(texts, load_tokenizer(ROOT / "weights" / name), False)
    _, places = read_all(stream, 3)
    n_bytes = sum(len(text.encode()) for text in texts.values())
    assert stream.bytes[places[1:]].sum() == n_bytes == stream.bytes.sum()


def test_bytes_that_nobody_knows(tokenizer, monkeypatch):
    """Bits per byte of bytes that were guessed; a space written as a letter of three bytes, and
    a byte as six characters."""
    known = {2: b"", 3: b"a", 5: b"c"}
    monkeypatch.setattr(Words, "bytes_of", lambda self, id: known.get(id))
    assert Stream({"x": "abc"}, Words(), False).bytes is None
    assert Stream({"x": "acc"}, Words(), False).bytes.tolist() == [1, 1, 1, 0]
    ids = tokenizer.encode("a é 漢")
    assert b"".join(tokenizer.bytes_of(id) for id in ids) == " a é 漢".encode()
    assert tokenizer.bytes_of(tokenizer.processor.unk_id()) is None


def test_documents_are_cut_to_one_length(tokenizer):
    """A document that lacks its BOS, or its last token; one that is too short, or empty."""
    texts = {"words": "the sea and the ship " * 400, "bytes": "漢字" * 200}
    for name, ids in encoded(texts, tokenizer, 500).items():
        assert ids == tokenizer.encode(texts[name])[:501] and len(ids) == 501
    n = len(tokenizer.encode("A ship"))
    assert len(encoded({"short": "A ship"}, tokenizer, n - 1)["short"]) == n
    with pytest.raises(ValueError, match="y is empty"):
        Stream({"x": "abc", "y": ""}, Words(), True)
    with pytest.raises(ValueError, match="fewer than two"):
        Stream({"x": "a"}, NoMarks(), False)
    with pytest.raises(ValueError, match=f"short has only {n} tokens: .*--length"):
        encoded({"short": "A ship"}, tokenizer, n)


def test_a_corpus_is_its_held_out_part(tmp_path):
    """A model that is asked about what it has learned by heart."""
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "Acts.txt").write_text("Held out, this is.\n")
    (tmp_path / "web" / "Gen.txt").write_text("This was learned.\n")
    found = texts_of(argparse.Namespace(text=None, corpus=tmp_path))
    assert list(found.values()) == ["Held out, this is.\n"]
