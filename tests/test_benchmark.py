"""benchmark/: what is counted, timed, compared and said is so."""

from __future__ import annotations

import builtins
import sys
import types

import pytest
import torch
from conftest import ROOT, some_tokens, tiny_model

from minilm_inf.attention import attend
from minilm_inf.benchmark import __main__ as benchmark
from minilm_inf.benchmark import attention, models
from minilm_inf.benchmark.__main__ import LEGEND, table
from minilm_inf.benchmark.attention import CHUNKED, FLEX, REFERENCE, SDPA
from minilm_inf.benchmark.race import Row, extra_bytes, race
from minilm_inf.config import FULL_ATTENTION, LMInfinite
from minilm_inf.lambda_mask import lambda_mask
from minilm_inf.positions import Rotary

LM = LMInfinite(32, 4, 32)
SMALL = benchmark.Sizes(
    (64,), 2, 16, 32, 4, (40, 80), (20,), (10, 1000), steps=2, compiled=False
)


@pytest.fixture
def run(program, monkeypatch):
    """The program's exit code, stdout and stderr, of small sizes."""
    monkeypatch.setattr(benchmark, "FULL", SMALL)
    monkeypatch.setattr(benchmark, "QUICK", SMALL)
    return lambda *arguments: program(benchmark.main, "--device", "cpu", *arguments)


@pytest.fixture
def without_tools(monkeypatch):
    """No transformers, no C++ compiler, as on a bare machine."""
    real = builtins.__import__

    def bare_import(name, *arguments, **options):
        if name.partition(".")[0] == "transformers":
            raise ModuleNotFoundError("No module named 'transformers'", name="transformers")
        return real(name, *arguments, **options)

    def fail(*arguments, **options):
        raise RuntimeError("No working C++ compiler found in config.cpp.cxx: (None, 'g++')")

    monkeypatch.setattr(builtins, "__import__", bare_import)
    monkeypatch.setattr(torch, "compile", lambda *arguments, **options: fail)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_every_way_computes_what_it_is_named_after(monkeypatch):
    """A race won by another function: no ceiling, no rotation, a mask of another shape; full
    attention credited with the Λ's pairs; a definition of O(n^2) memory that takes the machine
    down."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(attention, "LARGE", 0)
    vectors = torch.randn(3, 1, 2, 80, 16, generator=torch.Generator().manual_seed(0))
    at, scheme = torch.arange(80), Rotary(16)
    placed = scheme.place(vectors[0], at), scheme.place(vectors[1], at)
    logits = (placed[0] @ placed[1].mT / 4).masked_fill(~lambda_mask(at, at, LM), -torch.inf)
    ours, full = (attend(*vectors, at, at, scheme, lm) for lm in (LM, None))
    expected = {CHUNKED: ours, REFERENCE: ours, SDPA: full,
                FLEX: logits.softmax(-1) @ vectors[2]}  # fmt: skip
    sizes = benchmark.Sizes((80,), 2, 16, 32, 4, rounds=1)
    rows = attention.attention_rows(sizes, torch.device("cpu"), torch.float32)
    pairs = [int(lambda_mask(at, at, lm).sum()) for lm in (FULL_ATTENTION, LM)]
    assert [row.work for row in rows] == [4 * 16 * 2 * n for n in (pairs[0], *pairs[1:] * 3)]
    for way in attention.WAYS:
        found = attention.call(way, vectors, LM)()
        torch.testing.assert_close(found, expected[way], atol=1e-5, rtol=0)
    available = {"MemAvailable": 4 * 4 * 2 * 79 * 79 * 4}
    monkeypatch.setattr(attention, "bytes_in", lambda _: available)
    with pytest.raises(ValueError, match=r"O\(n\^2\) memory"):
        attention.call(REFERENCE, vectors, LM)


# ---- time and memory


def test_contestants_take_turns(monkeypatch):
    """All of a, then all of b; a warm-up that counts; one missing compiler that costs the whole
    table, or that is passed over in silence; a Ctrl-C taken for one contestant's weakness."""
    clock, log, waits = [0.0], [], []
    monkeypatch.setattr(torch.cpu, "synchronize", waits.append)
    monkeypatch.setattr("minilm_inf.benchmark.race.time.perf_counter", lambda: clock[0])

    def contestant(name: str, *seconds: float):
        """A row, and a maker of one whose runs take these seconds in turn."""
        left = list(seconds)

        def work():
            log.append(name)
            clock[0] += left.pop(0)

        work.extra_bytes = 7
        return Row(name, 1, work=10), lambda: work

    def interrupt():
        raise KeyboardInterrupt

    makers = [contestant("a", 100, 1, 2, 9), contestant("b", 50, 4, 4, 4)]
    makers += [(Row("c", 1, work=1), lambda: [].pop), (Row("d", 1, work=1), lambda: int("x"))]
    rows = race(makers, 3, "cpu")
    assert log == ["a", "b"] * 4
    assert [row.seconds for row in rows] == [[1, 2, 9], [4, 4, 4], [], []]
    assert [row.extra_bytes for row in rows] == [7, 7, None, None]
    assert rows[2].note == "not run: pop from empty list" and "invalid literal" in rows[3].note
    assert (rows[0].median, rows[0].rate, rows[1].base) == (2, 5, rows[0])
    assert len(waits) == 2 * 2 * 4 + 1, "the device is waited for before and after each run"
    with pytest.raises(KeyboardInterrupt):
        race([(Row("e", 1, work=1), interrupt)], 5, "cpu")


