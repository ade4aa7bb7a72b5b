"""The trainer: what it writes, where it stops, and that it goes on as if it had not."""

import dataclasses
import json
import math
import os
import re
import shutil
import signal

import numpy as np
import pytest
import torch
from conftest import ROOT, error, tiny_llama

from minilm_inf import generate, load
from minilm_inf.train import __main__ as train
from minilm_inf.train import practice as exercises
from minilm_inf.train import recipes

TEXT = ROOT / "tutorials" / "text.txt"
STEPS = 6
SHAPES = {  # family -> sizes that make no large model
    "llama": "--vocab-size 400 --n-head 2 --n-kv-head 1 --head-dim 8 --n-embd 16 --n-inner 24",
    "mpt": "--vocab-size 300 --n-head 3 --n-embd 24 --family mpt",
    "gptj": "--vocab-size 300 --n-head 2 --n-embd 16 --n-inner 24 --rotary-dim 4 --family gptj",
}
COMMON = f"--n-layer 1 --tokens-per-step 256 --tokens {256 * STEPS} --every 2 --threads 1"


def flags(out, *more, family="llama") -> list[str]:
    line = f"--text {TEXT} {COMMON} {SHAPES[family]}".split()
    return ["--out", str(out), *line, *map(str, more)]


@pytest.fixture(autouse=True, scope="module")
def quickly():
    """Less is measured on the way; and small numbers are what they were after a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "N_HELD_OUT", 4)
        accuracy = exercises.pass_key_accuracy
        patch.setattr(train, "pass_key_accuracy", lambda *which: accuracy(*which, count=4))
        yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder of a run that nobody interrupted."""
    out = tmp_path_factory.mktemp("unbroken") / "model"
    assert train.main(flags(out)) == 0
    return out


@pytest.fixture
def run(program, tmp_path):
    """A call of the trainer on tmp_path/model: (flags) -> (exit code, stdout, stderr)."""
    return lambda *more, **family: program(
        train.main, *flags(tmp_path / "model", *more, **family)
    )


@pytest.fixture
def stopped(run, monkeypatch):
    """The exit code of a run during whose given step a signal comes."""
    windows = recipes.windows

    def at(step: int, *more, name=signal.SIGINT, **family):
        def and_then(settings, practice, now):
            if now == step:
                signal.raise_signal(name)
            return windows(settings, practice, now)

        with monkeypatch.context() as patch:
            patch.setattr(recipes, "windows", and_then)
            code, _, err = run(*more, **family)
            assert ("go on with --resume" if code else " tokens  loss ") in err
            return code

    return at


def log_of(folder) -> list[dict]:
    return json.loads((folder / "training.json").read_text())["log"]


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- a whole run


def test_a_run_writes_a_folder_that_load_reads(unbroken):
    """A folder that only the trainer itself understands, a record that tells another run's
    story; a tokenizer with a normaliser, a lost space, digits in one piece, or <unk>; a
    gradient of the wrong sign."""
    model, tokenizer = load(unbroken)
    assert model.config.context_length == 256 and model.config.n_layer == 1
    assert (model.config.bos_id, model.config.eos_ids) == (1, (2,))
    assert len(list(generate(model, tokenizer.encode("The sea"), max_new_tokens=5))) <= 5
    files = {"config.json", "model.safetensors", "tokenizer.model", "training.json"}
    assert set(contents(unbroken)) == files

    record = json.loads((unbroken / "training.json").read_text())
    assert record["command"].startswith("python -m minilm_inf.train --out ")
    assert "--every 2" in record["command"]
    assert record["documents"] == 1 and record["held_out"] == [str(TEXT)]
    assert record["settings"]["tokens"] == 256 * STEPS
    assert [(e["step"], e["tokens"]) for e in record["log"]] == [(2, 512), (4, 1024), (6, 1536)]
    for entry in record["log"]:
        assert 5.0 < entry["held_out_nll"] < 6.1 and 5.0 < entry["train_loss"] < 6.1
        assert 0.0 <= entry["pass_key_accuracy"] <= 1.0

    for written in ("The  sea", " 204 ship\n\n", "\tnaïve ﬁ 漢字 👩", "²"):
        assert tokenizer.decode(tokenizer.encode(written)) == written
        assert tokenizer.processor.unk_id() not in tokenizer.encode(written)
    assert len(tokenizer.encode("204204", bos=False)) >= 6 and tokenizer.vocab_size == 400


