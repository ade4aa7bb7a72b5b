"""The trainer: what it writes, where it stops, and that it goes on as if it had not."""

import dataclasses
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from minilm_inf import generate, load
from minilm_inf.models import llama
from minilm_inf.train import __main__ as train
from minilm_inf.train import practice as exercises
from minilm_inf.train import recipes, training

SIZES = """--vocab-size 400 --n-layer 1 --n-head 2 --n-kv-head 1 --head-dim 8 --n-embd 16
--n-inner 24 --tokens-per-step 512 --threads 1""".split()
STEPS = 8


def made_up_text(words: int = 6000) -> str:
    """Sentences of a few common words and those of the exercises, the same in every run."""
    rng = random.Random(0)
    own = (*exercises.STATE_KEY, exercises.ASK_KEY, *exercises.STATE_NUMBER,
           exercises.ASK_NUMBER, *exercises.NAMES)  # fmt: skip
    common = " ".join(("the sea ship men old house went came saw on of to 17 204", *own))
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
    yield
    for name, handler in handlers.items():
        signal.signal(name, handler)
    torch.set_flush_denormal(False)


def flags(text, out, *more) -> list[str]:
    run = ["--out", out, "--text", text, "--tokens", 512 * STEPS, "--every", 3, *SIZES, *more]
    return [str(flag) for flag in run]


@pytest.fixture(scope="module")
def unbroken(text, tmp_path_factory):
    """The folder of a run that nobody interrupted."""
    out = tmp_path_factory.mktemp("unbroken") / "model"
    assert train.main(flags(text, out)) == 0
    return out


@pytest.fixture
def run(program, text, tmp_path):
    """A call of the trainer on tmp_path/model: (flags) -> (exit code, the last line of
    stderr, which is all that is said of an error)."""

    def call(*more, own=True):
        code, _, err = program(train.main, *(flags(text, tmp_path / "model") * own), *more)
        return code, (err.splitlines() or [""])[-1]

    return call


@pytest.fixture
def stopped(run, monkeypatch):
    """A function that lets a signal come while the given step draws its windows: the exit code
    of a run then."""
    windows = train.windows

    def at(step: int, *more, name=signal.SIGINT, own=True):
        def and_then(settings, practice, now):
            if now == step:
                signal.raise_signal(name)
            return windows(settings, practice, now)

        with monkeypatch.context() as patch:
            patch.setattr(train, "windows", and_then)
            return run(*more, own=own)[0]

    return at


def log_of(folder) -> list[dict]:
    return json.loads((folder / "training.json").read_text())["log"]


