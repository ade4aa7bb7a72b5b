"""The trainer: what it writes, where it stops, and that it goes on as if it had not."""

import dataclasses
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from minilm_inf import generate, load
from minilm_inf.checkpoint import run_state, tensor_file
from minilm_inf.terminal.files import claimed
from minilm_inf.train import __main__ as train
from minilm_inf.train import recipes, trained_folder, training
from minilm_inf.train.practice import (
    ASK_KEY,
    ASK_NUMBER,
    NAMES,
    STATE_KEY,
    STATE_NUMBER,
    Practice,
)

SIZES = [
    "--vocab-size", 640, "--n-layer", 1, "--n-head", 2, "--n-kv-head", 1, "--head-dim", 8,
    "--n-embd", 16, "--n-inner", 24, "--tokens-per-step", 512, "--threads", 1,
]  # fmt: skip
STEPS = 20


def made_up_text(words: int = 12_000) -> str:
    """Sentences of a few common words and those of the exercises, the same in every run."""
    rng = random.Random(0)
    exercises = (*STATE_KEY, ASK_KEY, *STATE_NUMBER, ASK_NUMBER, *NAMES)
    common = " ".join(("the sea ship men old house went came saw on of to 17 204", *exercises))
    common = common.split()
    sentences = []
    while words > 0:
        n = rng.randint(4, 12)
        sentences.append(" ".join(rng.choice(common) for _ in range(n)).capitalize() + ".")
        words -= n
    return "\n".join(" ".join(sentences[i : i + 5]) for i in range(0, len(sentences), 5))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(made_up_text(), encoding="utf-8")
    return path


@pytest.fixture(autouse=True, scope="module")
def as_it_was():
    """A run changes how the process takes signals and small numbers: put that back."""
    handlers = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    threads = torch.get_num_threads()
    yield
    for name, handler in handlers.items():
        signal.signal(name, handler)
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)


def flags(text, out, *more) -> list[str]:
    run = ["--out", out, "--text", text, "--tokens", 512 * STEPS, "--every", 8, *SIZES, *more]
    return [str(flag) for flag in run]


@pytest.fixture(scope="module")
def unbroken(text, tmp_path_factory):
    """The folder of a run that nobody interrupted."""
    out = tmp_path_factory.mktemp("unbroken") / "model"
    assert train.main(flags(text, out)) == 0
    return out


@pytest.fixture
def interrupted(monkeypatch):
    """A function that lets a signal come while the given step draws its windows."""
    windows = train.windows

    def at(step: int, name=signal.SIGINT):
        def and_then(settings, practice, now):
            if now == step:
                signal.raise_signal(name)
            return windows(settings, practice, now)

        monkeypatch.setattr(train, "windows", and_then)

    return at


def log_of(folder) -> list[dict]:
    return json.loads((folder / "training.json").read_text())["log"]