def test_memory_is_the_peak_beyond_the_output():
    """The output counted as working memory, or a buffer missed that was freed early."""

    def work(sizes):
        for size in sizes:
            torch.ones(size, dtype=torch.uint8)  # freed at once
        return torch.ones(1 << 20, dtype=torch.uint8)

    for sizes, expected in (([], 0), ([4 << 20, 6 << 20], 5 << 20)):
        assert extra_bytes(lambda sizes=sizes: work(sizes), "cpu") == expected
    run = attention.call(REFERENCE, torch.randn(3, 1, 2, 256, 16), LM)
    logits = 2 * 256 * 256 * 4
    assert 2 * logits < extra_bytes(run, "cpu") < 12 * logits
    assert extra_bytes(run, "meta") is None


def test_table():
    """A footnote that points nowhere, a cell in another's column, a ratio upside down or of
    means, a time of sixty tokens called one token's."""
    base = Row("attention: SDPA", 4096, 4 * 10**10, "FLOP", seconds=[4.0] * 5)
    missing = Row(
        "attention: flex", 4096, 10**10, "FLOP", base=base, note="there is no compiler"
    )
    rows = [
        Row("attention: chunked", 4096, 10**10, "FLOP", seconds=[3.0, 1.0, 2.0, 2.0, 5.0],
            base=base, extra_bytes=3 << 20),
        missing,
        Row("decoding: LM-Infinite", 256, 50, steps=50, seconds=[0.1] * 5, base=missing),
    ]  # fmt: skip
    text = table({"PyTorch": "2", "threads": "1 of 4 CPUs"}, rows)
    lines = text.splitlines()
    assert lines[0] == "PyTorch: 2. threads: 1 of 4 CPUs."
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    assert all(set(cell) <= set("-:") for cell in cells.pop(1))
    assert cells == [
        ["", "n", "time", "rate", "time / base", "rate / base", "extra memory"],
        ["attention: chunked", "4,096", "2.00 s", "5.0 GFLOP/s", "0.50", "0.50", "3.0 MiB"],
        ["attention: flex [1]", "4,096", *"-----"],
        ["decoding: LM-Infinite", "256", "2.00 ms", "500 tokens/s", *"---"],
    ]
    assert "[1] there is no compiler." in lines
    assert "5.00 times as long" in text and text.endswith(LEGEND)


# ---- models