def assert_same_run(folder, other):
    assert log_of(folder) == log_of(other)
    for name in ("model.safetensors", "tokenizer.model", "config.json"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def names_in(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def state_in(folder):
    return folder / "model.part" / train.STATE_FILE


# ---- a whole run


def test_a_run_writes_a_folder_that_load_reads(unbroken, text):
    """A folder that only the trainer itself understands, a card that is made from a record
    which tells another run's story; a tokenizer with a normaliser, a lost space, digits in one
    piece, or a character that becomes <unk>."""
    model, tokenizer = load(unbroken)
    assert model.config.context_length == 256 and model.config.n_layer == 1
    assert model.config.bos_id == tokenizer.bos_id
    assert model.config.eos_ids == (tokenizer.eos_id,)
    assert len(list(generate(model, tokenizer.encode("The sea"), max_new_tokens=5))) <= 5
    files = ["config.json", "model.safetensors", "tokenizer.model", "training.json"]
    assert names_in(unbroken) == files

    record = json.loads((unbroken / "training.json").read_text())
    assert record["command"].startswith("python -m minilm_inf.train --out ")
    assert "--every 3" in record["command"]
    assert record["documents"] == 1 and record["held_out"] == [str(text)]
    assert record["settings"]["tokens"] == 512 * STEPS
    assert len(record["phases"]) == len(train.PHASES)
    assert [entry["step"] for entry in record["log"]] == [3, 6, STEPS]
    assert [entry["tokens"] for entry in record["log"]] == [3 * 512, 6 * 512, STEPS * 512]
    for entry in record["log"]:
        assert 2.0 < entry["train_loss"] < 7.0 and 2.0 < entry["held_out_nll"] < 7.0
        assert 0.0 <= entry["pass_key_accuracy"] <= 1.0

    for written in ("The  sea", " 204 ship\n\n", "\tnaïve ﬁ 漢字 👩", "²"):
        assert tokenizer.decode(tokenizer.encode(written)) == written
        assert tokenizer.processor.unk_id() not in tokenizer.encode(written)
    assert len(tokenizer.encode("204204", bos=False)) >= 6 and tokenizer.vocab_size == 400


def test_the_model_learns_and_its_seed_decides(unbroken, run, tmp_path):
    """A gradient that is dropped, or of the wrong sign, leaves the model as it was; the same
    command on the same machine must give the same weights."""
    assert run("--learning-rate", 0.5, "--seed", 2)[0] == 0
    first, *_, last = log_of(tmp_path / "model")
    assert last["held_out_nll"] < first["held_out_nll"] - 0.2
    assert log_of(tmp_path / "model") != log_of(unbroken)
    assert run()[0] == 0
    assert_same_run(tmp_path / "model", unbroken)


# ---- stopping and going on


@pytest.mark.parametrize("steps, name", [([0], signal.SIGTERM), ([1, 2, 6], signal.SIGINT)])
def test_a_resumed_run_is_the_unbroken_run(unbroken, run, stopped, tmp_path, steps, name):
    """To the last bit: weights, both moments, the step's windows, and the mean loss of the log.
    Step 2 is interrupted where the log has an entry; the others between two."""
    more = []
    for step in steps:
        assert stopped(step, *more, name=name) == 128 + name
        assert not (tmp_path / "model").exists() and state_in(tmp_path).exists()
        more = ["--resume"]
    assert stopped(STEPS - 1, "--resume") == 0, "at the last step it is no interruption"
    assert_same_run(tmp_path / "model", unbroken)
    assert names_in(tmp_path) == ["model"]


@pytest.mark.slow
def test_a_real_signal_stops_a_real_run(text, tmp_path):
    """The tests above raise the signal themselves; a terminal sends it from outside."""
    command = [sys.executable, "-m", "minilm_inf.train"]
    program = subprocess.Popen(
        [*command, *flags(text, tmp_path / "model", "--tokens", 10**9)], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        seen = b""
        while b" tokens  loss " not in seen:
            piece = program.stderr.read1()
            assert piece, seen.decode()
            seen += piece
        program.send_signal(signal.SIGINT)
        _, err = program.communicate(timeout=60)
    finally:
        program.kill()
    assert program.returncode == 130
    assert b"go on with --resume" in err and b"Traceback" not in err
    assert b"tokens/s" in seen and b" left" in seen
    assert names_in(tmp_path / "model.part") == [train.STATE_FILE, "tokenizer.model"]


def test_what_is_not_resumed(run, stopped, tmp_path):
    """--resume that quietly starts from nothing; half a run of one kind and half of another;
    an hour of training that a forgotten --resume would throw away; a disk that was full, or
    that changed a byte."""
    code, said = run("--resume")
    assert code == 1 and "no run to resume" in said and not names_in(tmp_path)
    assert stopped(0) == 130
    path = state_in(tmp_path)
    whole = path.read_bytes()
    for other in (("--tokens", 1024), ("--seed", 2), ("--n-inner", 16)):
        code, said = run("--resume", *other)
        assert code == 1 and "other settings" in said
    code, said = run()
    assert code == 1 and "--resume it, or delete it" in said and path.read_bytes() == whole
    edited = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
    for content, told in ((whole[:1000], "no whole state"), (edited, "was edited or damaged")):
        path.write_bytes(content)
        code, said = run("--resume")
        assert code == 1 and told in said and path.read_bytes() == content


@pytest.mark.parametrize("family, sizes", [
    ("mpt", "--n-head 3 --n-embd 24"),
    ("gptj", "--n-head 2 --n-embd 16 --n-inner 24 --rotary-dim 4"),
])  # fmt: skip
def test_the_other_families_are_trained_too(family, sizes, text, tmp_path, run, stopped):
    """A family whose run cannot be resumed, or whose folder cannot be read; llama's tokenizer
    left beside its own, or somebody's notes gone."""
    out = tmp_path / "model"
    words = f"--tokens 1536 --tokens-per-step 512 --every 2 --threads 1 {sizes} "
    words += f"--n-layer 1 --vocab-size 300 --family {family}"
    command = ["--out", out, "--text", text, *words.split()]
    out.mkdir()
    (out / "tokenizer.model").write_text("of an earlier run")
    (out / training.LOG_FILE).write_bytes(training.LOG_BEGINS)
    (out / "notes.txt").write_text("somebody's own")
    assert stopped(1, *command, own=False) == 130
    assert run(*command, "--resume", own=False)[0] == 0
    model, tokenizer = load(out)
    assert model.config.family == family and model.config.context_length == 256
    assert type(tokenizer).__name__ == "ByteLevelTokenizer" and tokenizer.vocab_size == 300
    assert model.config.bos_id == tokenizer.bos_id == tokenizer.eos_id == 0
    assert tokenizer.decode(tokenizer.encode("The sea 40721")) == "The sea 40721"
    assert names_in(out) == ["config.json", "model.safetensors", "notes.txt", "tokenizer.json",
                             "tokenizer_config.json", "training.json"]  # fmt: skip
    assert f"--family {family}" in json.loads((out / "training.json").read_text())["command"]


# ---- what it writes over


@pytest.mark.parametrize("folder, name", [
    ("model", "config.json"), ("model", "training.json"), ("model.part", "notes"),
])  # fmt: skip
def test_folders_of_somebody_else(run, tmp_path, folder, name):
    """Half a folder of one model, half of another; a folder that happens to be called so, and
    is emptied."""
    (tmp_path / folder).mkdir()
    (tmp_path / folder / name).write_text("theirs")
    code, said = run()
    assert code == 1 and "was not written by this program" in said
    assert names_in(tmp_path / folder) == [name] and names_in(tmp_path) == [folder]


@pytest.mark.parametrize("out", [".", "..", "/", "text.txt", "fifo"])
def test_where_no_model_can_be_written(run, tmp_path, monkeypatch, out):
    """A text that is replaced, or a Python word."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("a text")
    os.mkfifo(tmp_path / "fifo")
    code, said = run("--out", out, "--text", "text.txt", own=False)
    assert code == 1 and said.startswith("error: ") and (out in said or "--out" in said)
    assert names_in(tmp_path) == ["fifo", "text.txt"]


def test_a_run_that_fails_leaves_the_model_that_was_there(unbroken, run, tmp_path, monkeypatch):
    """A model of nothing but NaN, written over a good one with exit code 0; a new tokenizer
    beside an old model."""
    shutil.copytree(unbroken, tmp_path / "model")
    code, said = run("--vocab-size", 10**6)
    assert code == 1 and "no tokenizer can be trained" in said
    nll = training.token_nll
    monkeypatch.setattr(training, "token_nll", lambda *rows: nll(*rows) * math.nan)
    code, said = run()
    assert code == 1 and "the loss of step 1 is not a number: take a smaller --lear" in said
    assert not state_in(tmp_path).exists()
    for path in unbroken.iterdir():
        assert (tmp_path / "model" / path.name).read_bytes() == path.read_bytes()


# ---- what it learns from


def test_the_learning_rate_and_the_steps():
    """A cosine that ends at 0 before the run does, or a warm-up that never ends; rounding down
    would train on less than the card says."""
    settings = train.Settings(4096 * 1000 - 5, 1, 4096, 1e-3, 2048)
    rates = [settings.rate(step) for step in range(1000)]
    assert settings.steps == 1000 and rates[:100] == sorted(rates[:100])
    assert rates[99:] == sorted(rates[99:], reverse=True)
    found = [rates[step] for step in (0, 99, 500, 999)]
    assert found == pytest.approx([1e-5, 1e-3, 0.55e-3, 1e-4], rel=0.03)


def test_every_phase_has_its_mix_and_its_windows(tokenizer):
    """A phase that begins too early, a share that is taken of the rest only, or one that is
    recorded and not used."""
    settings = train.Settings(4096 * 2000, 3, 4096, 1e-3, 2048)
    asked, begins = [], 0

    def noting(kind):
        return lambda rng, length, followed=0.0: asked.append((kind, length, followed)) or [1]

    practice = type("Practice", (), {})()
    for kind in ("repeats", "retrieval", "ordinary"):
        setattr(practice, kind, noting(kind))
    for phase in train.PHASES:
        ends = math.ceil(phase.until * settings.steps)
        assert settings.phase(begins) == settings.phase(ends - 1) == phase
        asked.clear()
        for step in range(begins, begins + 60):
            assert len(train.windows(settings, practice, step)) == 4096 // phase.window
        kinds = [kind for kind, _, _ in asked]
        assert {length for _, length, _ in asked} == {phase.window + 1}
        for kind in ("repeats", "retrieval"):
            share = getattr(phase, kind)
            found = kinds.count(kind) / len(kinds)
            assert abs(found - share) <= 4 * math.sqrt(share * (1 - share) / len(kinds)), kind
        assert {f for kind, _, f in asked if kind == "retrieval"} <= {phase.followed}
        begins = ends
    assert begins == settings.steps
    other = dataclasses.replace(settings, repeats=0.2)
    assert other.phase(399).repeats == 1.0 and other.phase(400).repeats < 1.0
    assert other.phases[1:] == train.PHASES[1:] and other.phases[0].until == 0.2


def test_windows_depend_on_seed_and_step_only(tokenizer):
    """A generator that runs on from step to step cannot be resumed."""
    practice = exercises.Practice(tokenizer, np.array(tokenizer.encode(made_up_text(3000))))
    settings = train.Settings(1024 * 100, 1, 1024, 1e-3, 2048)
    for step in (0, 20, 50, 99):
        rows, again = (train.windows(settings, practice, step) for _ in "12")
        assert torch.equal(rows, again) and (rows[:, 0] == tokenizer.bos_id).all()
        for other in ((dataclasses.replace(settings, seed=2), step), (settings, step + 1)):
            assert not torch.equal(rows, train.windows(other[0], practice, other[1]))


def test_what_is_held_out_and_how_a_document_ends(text, tokenizer):
    """Held-out text that was trained on makes a loss that means nothing; without EOS no model
    can learn to end a text."""
    kept, held_out = train.load_text(type("Options", (), {"text": [text]}))
    whole = text.read_text()
    assert kept[str(text)] + held_out[str(text)] == whole
    assert len(held_out[str(text)]) == pytest.approx(len(whole) / 20, abs=1)
    ids = train.encode_all(tokenizer, {"a": "The sea", "b": "A ship"}).tolist()
    a, b = (tokenizer.encode(text, bos=False) for text in ("The sea", "A ship"))
    assert ids == [*a, tokenizer.eos_id, *b, tokenizer.eos_id]


def test_initial_weights():
    """Layers that add to x with a full deviation would drown what they add to."""
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


@pytest.mark.parametrize("content, more, sentence", [
    (b"caf\xe9" * 1000, "", "not UTF-8"),
    (made_up_text(800).encode(), "", "too short for windows"),
    (made_up_text(300).encode(), "--vocab-size 20", "no tokenizer can be trained"),
    (b"", "", "no tokenizer can be trained"),
    (made_up_text(300).encode(), "--family mpt --vocab-size 20", "it needs 256 for the bytes"),
    (made_up_text().encode(), "--n-head 3 --n-kv-head 2", "multiple of"),
    (None, "--text none", "cannot read"),
    (None, "--corpus none", "run python -m minilm_inf.corpus"),
])  # fmt: skip
def test_text_and_sizes_that_do_not_do(run, tmp_path, monkeypatch, content, more, sentence):
    """sentencepiece, numpy and the system say what is wrong in their own terms, and at length,
    or not at all."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_bytes(content or b"")
    source = ["--text", "text.txt"] if content is not None else []
    sizes = SIZES if "mpt" not in more else []
    code, said = run("--out", "model", *source, *sizes, *more.split(), own=False)
    assert code == 1 and said.startswith("error: ") and sentence in said
    assert names_in(tmp_path) == ["text.txt"]


@pytest.mark.parametrize("words", [
    "--tokens 0", "--tokens-per-step 128", "--seed -1", "--every 0", "--n-layer 0",
    "--vocab-size -3", f"--head-dim {2**40}", f"--tokens-per-step {2**30}",
    "--learning-rate nan", "--learning-rate 0", "--learning-rate=-1", "--repeats 0.35",
    "--rotary-dim 4", "--n-inner 4 --family mpt",
])  # fmt: skip
def test_flags_that_make_no_sense(run, words):
    """Steps without a window, a log that divides by zero, a first phase that ends after the
    second; a flag without effect, of another family."""
    code, said = run("--out", "x", *words.split(), own=False)
    assert code == 2 and re.split("[ =]", words)[0] in said