def assert_same_run(folder, other):
    assert log_of(folder) == log_of(other)
    for name in ("model.safetensors", "tokenizer.model", "config.json"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def error(capsys) -> str:
    """The last line of stderr, which is all that is said of an error."""
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.splitlines()[-1]


# ---- a whole run


def test_a_run_writes_a_folder_that_load_reads(unbroken):
    """A folder that only the trainer itself understands."""
    model, tokenizer = load(unbroken)
    assert model.config.context_length == 256 and model.config.n_layer == 1
    assert model.config.bos_id == tokenizer.bos_id
    assert model.config.eos_ids == (tokenizer.eos_id,)
    assert len(list(generate(model, tokenizer.encode("The sea"), max_new_tokens=5))) <= 5
    files = {path.name for path in unbroken.iterdir()}
    assert files == {"config.json", "model.safetensors", "tokenizer.model", "training.json"}


def test_the_record_says_what_was_done(unbroken, text):
    """A card that is made from a record which tells another run's story."""
    record = json.loads((unbroken / "training.json").read_text())
    assert record["command"].startswith("python -m minilm_inf.train --out ")
    assert "--every 8" in record["command"]
    assert record["documents"] == 1 and record["held_out"] == [str(text)]
    assert record["settings"]["tokens"] == 512 * STEPS
    assert len(record["phases"]) == len(train.PHASES)
    assert [entry["step"] for entry in record["log"]] == [8, 16, STEPS]
    assert [entry["tokens"] for entry in record["log"]] == [8 * 512, 16 * 512, STEPS * 512]
    for entry in record["log"]:
        assert 2.0 < entry["train_loss"] < 7.0 and 2.0 < entry["held_out_nll"] < 7.0
        assert 0.0 <= entry["pass_key_accuracy"] <= 1.0


def test_the_model_learns(text, tmp_path):
    """A gradient that is dropped, or of the wrong sign, leaves the model as it was."""
    assert train.main(flags(text, tmp_path / "model", "--learning-rate", 0.2)) == 0
    first, *_, last = log_of(tmp_path / "model")
    assert last["held_out_nll"] < first["held_out_nll"] - 0.5
    assert last["train_loss"] < first["train_loss"] - 0.3


def test_the_seed_decides_the_run(unbroken, text, tmp_path):
    """The same command on the same machine must give the same weights."""
    assert train.main(flags(text, tmp_path / "again")) == 0
    assert_same_run(tmp_path / "again", unbroken)
    assert train.main(flags(text, tmp_path / "other", "--seed", 2)) == 0
    assert log_of(tmp_path / "other") != log_of(unbroken)


# ---- stopping and going on


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [0, 7, 12])
def test_a_resumed_run_is_the_unbroken_run(
    unbroken, text, tmp_path, interrupted, monkeypatch, name, step
):
    """To the last bit: weights, both moments, the step's windows, and the mean loss of the log.

    Step 7 is interrupted where the log has an entry; the others between two.
    """
    out = tmp_path / "model"
    interrupted(step, name)
    assert train.main(flags(text, out)) == 128 + name
    assert not out.exists() and (tmp_path / "model.part" / train.STATE_FILE).exists()
    monkeypatch.undo()
    assert train.main(flags(text, out, "--resume")) == 0
    assert_same_run(out, unbroken)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_run_may_be_interrupted_again_and_again(
    unbroken, text, tmp_path, interrupted, monkeypatch
):
    """A state that is written from a resumed run must hold as much as the first one."""
    out, more = tmp_path / "model", []
    for step in (2, 3, 15):
        interrupted(step)
        assert train.main(flags(text, out, *more)) == 130
        monkeypatch.undo()
        more = ["--resume"]
    assert train.main(flags(text, out, "--resume")) == 0
    assert_same_run(out, unbroken)


def test_an_interrupt_at_the_last_step_is_no_interruption(
    unbroken, text, tmp_path, interrupted
):
    """A finished run that asks to be resumed."""
    interrupted(STEPS - 1)
    assert train.main(flags(text, tmp_path / "model")) == 0
    assert_same_run(tmp_path / "model", unbroken)


