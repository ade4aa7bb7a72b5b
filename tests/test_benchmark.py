"""benchmark/: what is counted, timed, compared and said is so."""

from __future__ import annotations

import builtins
import dataclasses
import json
import sys
import types

import pytest
import torch
from conftest import ROOT, some_tokens, tiny_model

from minilm_inf.benchmark import __main__ as benchmark
from minilm_inf.benchmark import attention, memory, models
from minilm_inf.benchmark.attention import CHUNKED, FLEX, REFERENCE, SDPA, WAYS, Shape
from minilm_inf.benchmark.race import CannotRun, Row, as_dicts, race
from minilm_inf.benchmark.sizes import FULL, QUICK
from minilm_inf.benchmark.table import LEGEND, table
from minilm_inf.config import LMInfinite
from minilm_inf.lambda_mask import lambda_mask

SMALL = Shape(heads=2, head_dim=16, n_local=32, n_global=4)
FLAGS = [
    "--device", "cpu", "--lengths", "64", "128", "--heads", "2", "--head-dim", "16",
    "--n-local", "32", "--n-global", "4", "--tokens", "40", "80", "--contexts", "20",
    "--positions", "10", "60", "--steps", "2", "--endurance", "100",
]  # fmt: skip


@pytest.fixture
def run(program):
    """The program's exit code, stdout and stderr."""
    return lambda *arguments: program(benchmark.main, *arguments)


@pytest.fixture
def without_tools(monkeypatch):
    """No transformers, no C++ compiler, no other process, as on a bare machine."""
    real = builtins.__import__

    def bare_import(name, *arguments, **options):
        if name.partition(".")[0] == "transformers":
            raise ModuleNotFoundError("No module named 'transformers'", name="transformers")
        return real(name, *arguments, **options)

    def fail(*arguments, **options):
        raise RuntimeError("No working C++ compiler found in config.cpp.cxx: (None, 'g++')")

    monkeypatch.setattr(builtins, "__import__", bare_import)
    monkeypatch.setattr(torch, "compile", lambda *arguments, **options: fail)
    monkeypatch.setattr("minilm_inf.writing.session.compiled_step", fail)
    monkeypatch.setattr(
        benchmark, "memory_of", lambda way, lengths, shape: [1000 * n for n in lengths]
    )


# ---- attention