def test_the_model_learns_and_its_seed_decides(unbroken, run, tmp_path):
    """A gradient that is dropped, or of the wrong sign, leaves the model as it was."""
    assert run("--learning-rate", 0.5, "--seed", 2)[0] == 0
    first, *_, last = log_of(tmp_path / "model")
    assert last["held_out_nll"] < first["held_out_nll"] - 0.1
    assert log_of(tmp_path / "model") != log_of(unbroken)


def test_a_step_is_that_of_adamw(tokenizer):
    """A moment that is not corrected, or a decay that is scaled by the gradient."""
    text = np.array(tokenizer.encode(TEXT.read_text()))
    practice, settings = exercises.Practice(tokenizer, text), train.Settings(9999, 1, 256, 1, 0)
    model = recipes.network("gptj", recipes.SHAPES["gptj"] | {"n_layer": 1}, tokenizer)
    run = train.Run(model, settings, None, practice, practice)
    weight = model.blocks[0].mlp.up.weight
    expected = weight.detach().double()
    first = second = torch.zeros_like(expected)
    for t in (1, 2, 3):
        run.learn()
        rate, g = settings.rate(t - 1), weight.grad.double()
        first, second = 0.9 * first + 0.1 * g, 0.98 * second + 0.02 * g**2
        change = first / (1 - 0.9**t) / ((second / (1 - 0.98**t)).sqrt() + 1e-8)
        expected = expected - rate * change - rate * 0.05 * expected
    assert torch.allclose(weight.double(), expected, atol=1e-6)


# ---- stopping and going on


@pytest.mark.parametrize("steps, name", [([0], signal.SIGTERM), ([1, 4], signal.SIGINT)])
def test_a_resumed_run_is_the_unbroken_run(unbroken, run, stopped, tmp_path, steps, name):
    """To the last bit: weights, both moments, the step's windows, and the mean loss of the log.
    Step 1 is interrupted where the log has an entry; the others between two."""
    more = []
    for step in steps:
        assert stopped(step, *more, name=name) == 128 + name
        assert os.listdir(tmp_path) == ["model.state"]
        more = ["--resume"]
    assert stopped(STEPS - 1, "--resume") == 0, "at the last step it is no interruption"
    found, expected = contents(tmp_path / "model"), contents(unbroken)
    assert log_of(tmp_path / "model") == log_of(unbroken) and found.keys() == expected.keys()
    assert all(found[name] == expected[name] for name in found if name != "training.json")
    assert os.listdir(tmp_path) == ["model"]


def test_what_is_not_resumed(run, stopped, tmp_path):
    """--resume that quietly starts from nothing; half a run of one kind and half of another;
    an hour of training that a forgotten --resume would throw away; a disk that was full, or
    that changed a byte."""
    assert "no run to resume" in error(run, "--resume") and not os.listdir(tmp_path)
    assert stopped(0) == 130
    path = tmp_path / "model.state"
    whole = path.read_bytes()
    for other in (("--tokens", 1024), ("--seed", 2), ("--n-inner", 16), ("--text", __file__)):
        assert "other settings or text" in error(run, "--resume", *other)
    assert "--resume it, or delete it" in error(run) and path.read_bytes() == whole
    edited = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
    for content, told in ((whole[:1000], "no whole state"), (edited, "was edited or damaged")):
        path.write_bytes(content)
        assert told in error(run, "--resume") and path.read_bytes() == content