def test_what_is_timed_is_what_is_told():
    """A prefill that leaves tokens out, or forgets between chunks; a run that times the
    beginning of a text under the name of its end."""
    model, tokens = tiny_model("llama", dtype=torch.float32), some_tokens(23)
    for lm in (LMInfinite(6, 2, 6), None):
        reading = models.prefill(model, tokens[0].tolist(), lm)
        torch.testing.assert_close(reading(), model(tokens, lm)[0, -1], atol=1e-5, rtol=0)
        assert reading.extra_bytes > 0
    contestant = models.Ours(model, [1] * 10, steps=1, position=60)
    cache = contestant.session.cache
    assert cache.first_position + cache.length == 60 and contestant() is None


def test_the_other_side():
    """A comparison at context 256 whose other side has a context of 700 in the end; or whose
    Llama is filled with the weights of another family."""
    cut, lengths = [], [27, 20]
    theirs = models.Theirs.__new__(models.Theirs)
    theirs.context, theirs.steps, theirs.next = 20, 0, 5
    theirs.cache = types.SimpleNamespace(get_seq_length=lambda: lengths.pop(0), crop=cut.append)
    theirs(), theirs()
    assert cut == [-7, 0], "nothing is cut where nothing was added"
    with pytest.raises(ValueError, match="this is mpt"):
        models.Theirs(ROOT, tiny_model("mpt"), [1], 1)


def test_llama_cpp_decodes_after_the_same_context(monkeypatch, tmp_path):
    """A row of llama.cpp's whose text grows from round to round, or whose first token was drawn
    after another text; a GGUF file that is there, and is passed over without a word."""
    model, said, read = tiny_model("llama"), {}, []

    class Llama:
        def __init__(self, path, **settings):
            said.update(settings, path=path)
            self.n_tokens = 0

        def eval(self, ids):
            read.append((self.n_tokens, ids))
            self.n_tokens += len(ids)

        def sample(self, temp):
            assert temp == 0
            return self.n_tokens + 100

    there = types.SimpleNamespace(Llama=Llama)
    monkeypatch.setitem(sys.modules, "llama_cpp", there)
    decoding = models.LlamaCpp(tmp_path / "x.gguf", model, [1] * 20, 2)
    decoding(), decoding()
    assert read == [(0, [1] * 20), (20, [120]), (21, [121]), (20, [122]), (21, [121])]
    assert said["n_ctx"] == 22 and said["n_threads"] == torch.get_num_threads()
    (tmp_path / "x.gguf").touch()
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    rows = models.decoding_rows(model, tmp_path, SMALL)
    [row] = [row for row in rows if row.name == "decoding: llama.cpp, x"]
    assert row.note.startswith("not run: import of llama_cpp")


# ---- the program


def test_the_whole_program(run, without_tools):
    """A run that a missing package or compiler ends, or that says nothing of it; a row that is
    missing, or that was not timed five times."""
    code, out, err = run()
    assert code == 0 and "rounds: 5, decoding 7 of 2 tokens. attention: B 1, H 2, D 16" in out
    cells = [[cell.strip() for cell in line.split("|")[1:3]] for line in out.splitlines()
             if line.startswith("| ")]  # fmt: skip
    assert cells[2:] == [
        [f"attention: {SDPA}", "64"], [f"attention: {CHUNKED}", "64"],
        [f"attention: {FLEX} [1]", "64"], [f"attention: {REFERENCE}", "64"],
        ["prefill: LM-Infinite", "40"], ["prefill: LM-Infinite", "80"],
        ["prefill: vanilla", "40"], ["decoding: transformers, DynamicCache [2]", "20"],
        ["decoding: LM-Infinite", "20"],
        ["decoding at position: LM-Infinite", "10"],
        ["decoding at position: LM-Infinite", "1,000"],
    ]  # fmt: skip
    assert "[1] not run: No working C++ compiler found in" in out
    assert "[2] not run: No module named 'transformers'." in out
    assert "prefill: LM-Infinite, n=40, and others\n" in err
    code, out, _ = run("--quick", "--only", "decoding")
    assert code == 0 and "| attention" not in out and "--quick" in out


def test_what_is_not_there(run):
    """A traceback from deep inside, or a table that is begun."""
    for wrong in ("--device abacus", "--only prefill -m no-such-folder"):
        code, out, err = run(*wrong.split())
        assert code == 1 and out == "" and err.startswith("error: ") and err.count("\n") == 1
