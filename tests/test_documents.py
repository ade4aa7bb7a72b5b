"""Which token comes next, and how many bytes it is: files, texts, passes and their order."""

import numpy as np
import pytest
from conftest import ROOT

from minilm_inf import load_tokenizer
from minilm_inf.evaluate.byte_counts import ByteCounts
from minilm_inf.evaluate.documents import Encoded, Joined, Separate, TokensFile, digest

TEXTS = {"a": "The sea was cold. ", "b": " It was late", "c": "No — never, said the old man."}


class Words:
    """A tokenizer of letters: BOS 1, EOS 2, and 3 on for a to z."""

    bos_id, eos_id, vocab_size = 1, 2, 29

    def encode(self, text: str, bos: bool = True) -> list[int]:
        return [1] * bos + [3 + ord(letter) - ord("a") for letter in text]

    def bytes_of(self, id: int) -> bytes:
        return b"" if id < 3 else bytes([ord("a") + id - 3])


class NoMarks(Words):
    bos_id = eos_id = None


def read_all(reading, text: int, step: int) -> tuple[list[int], list[int]]:
    """A text of a reading in pieces of `step` tokens, which overlap by one as a chunk's do."""
    n, ids, places = int(reading.lengths[text]), [], []
    for start in range(0, n, step):
        stop = min(start + step + 1, n)
        found = reading.read(text, start, stop)
        assert found[0].dtype == found[1].dtype == np.int64
        assert len(found[0]) == len(found[1]) == stop - start
        ids += found[0].tolist()[:step]
        places += found[1].tolist()[:step]
    return ids, places


@pytest.mark.parametrize("step", [1, 2, 5, 100])
def test_separate_texts_begin_with_bos_each(step):
    """A second document that continues the first, or a token lost where a chunk ends."""
    source = Encoded({"x": "abc", "y": "de"}, Words(), with_eos=False)
    reading = Separate(source, 1, None)
    assert reading.lengths.tolist() == [4, 3]
    assert read_all(reading, 0, step) == ([1, 3, 4, 5], [-1, 0, 1, 2])
    assert read_all(reading, 1, step) == ([1, 6, 7], [-1, 3, 4])
    assert Separate(source, 1, 3).lengths.tolist() == [3, 3]
    bare = Separate(Encoded({"x": "abc", "y": "de"}, NoMarks(), False), None, None)
    assert read_all(bare, 1, step) == ([6, 7], [3, 4])


@pytest.mark.parametrize("step", [1, 3, 7, 1000])
@pytest.mark.parametrize("words", [Words(), NoMarks()], ids=["marks", "no marks"])
def test_a_stream_is_every_document_in_the_order_of_its_pass(words, step):
    """A pass in the order of another, a document that a chunk's edge cuts short, EOS after none
    of them; or a single pass that ends with EOS that nothing follows."""
    texts = {"x": "abc", "y": "de", "z": "f", "w": "ghijklm"}
    source = Encoded(texts, words, with_eos=True)
    end = [2] if words.eos_id else []
    reading = Joined(source, words.bos_id, 90, seed=5)
    ids, places = ([1], [-1]) if words.bos_id else ([], [])
    starts = np.cumsum([0, *(len(text) + len(end) for text in texts.values())])
    for number in range(10):
        order = reading.order(number).tolist()
        assert sorted(order) == [0, 1, 2, 3]
        for document in order:
            here = [*words.encode([*texts.values()][document], bos=False), *end]
            ids += here
            places += range(starts[document], starts[document] + len(here))
    assert read_all(reading, 0, step) == (ids[:90], places[:90])
    once = read_all(Joined(source, words.bos_id, None, 0), 0, step)[0]
    assert once == ids[: len(once)] and once[-1] == words.encode("m", bos=False)[0]


def test_passes_are_drawn_from_the_seed_and_their_number():
    """The same order in every pass, in every run, or another one after a resume."""
    source = Encoded({letter: letter for letter in "abcdefgh"}, Words(), with_eos=True)
    orders = {seed: Joined(source, 1, 500, seed) for seed in (0, 1)}
    assert orders[0].order(0).tolist() == orders[1].order(0).tolist() == list(range(8))
    drawn = {tuple(orders[seed].order(number)) for seed in (0, 1) for number in range(1, 6)}
    assert len(drawn) == 10
    forward = [Joined(source, 1, 500, 0).read(0, at, at + 9)[0].tolist() for at in (0, 300, 40)]
    backward = [orders[0].read(0, at, at + 9)[0].tolist() for at in (40, 300, 0)]
    assert forward == backward[::-1]


# ---- files of ids


@pytest.mark.parametrize("dtype", ["int32", "uint16", ">i4"])
def test_a_file_is_read_as_it_stands(tmp_path, dtype):
    """Ids of another width or byte order; rows that run into one another."""
    rows = np.arange(24).reshape(3, 8) % 11
    np.save(tmp_path / "rows.npy", rows.astype(dtype))
    np.save(tmp_path / "one.npy", rows.ravel().astype(dtype))
    reading = Separate(TokensFile(tmp_path / "rows.npy", 11), None, 7)
    assert reading.lengths.tolist() == [7, 7, 7]
    for number in range(3):
        assert read_all(reading, number, 3)[0] == rows[number, :7].tolist()
    one = Separate(TokensFile(tmp_path / "one.npy", 11), None, None)
    assert read_all(one, 0, 5)[0] == rows.ravel().tolist()