def test_useful_work_is_that_of_the_pairs_seen():
    """Full attention credited with the Λ's pairs, or a factor of two lost."""
    positions = torch.arange(64)
    pairs = int(lambda_mask(positions, positions, SMALL.lm).sum())
    for way in (CHUNKED, FLEX, REFERENCE):
        assert attention.useful_flops(way, 64, SMALL) == 4 * 16 * 2 * pairs
    assert attention.useful_flops(SDPA, 64, SMALL) == 4 * 16 * 2 * (64 * 65 // 2)


def test_every_way_computes_what_it_is_named_after():
    """A race won by another function: no ceiling, no rotation, a mask of another shape."""
    vectors = attention.vectors_of(80, SMALL)
    positions, scheme = torch.arange(80), attention.Rotary(16)
    for ways, lm in (((CHUNKED, REFERENCE), SMALL.lm), ((SDPA,), None)):
        expected = attention.attend(*vectors, positions, positions, scheme, lm)
        for way in ways:
            found = attention.call(way, vectors, SMALL.lm)()
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("n, n_local, n_global", [(512, 200, 16), (700, 130, 300), (64, 32, 2)])
def test_flex_mask_is_what_create_block_mask_makes(n, n_local, n_global):
    """A competitor that is slowed by blocks it need not visit, or spared some that it must."""
    from torch.nn.attention.flex_attention import create_block_mask

    lm = LMInfinite(n_local, n_global, n_local)
    mine = attention.flex_mask(n, lm, torch.device("cpu"))
    theirs = create_block_mask(mine.mask_mod, None, None, n, n, device="cpu")
    assert mine.shape == theirs.shape
    assert torch.equal(mine.to_dense(), theirs.to_dense())
    for name in ("kv_num_blocks", "full_kv_num_blocks"):
        assert torch.equal(getattr(mine, name), getattr(theirs, name))
    i = torch.arange(n)
    assert torch.equal(mine.mask_mod(0, 0, i[:, None], i), lambda_mask(i, i, lm))


def test_the_reference_runs_only_where_it_fits(monkeypatch, without_tools):
    """A definition of O(n^2) memory that takes the machine down, or a quick run of minutes."""
    monkeypatch.setattr(attention, "available_memory", lambda: 32 * 2 * 100 * 100 * 4)
    attention.call(REFERENCE, attention.vectors_of(100, SMALL), SMALL.lm)
    with pytest.raises(CannotRun, match=r"O\(n\^2\) memory"):
        attention.call(REFERENCE, attention.vectors_of(201, SMALL), SMALL.lm)
    monkeypatch.setattr(attention, "QUICK_REFERENCE", 63)
    sizes = dataclasses.replace(QUICK, rounds=1)
    rows = {row.name: row for row in attention.rows_of_length(64, SMALL, sizes, lambda x: None)}
    assert "longer than --quick lasts" in rows[REFERENCE].notes[0]
    assert rows[CHUNKED].seconds and not rows[REFERENCE].seconds


# ---- time


class Clock:
    """A clock that only the contestants move."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def __call__(self) -> float:
        return self.now

    def contestant(self, name: str, *seconds: float):
        """A row, and a maker of one whose runs take these seconds in turn, the last again and
        again."""
        left = list(seconds)

        def work():
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        work.prepare = lambda: self.log.append(f"prepare {name}")
        work.extra_bytes = 7
        return Row("race", name, 1), lambda: work


def test_contestants_take_turns(monkeypatch):
    """All of a, then all of b; a warm-up that counts; a preparation that is timed."""
    clock, numbers, waits = Clock(), [], []
    monkeypatch.setattr("minilm_inf.benchmark.race.synchronise", waits.append)
    makers = [clock.contestant("a", 100, 1, 2, 9), clock.contestant("b", 50, 4)]
    race(makers, 3, numbers.append, "cpu", clock)
    assert clock.log == ["prepare a", "a", "prepare b", "b"] * 4
    assert [row.seconds for row, _ in makers] == [[1, 2, 9], [4, 4, 4]]
    assert [row.extra_bytes for row, _ in makers] == [7, 7]
    assert numbers == ["warming up", "round 1/3", "round 2/3", "round 3/3"]
    assert len(waits) == 2 * 2 * 4, "the device is waited for before and after each run"


def test_who_cannot_run_is_left_out():
    """One missing compiler that costs the whole table, or that is passed over in silence; a
    Ctrl-C that a race takes for one contestant's weakness."""
    clock, rows = Clock(), [Row("race", name, 1) for name in "ab"]

    def raising(error):
        def make():
            raise error

        return make

    makers = [(rows[0], raising(CannotRun("there is no such thing"))),
              (rows[1], lambda: [].pop), clock.contestant("c", 2)]  # fmt: skip
    race(makers, 5, lambda now: None, clock=clock)
    assert rows[0].seconds == rows[1].seconds == []
    assert rows[0].notes == ["not run: there is no such thing"]
    assert rows[1].notes == ["not run: pop from empty list"]
    assert makers[2][0].seconds == [2] * 5
    with pytest.raises(KeyboardInterrupt):
        race([(rows[0], raising(KeyboardInterrupt()))], 5, lambda now: None)


# ---- memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_memory_is_the_peak_beyond_the_output(monkeypatch, tmp_path):
    """The output counted as working memory, a buffer missed that was freed early; a child that
    cannot start; a zero that looks like a measurement, where the system tells nothing."""
    size, cpu = 48 << 20, torch.device("cpu")

    def work(extra: bool):
        if extra:
            torch.ones(size, dtype=torch.uint8)  # touched, and freed
        return torch.ones(size // 2, dtype=torch.uint8)

    for extra in (True, False, True):
        found = memory.extra_bytes(lambda extra=extra: work(extra), cpu)
        # Freed before the output is made: what the peak has beyond the output is the rest.
        expected = size - size // 2 if extra else 0
        assert abs(found - expected) < 4 << 20
    logits = 2 * 1024 * 1024 * 4
    assert 2 * logits < memory.memory_of(REFERENCE, [64, 1024], SMALL)[1] < 12 * logits
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "none" / "clear_refs")
    with pytest.raises(CannotRun, match="only Linux"):
        memory.extra_bytes(lambda: torch.ones(1), cpu)


# ---- the table


def measured() -> list[Row]:
    """Rows of fixed measurements."""
    common = {"base": ("attention", SDPA, 4096), "rival": ("attention", FLEX, 4096)}
    return [
        Row("attention", CHUNKED, 4096, [3.0, 1.0, 2.0, 2.0, 5.0], flops=10**10,
            extra_bytes=3 << 20, **common),
        Row("attention", SDPA, 4096, [4.0] * 5, flops=4 * 10**10, **common),
        Row("attention", FLEX, 4096, notes=["not run: there is no compiler"], **common),
        Row("attention", REFERENCE, 4096, [8.0] * 5, flops=10**10, notes=["slow", "old"],
            **common),
        Row("prefill", "LM-Infinite", 500, [0.25] * 5, tokens=500, notes=["old"],
            base=("prefill", "LM-Infinite", 500)),
        Row("decoding", "LM-Infinite", 256, [0.1] * 5, tokens=50,
            base=("decoding", "no such row", 256)),
    ]  # fmt: skip


def test_ratios():
    """A ratio upside down, of means instead of medians, or of a row that was not measured."""
    found = {row["name"]: row for row in as_dicts(measured())}
    mine = found[CHUNKED]
    assert (mine["seconds"], mine["least"], mine["most"]) == (2.0, 1.0, 5.0)
    assert mine["time_ratio"] == 0.5 and mine["rate_ratio"] == 0.5
    assert mine["rate_to_rival"] is None, "the rival did not run"
    assert mine["useful_gflops_per_s"] == 5.0 and mine["tokens_per_s"] is None
    assert found[REFERENCE]["time_ratio"] == 2.0 and found[REFERENCE]["rate_ratio"] == 0.125
    assert found["LM-Infinite"]["time_ratio"] is None and found[FLEX]["seconds"] is None


def test_table():
    """A footnote that points nowhere, a cell in another's column, a time of sixty tokens called
    one token's."""
    text = table({"PyTorch": "2", "threads": "1 of 4 CPUs"}, as_dicts(measured()))
    lines = text.splitlines()
    assert lines[0] == "PyTorch: 2. threads: 1 of 4 CPUs."
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    assert rows[0] == ["", "n", "time", "rate", "time / base", "rate / base", "rate / Flex",
                       "extra memory"]  # fmt: skip
    assert all(set(cell) <= set("-:") for cell in rows[1])
    assert rows[2] == ["attention: chunked", "4,096", "2.00 s", "5.0 GFLOP/s", "0.50", "0.50",
                       "-", "3.0 MiB"]  # fmt: skip
    assert rows[4] == [f"attention: {FLEX} [1]", "4,096", *"------"]
    assert rows[5][0] == "attention: reference [2] [3]"
    assert rows[6][:4] == ["prefill: LM-Infinite [3]", "500", "250.00 ms", "2,000 tokens/s"]
    assert rows[7][:4] == ["decoding: LM-Infinite", "256", "2.00 ms", "500 tokens/s"]
    notes = [line for line in lines if line.startswith("[")]
    assert notes == ["[1] not run: there is no compiler.", "[2] slow.", "[3] old."]
    assert "5.00 times as long" in text and text.endswith(LEGEND)


# ---- models


def test_a_text_is_read_whole():
    """A prefill that is fast because it leaves tokens out, or forgets between chunks."""
    model, tokens = tiny_model("llama"), some_tokens(23)
    for lm in (LMInfinite(6, 2, 6), None):
        reading = models.Prefill(model, tokens, lm, 5)
        torch.testing.assert_close(reading(), model(tokens, lm)[:, -1])
        assert reading.extra_bytes > 0


def test_a_position_that_is_told_is_that_position():
    """A quick run that times the beginning of a text under the name of its end."""
    model = tiny_model("llama", dtype=torch.float32)
    sizes = dataclasses.replace(QUICK, positions=(10, 60), steps=1)
    places, real = [], model.new_cache

    def new_cache(*arguments, **options):
        places.append(options.get("first_position", 0))
        return real(*arguments, **options)

    model.new_cache = new_cache
    for _, make in models.by_position(model, sizes):
        make()
    assert max(places) == 50  # 50 + the 10 tokens that are read


def test_the_other_side(monkeypatch):
    """A comparison at context 256 whose other side has a context of 700 in the end; or whose
    Llama is filled with the weights of another family."""
    cut, lengths = [], [27, 20]
    theirs = models.Theirs.__new__(models.Theirs)
    theirs.context = 20
    theirs.cache = types.SimpleNamespace(get_seq_length=lambda: lengths.pop(0), crop=cut.append)
    theirs.prepare(), theirs.prepare()
    assert cut == [-7], "nothing is cut where nothing was added"
    with pytest.raises(CannotRun, match="this is mpt"):
        models.load_theirs(ROOT, tiny_model("mpt"))


# ---- the program


def test_the_whole_program(run, without_tools):
    """A run that a missing package or compiler ends, or that says nothing of it; --json that is
    no JSON, or lacks what the table has."""
    code, out, err = run(*FLAGS, "--json")
    assert code == 0
    found = json.loads(out)
    assert set(found) == {"facts", "sizes", "rows"}
    assert found["sizes"]["lengths"] == [64, 128] and found["sizes"]["steps"] == 2
    assert found["facts"]["threads"].startswith(f"{torch.get_num_threads()} of ")
    keys = [(row["group"], row["name"], row["n"]) for row in found["rows"]]
    ours, decoding = models.OURS, (models.OURS, models.COMPILED, models.THEIRS)
    assert keys == [
        *(("attention", way, n) for n in (64, 128) for way in WAYS),
        ("prefill", ours, 40), ("prefill", ours, 80), ("prefill", "vanilla", 40),
        *(("decoding", name, 20) for name in decoding),
        ("decoding at position", ours, 10), ("decoding at position", ours, 60),
        ("decoding on and on", "tokens 5 to 10", 10),
        ("decoding on and on", "the last 5 tokens", 100),
    ]  # fmt: skip
    rows = dict(zip(keys, found["rows"]))
    for key, row in rows.items():
        if key[1] in (FLEX, models.COMPILED):
            words = "not run: torch.compile finds no C++ compiler (g++ or clang++)"
            assert row["rounds"] == [] and words in row["notes"]
        elif key[1] == models.THEIRS:
            assert "not run: transformers is not installed" in row["notes"]
        else:
            assert len(row["rounds"]) >= 5 and row["least"] <= row["seconds"] <= row["most"]
    assert rows["attention", CHUNKED, 128]["extra_bytes"] == 128_000
    assert rows["prefill", ours, 80]["tokens"] == 80
    assert "attention n=128: round 5/5" in err and "prefill: round 5/5" in err
    assert "decoding, context 20: round 7/7" in err


def test_the_table_and_quick(run, without_tools):
    """--only that measures all the same, and a quick run that says it read a million tokens."""
    code, out, _ = run("--quick", "--only", "decoding", *FLAGS)
    assert code == 0 and "| attention" not in out and "| prefill" not in out
    assert "rounds: 5, decoding 7 of 2 tokens, --quick." in out
    assert "compiling takes longer than --quick lasts" in out
    assert "not read up to there: 10 tokens whose positions end at 60" in out


@pytest.mark.parametrize("wrong, code, words", [
    ("--only speed", 2, "invalid choice"),
    ("--lengths 0", 2, "not a whole number of at least 1"),
    ("--rounds 4", 2, "not a whole number of at least 5"),
    ("--head-dim 15", 2, "--head-dim must be even"),
    ("--endurance 99", 2, "--endurance must be 0, or at least 100"),
    ("--device abacus", 1, "error: --device abacus cannot be used here: try cpu"),
    ("--only prefill -m no-such-folder", 1, "error: "),
    ("--only attention --lengths 200000000 --device cpu", 1, "take smaller ones"),
])  # fmt: skip
def test_what_makes_no_sense_or_is_not_there(run, wrong, code, words):
    """A median of three, or a traceback from deep inside, for a flag that makes no sense."""
    found, out, err = run(*wrong.split())
    assert found == code and out == "" and words in err.splitlines()[-1]
    assert code == 2 or err.count("\n") == 1


def test_ctrl_c(run, monkeypatch):
    """A traceback, or half a table, for who does not want to wait."""

    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "attention_rows", stopped)
    code, out, err = run("--only", "attention", "--device", "cpu")
    assert code == 130 and out == "" and err.split() == ["stopped"]


def test_at_least_five_rounds():
    """A promise of medians of five that a default breaks."""
    for sizes in (FULL, QUICK):
        assert min(sizes.rounds, sizes.decoding_rounds) >= 5
    assert FULL.lengths == (4096, 16_384, 65_536) and FULL.heads == 8 and FULL.head_dim == 128
    assert 262_144 in FULL.tokens and 1_000_000 in FULL.positions and not FULL.quick