@pytest.mark.parametrize("family", ["mpt", "gptj"])
def test_the_other_families_are_trained_too(family, tmp_path, run, stopped):
    """A family whose run cannot be resumed, or whose folder cannot be read; llama's tokenizer
    left beside its own, or somebody's notes gone."""
    out = tmp_path / "model"
    out.mkdir()
    (out / "tokenizer.model").write_text("of an earlier run")
    (out / "training.json").write_bytes(train.RECORD_BEGINS)
    (out / "tokenizer_notes.txt").write_text("somebody's own")
    assert stopped(1, family=family) == 130 and len(contents(out)) == 3
    assert run("--resume", family=family)[0] == 0
    model, tokenizer = load(out)
    assert model.config.family == family and model.config.context_length == 256
    assert type(tokenizer).__name__ == "ByteLevelTokenizer" and tokenizer.vocab_size == 300
    assert model.config.bos_id == tokenizer.bos_id == tokenizer.eos_id == 0
    assert tokenizer.decode(tokenizer.encode("The sea 40721")) == "The sea 40721"
    assert sorted(contents(out)) == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "tokenizer_notes.txt", "training.json",
    ]  # fmt: skip


# ---- what it writes over


@pytest.mark.parametrize("out", [".", "..", "/", "text.txt", "fifo", "theirs", "other"])
def test_where_no_model_can_be_written(run, tmp_path, monkeypatch, out):
    """A text that is replaced, or half a folder of one model, half of another."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("a text")
    os.mkfifo(tmp_path / "fifo")
    for folder, name in (("theirs", "config.json"), ("other", "training.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("theirs")
    before = sorted(tmp_path.rglob("*"))
    assert re.search(r"not written by|no new files", error(run, "--out", out))
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "other" / "training.json").read_text() == "theirs"


def test_a_run_that_fails_leaves_the_model_that_was_there(unbroken, run, tmp_path, monkeypatch):
    """A model of nothing but NaN, written over a good one with exit code 0; a new tokenizer
    beside an old model."""
    shutil.copytree(unbroken, tmp_path / "model")
    assert "no tokenizer can be trained" in error(run, "--vocab-size", 10**6)
    monkeypatch.setattr(recipes.Settings, "rate", lambda *_: math.inf)
    assert "logits are not numbers" in error(run)
    assert os.listdir(tmp_path) == ["model"]
    assert contents(tmp_path / "model") == contents(unbroken)


# ---- what it learns from


def test_what_a_step_reads_and_its_rate(tokenizer):
    """A phase that begins too early, or a share that is taken of the rest only; a generator
    that runs on from step to step cannot be resumed; a cosine that ends at 0 before the run
    does, or steps that are rounded down."""
    settings = train.Settings(4096 * 1000 - 5, 1, 4096, 1e-3, 2048)
    rates = [settings.rate(step) for step in range(1000)]
    assert settings.steps == 1000 and rates[:100] == sorted(rates[:100])
    assert rates[99:] == sorted(rates[99:], reverse=True)
    found = [rates[step] for step in (0, 99, 500, 999)]
    assert found == pytest.approx([1e-5, 1e-3, 0.55e-3, 1e-4], rel=0.03)

    practice = exercises.Practice(tokenizer, np.array(tokenizer.encode(TEXT.read_text())))
    asked, begins = [], 0
    for kind in ("ordinary", "repeats", "retrieval"):
        draw = getattr(practice, kind)
        setattr(practice, kind, lambda rng, length, *followed, kind=kind, draw=draw: (
            asked.append((kind, length, *followed)) or draw(rng, length, *followed)
        ))  # fmt: skip
    for phase in recipes.PHASES:
        ends = math.ceil(phase.until * settings.steps)
        assert settings.phase(begins) == settings.phase(ends - 1) == phase
        asked.clear()
        steps = [recipes.windows(settings, practice, begins + step) for step in range(20)]
        assert {rows.shape for rows in steps} == {(4096 // phase.window, phase.window + 1)}
        kinds = [kind for kind, *_ in asked]
        for kind, share in (("repeats", phase.repeats), ("retrieval", phase.retrieval)):
            found, spread = kinds.count(kind) / len(kinds), math.sqrt(share * (1 - share))
            assert abs(found - share) <= 4 * spread / math.sqrt(len(kinds)), kind
        assert {x[2] for x in asked if x[0] == "retrieval"} <= {phase.followed}
        again = recipes.windows(settings, practice, begins)
        assert torch.equal(steps[0], again) and not torch.equal(steps[0], steps[1])
        other = recipes.windows(dataclasses.replace(settings, seed=2), practice, begins)
        assert not torch.equal(again, other)
        begins = ends
    assert begins == settings.steps
    other = dataclasses.replace(settings, repeats=0.2)
    assert other.phase(199).repeats == 1.0 and other.phase(200) == recipes.PHASES[1]


def test_what_is_held_out_and_how_a_document_ends(tokenizer):
    """Held-out text that was trained on makes a loss that means nothing; without EOS no model
    can learn to end a text."""
    kept, held_out = train.load_text(type("Options", (), {"text": [TEXT]}))
    whole = TEXT.read_text()
    assert kept[str(TEXT)] + held_out[str(TEXT)] == whole
    assert len(held_out[str(TEXT)]) == pytest.approx(len(whole) / 20, abs=1)
    ids = train.encode_all(tokenizer, {"a": "The sea", "b": "A ship"}).tolist()
    a, b = (tokenizer.encode(text, bos=False) for text in ("The sea", "A ship"))
    assert ids == [*a, tokenizer.eos_id, *b, tokenizer.eos_id]


def test_initial_weights():
    """Layers that add to x with a full deviation would drown what they add to."""
    model = tiny_llama(vocab_size=320, n_embd=64, head_dim=16, n_inner=96)
    recipes.initialise(model, 1)
    for name, weight in model.named_parameters():
        adds = name.endswith(("o.weight", "down.weight"))
        expected = 0.02 / math.sqrt(2 * 2) if adds else 0.02
        if weight.dim() == 2:
            assert weight.std().item() == pytest.approx(expected, rel=0.08), name


# ---- what people get wrong


@pytest.mark.parametrize("content, more, sentence", [
    (b"caf\xe9" * 1000, "", "not UTF-8"),
    (TEXT.read_bytes()[:8000], "", "too short for windows"),
    (TEXT.read_bytes()[:8000], "--vocab-size 20", "no tokenizer can be trained"),
    (b"", "", "no tokenizer can be trained"),
    (TEXT.read_bytes(), "--n-head 3 --n-kv-head 2", "multiple of"),
    (None, "", "cannot read"),
])  # fmt: skip
def test_text_and_sizes_that_do_not_do(run, tmp_path, content, more, sentence):
    """sentencepiece, numpy and the system say what is wrong in their own terms, and at length,
    or not at all."""
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    said = error(run, "--text", text, *more.split())
    assert sentence in said and set(os.listdir(tmp_path)) <= {"text.txt"}


@pytest.mark.parametrize("words", [
    "--tokens 0", "--tokens-per-step 128", "--seed -1", "--every 0", "--n-layer 0",
    "--vocab-size -3", f"--head-dim {2**40}", "--learning-rate nan", "--learning-rate=-1",
    "--repeats 0.35", "--rotary-dim 4", "--n-inner 4 --family mpt",
])  # fmt: skip
def test_flags_that_make_no_sense(program, words):
    """Steps without a window, a log that divides by zero, a first phase that ends after the
    second; a flag without effect, of another family."""
    code, _, err = program(train.main, "--out", "x", *words.split())
    assert code == 2 and re.split("[ =]", words)[0] in err.splitlines()[-1]