def test_the_digest_tells_sources_apart(tmp_path):
    """A run that goes on with another text; or one that is refused for another dtype."""
    found = {}
    for name, ids in {
        "a": np.arange(8), "same": np.arange(8, dtype=np.uint8), "rows": np.arange(8)[None],
        "cut": np.arange(8).reshape(2, 4), "other": np.arange(1, 9), "abc": np.arange(3, 6),
    }.items():  # fmt: skip
        np.save(tmp_path / f"{name}.npy", ids)
        found[name] = digest(TokensFile(tmp_path / f"{name}.npy", 100))
    assert found["a"] == found["same"] == found["rows"]
    assert len({found["a"], found["cut"], found["other"]}) == 3
    assert digest(Encoded({"x": "abc"}, Words(), False)) == found["abc"]


def npy(header: str) -> bytes:
    """A .npy file of version 1 that has this header, and nothing after it."""
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode()


HEADER = "{{'descr': '|u1', 'fortran_order': False, 'shape': ({})}}"
NOT_WHOLE = ("not a whole .npy file", "numpy.save")


@pytest.mark.parametrize(
    "content, words",
    [
        (None, ("cannot read", "ids.npy")),
        (b"hello", NOT_WHOLE), (b"", NOT_WHOLE), (b"PK\3\4" + bytes(100), NOT_WHOLE),
        (npy("(" * 9000), NOT_WHOLE), (npy(HEADER.format("-1,")), NOT_WHOLE),
        (npy(HEADER.format("2**62,")), NOT_WHOLE),
        (npy(HEADER.format("10000000000,")), NOT_WHOLE),
        (npy("")[:6] + b"\2\0\0\0\0\xff" + bytes(99), NOT_WHOLE),
        (np.array([{}], object), NOT_WHOLE),
        (np.zeros(0, int), ("holds no ids",)),
        (np.zeros(3), ("float64", "whole numbers")),
        (np.zeros((2, 2, 2), int), ("(2, 2, 2)", "rows")),
        (np.zeros((3, 2), int).T.copy("F"), ("C order",)),
    ],
)  # fmt: skip
def test_files_that_hold_no_ids(tmp_path, content, words):
    """A traceback of numpy's, a pickle that runs, or numbers that are taken for ids."""
    path = tmp_path / "ids.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(ValueError) as caught:
        TokensFile(path, 100)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_a_file_that_is_cut_short_or_of_another_model(tmp_path):
    """Numbers that are not there, read as if they were; an index error of the embedding, or on
    a GPU, a dead process without a word."""
    path, ids = tmp_path / "ids.npy", np.arange(1000)
    for wrong in (-1, 1000, 2**40):
        ids[[31, 40]] = wrong
        np.save(path, ids)
        source = TokensFile(path, 1000)
        assert source.read(0, 0, 31).tolist() == list(range(31))
        with pytest.raises(ValueError, match=rf"id {wrong} \(token 31\).*ids 0 to 999"):
            source.read(0, 20, 45)
    path.write_bytes(path.read_bytes()[:-80])
    with pytest.raises(ValueError, match="not a whole .npy file"):
        TokensFile(path, 1000)
    with pytest.raises(ValueError, match="shorter"):
        source.read(0, 985, 1000)


def test_texts_in_which_nothing_can_be_scored(tmp_path):
    """A mean over no tokens."""
    with pytest.raises(ValueError, match="y is empty"):
        Encoded({"x": "abc", "y": ""}, Words(), True)
    np.save(tmp_path / "ids.npy", np.zeros((3, 1), int))
    source = TokensFile(tmp_path / "ids.npy", 100)
    with pytest.raises(ValueError, match="row 0 of .* fewer than two tokens"):
        Separate(source, None, None)
    with pytest.raises(ValueError, match="fewer than two"):
        Joined(Encoded({"x": "a"}, NoMarks(), True), None, None, 0)


# ---- bytes


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-mpt"])
@pytest.mark.parametrize("stream", [False, True])
def test_the_bytes_of_all_tokens_are_those_of_the_text(name, stream):
    """A leading space that sentencepiece adds, a byte token that counts for six, or BOS."""
    tokenizer = load_tokenizer(ROOT / "weights" / name)
    source = Encoded(TEXTS, tokenizer, with_eos=stream)
    counts, bos_id = ByteCounts(tokenizer, 4096, source), tokenizer.bos_id
    reading = Joined(source, bos_id, None, 0) if stream else Separate(source, bos_id, None)
    for step in (1, 3, 1000):
        total = 0
        for text, n in enumerate(reading.lengths.tolist()):
            for start in range(0, n, step):
                ids, places = reading.read(text, start, min(start + step, n))
                n_bytes, unknown = counts.count(ids, places)
                total += n_bytes
                assert unknown == 0
        assert total == sum(len(text.encode()) for text in TEXTS.values())


def test_bytes_that_nobody_knows(tokenizer):
    """Bits per byte of bytes that were guessed; a space written as a letter of three bytes, and
    a byte as six characters."""
    source = Encoded({"x": "abc"}, Words(), False)
    source.n_bytes = None
    ids = np.array([1, 3, 4, 28, 29])
    assert ByteCounts(Words(), 35, source).count(ids, np.arange(5)) == (3, 1)
    assert ByteCounts(None, 35, source).count(ids, np.arange(5)) == (0, 5)
    ids = tokenizer.encode("a é 漢")
    assert b"".join(tokenizer.bytes_of(id) for id in ids) == " a é 漢".encode()
    assert tokenizer.bytes_of(tokenizer.processor.unk_id()) is None