def test_a_real_signal_stops_a_real_run(text, tmp_path):
    """The tests above raise the signal themselves; a terminal sends it from outside."""
    command = [sys.executable, "-m", "minilm_inf.train"]
    program = subprocess.Popen(
        [*command, *flags(text, tmp_path / "model", "--tokens", 10**9)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
    )
    try:
        seen = b""
        while b"step 10/" not in seen:
            piece = program.stderr.read1()
            assert piece, seen.decode()
            seen += piece
        program.send_signal(signal.SIGINT)
        _, err = program.communicate(timeout=60)
    finally:
        program.kill()
    assert program.returncode == 130
    assert b"go on with --resume" in err and b"Traceback" not in err
    assert b"loss " in seen and b"tokens/s" in seen and b"min left" in seen
    assert sorted(path.name for path in (tmp_path / "model.part").iterdir()) == [
        train.STATE_FILE, "tokenizer.model",
    ]  # fmt: skip


def test_nothing_to_resume(text, tmp_path, capsys):
    """--resume that quietly starts from nothing would hide a mistyped folder."""
    assert train.main(flags(text, tmp_path / "model", "--resume")) == 1
    assert "no run to resume" in error(capsys)
    assert not (tmp_path / "model.part").exists()


@pytest.mark.parametrize(
    "other",
    [
        ("--tokens", 1024),
        ("--seed", 2),
        ("--learning-rate", 1e-2),
        ("--n-layer", 2),
        ("--n-inner", 16),
        ("--n-head", 4, "--n-kv-head", 2, "--head-dim", 4),  # the same shapes
    ],
)
def test_other_settings_are_not_resumed(text, tmp_path, interrupted, capsys, other):
    """Half a run of one kind and half of another, and a card that names the second only."""
    interrupted(0)
    out = tmp_path / "model"
    assert train.main(flags(text, out)) == 130
    assert train.main(flags(text, out, "--resume", *other)) == 1
    assert "other settings" in error(capsys)


@pytest.fixture
def stopped(text, tmp_path, interrupted, monkeypatch):
    """The --out of a run that was stopped after its first step."""
    interrupted(0)
    assert train.main(flags(text, tmp_path / "model")) == 130
    monkeypatch.undo()
    return tmp_path / "model"


def state_of(out):
    return out.with_name("model.part") / train.STATE_FILE


def test_a_damaged_state_is_one_sentence(text, stopped, capsys):
    """A disk that was full, or that changed a byte; a state of before there was a checksum."""
    whole = state_of(stopped).read_bytes()
    edited = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
    old = stopped.parent / "old"
    tensor_file.write_tensors(old, {"x": torch.zeros(3)}, {"run": '{"step": 1}'})
    for content, said in (
        (whole[:1000], "no whole state"), (edited, "was edited or damaged"),
        (old.read_bytes(), "no state of this version"),
    ):  # fmt: skip
        state_of(stopped).write_bytes(content)
        assert train.main(flags(text, stopped, "--resume")) == 1
        assert said in error(capsys)
        assert state_of(stopped).read_bytes() == content


@pytest.mark.parametrize(
    "facts, tensors, said",
    [
        ({"step": 10**9}, {}, "not a whole state"),
        ({"step": True}, {}, "not a whole state"),
        ({"log": 5}, {}, "not a whole state"),
        ({"log": [5]}, {}, "not a whole state"),
        ({"losses": [None]}, {}, "not a whole state"),
        ({"settings": [1]}, {}, "other settings"),
        ({}, {"weight.norm.weight": torch.zeros(1)}, "not a whole state"),  # would spread
        ({}, {"first.norm.weight": torch.zeros(16, dtype=torch.half)}, "not a whole state"),
        ({}, {"second.norm.weight": torch.full((16,), torch.nan)}, "not a whole state"),
        ({}, {"weight.norm.weight": None}, "not a whole state"),
        ({}, {"weight.other": torch.zeros(1)}, "not a whole state"),
    ],
)
def test_a_state_of_another_kind_is_refused(text, stopped, capsys, facts, tensors, said):
    """A traceback, or a weight that spreads, by somebody who made the checksum too."""
    path = state_of(stopped)
    known, held = run_state.read_state(path)
    assert "weight.norm.weight" in held
    held = {name: x.clone() for name, x in held.items()} | tensors
    held = {name: x for name, x in held.items() if x is not None}
    run_state.write_state(path, held, known | facts)
    assert train.main(flags(text, stopped, "--resume")) == 1
    assert said in error(capsys)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_last_state(unbroken, text, tmp_path, monkeypatch, capsys, call):
    """A state that is written over its predecessor is lost with it when the disk is full;
    whichever write it is, the run goes on from the last good state. Nothing is left over."""
    real, count = getattr(os, call), [0]

    def full(*arguments, **more):
        count[0] += 1
        if count[0] == at:
            raise OSError(28, "No space left on device")
        return real(*arguments, **more)

    out, at, codes = tmp_path / "model", 1, []
    while 0 not in codes:
        more = ["--resume"] if state_of(out).exists() else []
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            codes.append(train.main(flags(text, out, *more)))
        if codes[-1]:
            said = error(capsys)
            assert "No space left on device" in said and "model" in said
            folders = [out, state_of(out).parent]
            left = [path.name for folder in folders if folder.is_dir()
                    for path in folder.iterdir()]  # fmt: skip
            assert not [name for name in left if name.endswith((".part", ".lock"))], left
        at, count[0] = at + 1, 0
    assert len(codes) > 1 and set(codes[:-1]) == {1}
    assert_same_run(out, unbroken)


def test_a_stopped_run_is_not_overwritten(text, tmp_path, interrupted, capsys):
    """An hour of training that a forgotten --resume would throw away without a word."""
    interrupted(0)
    assert train.main(flags(text, tmp_path / "model")) == 130
    state = (tmp_path / "model.part" / train.STATE_FILE).read_bytes()
    assert train.main(flags(text, tmp_path / "model")) == 1
    assert "--resume it, or delete it" in error(capsys)
    assert (tmp_path / "model.part" / train.STATE_FILE).read_bytes() == state


def test_a_new_run_forgets_a_finished_one(unbroken, text, capsys):
    """A new tokenizer beside an old state would resume into nonsense."""
    before = {path.name: path.read_bytes() for path in unbroken.iterdir()}
    assert train.main(flags(text, unbroken, "--vocab-size", 10**6)) == 1
    assert "no tokenizer can be trained" in error(capsys)
    assert not state_of(unbroken).exists()
    assert {path.name: path.read_bytes() for path in unbroken.iterdir()} == before


BYTE_LEVEL = {
    "mpt": ["--n-head", 3, "--n-embd", 24],
    "gptj": ["--n-head", 2, "--n-embd", 16, "--n-inner", 24, "--rotary-dim", 4],
}


@pytest.mark.parametrize("family", BYTE_LEVEL)
def test_the_other_families_are_trained_too(family, text, tmp_path, interrupted, capsys):
    """A family whose run cannot be resumed, or whose folder cannot be read; llama's tokenizer
    left beside its own."""
    out = tmp_path / "model"
    sizes = [*BYTE_LEVEL[family], "--n-layer", 1, "--vocab-size", 300, "--family", family]
    run = ["--out", out, "--text", text, "--tokens", 512 * 3, "--tokens-per-step", 512,
           "--every", 2, "--threads", 1, *sizes]  # fmt: skip
    run = [str(flag) for flag in run]
    out.mkdir()
    (out / trained_folder.LOG_FILE).write_bytes(trained_folder.LOG_BEGINS)
    (out / "notes.txt").write_text("somebody's own")
    (tmp_path / "model.part").mkdir()
    for folder in (out, tmp_path / "model.part"):
        (folder / "tokenizer.model").write_text("of an earlier run")
    interrupted(1)
    assert train.main(run) == 130
    assert train.main([*run, "--resume"]) == 0
    model, tokenizer = load(out)
    assert model.config.family == family and model.config.context_length == 256
    assert type(tokenizer).__name__ == "ByteLevelTokenizer" and tokenizer.vocab_size == 300
    assert model.config.bos_id == tokenizer.bos_id == tokenizer.eos_id == 0
    assert tokenizer.decode(tokenizer.encode("The sea 40721")) == "The sea 40721"
    files = {path.name for path in out.iterdir()}
    assert files == {"config.json", "model.safetensors", "tokenizer.json", "notes.txt",
                     "tokenizer_config.json", "training.json"}  # fmt: skip
    assert f"--family {family}" in json.loads((out / "training.json").read_text())["command"]


def test_sizes_of_another_family_are_refused(text, tmp_path, capsys):
    """A flag without effect lets somebody believe in a model that was not trained."""
    for family, flag in (
        ("llama", "--rotary-dim"),
        ("mpt", "--n-inner"),
        ("gptj", "--head-dim"),
    ):
        with pytest.raises(SystemExit) as left:
            train.main(["--out", str(tmp_path / "x"), "--family", family, flag, "4"])
        assert left.value.code == 2
        assert f"{flag} has no meaning for {family}" in capsys.readouterr().err
    run = [
        "--out",
        str(tmp_path / "x"),
        "--family",
        "mpt",
        "--n-head",
        "7",
        "--text",
        str(text),
    ]
    assert train.main([*run, "--vocab-size", "300"]) == 1
    assert "d_model (144) must be a multiple of n_heads (7)" in error(capsys)


@pytest.mark.parametrize("share", ["-0.1", "0.35", "nan", "many"])
def test_a_share_out_of_range_is_refused(tmp_path, share, capsys):
    """A first phase that ends behind the second would leave the second out."""
    with pytest.raises(SystemExit) as left:
        train.main(["--out", str(tmp_path / "x"), "--repeats", share])
    assert left.value.code == 2 and "--repeats" in capsys.readouterr().err


def test_the_share_of_repeats_moves_the_first_phase():
    """A share that is recorded, and not used."""
    settings = train.Settings(4096 * 1000, 1, 4096, 1e-3, 2048, repeats=0.2)
    assert settings.phase(199).repeats == 1.0 and settings.phase(200).repeats < 1.0
    assert settings.phases[1:] == train.PHASES[1:] and settings.phases[0].until == 0.2


# ---- what it writes over


@pytest.mark.parametrize(
    "name", ["config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "merges.txt"]
)
def test_a_model_of_others_is_not_mixed_with_ours(text, tmp_path, capsys, name):
    """Half a folder of one model, half of another; or somebody's tokenizer, deleted."""
    out = tmp_path / "model"
    out.mkdir()
    (out / name).write_text("theirs")
    assert train.main(flags(text, out)) == 1
    assert f"{name} was not written by this program" in error(capsys)
    assert [path.name for path in out.iterdir()] == [name]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (out / trained_folder.LOG_FILE).write_text("theirs, too")
    assert train.main(flags(text, out)) == 1 and "was not written by" in error(capsys)


def test_the_folder_of_work_is_ours_alone(text, tmp_path, capsys):
    """Somebody's folder that happens to be called so, and is emptied."""
    (tmp_path / "model.part").mkdir()
    (tmp_path / "model.part" / "notes").write_text("theirs")
    assert train.main(flags(text, tmp_path / "model")) == 1
    assert "notes was not written by this program" in error(capsys)


@pytest.mark.parametrize("out", [".", "..", "/", "text.txt", "corpus", "corpus/model", "fifo"])
def test_where_no_model_can_be_written(text, tmp_path, monkeypatch, capsys, out):
    """A text that is replaced, or a model in the middle of its corpus, or a Python word."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("a text")
    (tmp_path / "corpus").mkdir()
    os.mkfifo(tmp_path / "fifo")
    texts = [] if "corpus" in out else ["--text", "text.txt"]
    assert train.main(["--out", out, *texts]) == 1
    assert "--out" in error(capsys)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["corpus", "fifo", "text.txt"] and not list((tmp_path / "corpus").iterdir())


def test_two_runs_with_one_out(text, tmp_path, capsys):
    """A tokenizer of one run, and a model of the other."""
    with claimed(tmp_path / "model"):
        assert train.main(flags(text, tmp_path / "model")) == 1
    assert "another run writes" in error(capsys)
    assert not (tmp_path / "model.part").exists()


def test_a_loss_that_is_no_number(unbroken, text, tmp_path, monkeypatch, capsys):
    """A model of nothing but NaN, written over a good one with exit code 0."""
    out = tmp_path / "model"
    shutil.copytree(unbroken, out)
    before = (out / "model.safetensors").read_bytes()
    nll = training.token_nll
    monkeypatch.setattr(training, "token_nll", lambda *rows: nll(*rows) * math.nan)
    assert train.main(flags(text, out)) == 1
    assert "the loss of step 1 is not a number: take a smaller --learning-rate" in error(capsys)
    assert (out / "model.safetensors").read_bytes() == before


# ---- what it learns from


def test_the_learning_rate():
    """A cosine that ends at 0 before the run does, or a warm-up that never ends."""
    settings = train.Settings(4096 * 1000, 1, 4096, 1e-3, 2048)
    assert settings.steps == 1000
    rates = [settings.rate(step) for step in range(1000)]
    assert rates[0] == pytest.approx(1e-3 / 100)
    assert max(rates) == rates[99] == pytest.approx(1e-3, rel=0.03)
    assert all(a < b for a, b in zip(rates[:99], rates[1:100]))
    assert all(a > b for a, b in zip(rates[99:], rates[100:]))
    assert rates[500] == pytest.approx(0.55e-3)
    assert rates[-1] == pytest.approx(1e-4, rel=1e-3)


@pytest.mark.parametrize("tokens, steps", [(512, 1), (513, 2), (1023, 2), (1024, 2)])
def test_all_tokens_are_seen(tokens, steps):
    """Rounding down would train on less than the card says."""
    assert train.Settings(tokens, 1, 512, 1e-3, 320).steps == steps


class Recorder:
    """A practice that only notes what it is asked for."""

    def __init__(self):
        self.asked = []

    def note(self, kind, length, followed=0.0):
        self.asked.append((kind, length, followed))
        return [1] * length

    def repeats(self, rng, length):
        return self.note("repeats", length)

    def retrieval(self, rng, length, followed=0.0):
        return self.note("retrieval", length, followed)

    def ordinary(self, rng, length):
        return self.note("ordinary", length)


def test_every_phase_has_its_mix_and_its_windows():
    """A phase that begins too early, or a share that is taken of the rest only."""
    settings = train.Settings(4096 * 2000, 3, 4096, 1e-3, 2048)
    begins = 0
    for phase in train.PHASES:
        ends = math.ceil(phase.until * settings.steps)
        assert settings.phase(begins) == settings.phase(ends - 1) == phase
        practice = Recorder()
        for step in range(begins, begins + 60):
            rows = train.windows(settings, practice, step)
            assert rows.shape == (4096 // phase.window, phase.window + 1)
        kinds = [kind for kind, _, _ in practice.asked]
        assert {length for _, length, _ in practice.asked} == {phase.window + 1}
        for kind in ("repeats", "retrieval"):
            share = getattr(phase, kind)
            found = kinds.count(kind) / len(kinds)
            assert abs(found - share) <= 4 * math.sqrt(share * (1 - share) / len(kinds)), kind
        followed = {f for kind, _, f in practice.asked if kind == "retrieval"}
        assert followed <= {phase.followed}
        begins = ends
    assert begins == settings.steps


def test_windows_depend_on_seed_and_step_only(tokenizer):
    """A generator that runs on from step to step cannot be resumed."""
    text = np.array(tokenizer.encode(made_up_text(3000), bos=False))
    practice = Practice(tokenizer, text)
    settings = train.Settings(1024 * 100, 1, 1024, 1e-3, 2048)
    for step in (0, 20, 50, 99):
        rows = train.windows(settings, practice, step)
        assert (rows[:, 0] == tokenizer.bos_id).all()
        assert torch.equal(rows, train.windows(settings, practice, step))
        other = dataclasses.replace(settings, seed=2)
        assert not torch.equal(rows, train.windows(other, practice, step))
        assert len({tuple(row) for row in rows.tolist()}) == len(rows)
    assert not torch.equal(
        train.windows(settings, practice, 50), train.windows(settings, practice, 51)
    )


def test_the_last_twentieth_is_held_out(text, tmp_path):
    """Held-out text that was trained on makes a loss that means nothing."""
    options = type("Options", (), {"text": [text]})
    kept, held_out = train.load_text(options)
    whole = text.read_text()
    assert kept[str(text)] + held_out[str(text)] == whole
    assert len(held_out[str(text)]) == pytest.approx(len(whole) / 20, abs=1)


def test_documents_end_with_eos(tokenizer):
    """Without it no model can learn to end a text."""
    ids = train.encode_all(tokenizer, {"a": "The sea", "b": "A ship"}).tolist()
    a, b = (tokenizer.encode(text, bos=False) for text in ("The sea", "A ship"))
    assert ids == [*a, tokenizer.eos_id, *b, tokenizer.eos_id]


def test_the_trained_tokenizer_keeps_every_text(unbroken):
    """A normaliser, a lost space, digits in one piece, a character that becomes <unk>."""
    _, tokenizer = load(unbroken)
    for written in ("The  sea", " 204 ship\n\n", "\tnaïve ﬁ 漢字 👩", "²"):
        assert tokenizer.decode(tokenizer.encode(written)) == written
        assert tokenizer.processor.unk_id() not in tokenizer.encode(written)
    assert len(tokenizer.encode("204204", bos=False)) >= 6
    assert tokenizer.vocab_size == 640


def test_initial_weights(text):
    """Layers that add to x with a full deviation would drown what they add to."""
    from minilm_inf.models import llama

    config = llama.LlamaConfig(
        family="llama", vocab_size=320, n_layer=2, n_head=4, n_kv_head=2, n_embd=64,
        head_dim=16, n_inner=96, context_length=256, norm_eps=1e-5, tied=True,
    )  # fmt: skip
    model = llama.build(config)
    recipes.initialise(model, 1)
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            assert (weight == 1).all(), name
            continue
        adds = name.endswith(("o.weight", "down.weight"))
        expected = 0.02 / math.sqrt(2 * 2) if adds else 0.02
        assert weight.std().item() == pytest.approx(expected, rel=0.08), name


# ---- what people get wrong


@pytest.mark.parametrize(
    "content, more, sentence",
    [
        (b"caf\xe9" * 1000, (), "not UTF-8"),
        (made_up_text(2500).encode(), (), "too short for windows"),
        (made_up_text(6000).encode(), ("--vocab-size", 10**6), "no tokenizer can be trained"),
        (made_up_text(300).encode(), ("--vocab-size", 20), "no tokenizer can be trained"),
        (b"", (), "no tokenizer can be trained"),
        (made_up_text(6000).encode(), ("--n-head", 3, "--n-kv-head", 2), "multiple of"),
    ],
)
def test_text_and_sizes_that_do_not_do(tmp_path, capsys, content, more, sentence):
    """sentencepiece and numpy say what is wrong in their own terms, and at length."""
    (tmp_path / "text.txt").write_bytes(content)
    assert train.main(flags(tmp_path / "text.txt", tmp_path / "model", *more)) == 1
    message = error(capsys)
    assert message.startswith("error: ") and sentence in message
    assert not (tmp_path / "model").exists()


def test_a_model_that_memory_cannot_hold(text, tmp_path, capsys):
    """A program that the system ends without a word, after it gave out what it had not."""
    sizes = ("--n-layer", 1000, "--n-embd", 65536, "--n-inner", 65536)
    assert train.main(flags(text, tmp_path / "model", *sizes)) == 1
    assert "GB are free: take smaller sizes" in error(capsys)
    assert not list(tmp_path.iterdir())


def test_text_that_is_not_there(tmp_path, capsys):
    """The corpus is not part of a clone: say how to get it."""
    assert train.main(flags(tmp_path / "missing", tmp_path / "model")) == 1
    assert "cannot read" in error(capsys)
    assert train.main(["--out", str(tmp_path / "m"), "--corpus", str(tmp_path / "none")]) == 1
    assert "run python -m minilm_inf.corpus" in error(capsys)


@pytest.mark.parametrize(
    "flag, value",
    [("--tokens", 0), ("--tokens-per-step", 128), ("--seed", -1), ("--every", 0),
     ("--n-layer", 0), ("--vocab-size", -3), ("--n-layer", 1001), ("--threads", 10**6),
     ("--head-dim", 2**40), ("--seed", 2**64), ("--tokens", 2**62),
     ("--tokens-per-step", 2**30),
     ("--learning-rate", "nan"), ("--learning-rate", "inf"), ("--learning-rate", 0),
     ("--learning-rate", "1e300"), ("--learning-rate=-1", "x")],
)  # fmt: skip
def test_numbers_out_of_range(text, tmp_path, capsys, flag, value):
    """Steps without a window, or a log that divides by zero."""
    with pytest.raises(SystemExit) as end:
        train.main(flags(text, tmp_path / "model", flag, value))
    assert end.value.code == 2
    assert flag.partition("=")[0] in error(capsys)
