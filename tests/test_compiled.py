"""compiled.py: a decode step as a program, which is given all that it reads."""

import shutil

import pytest
import torch
from conftest import FAMILIES, SETTINGS, some_tokens, tiny_model

from minilm_inf.fast import compiled as compiled_room
from minilm_inf.fast.reading import rings_of
from minilm_inf.writing.session import Session, generate

LM = SETTINGS["LM-Infinite"]


@pytest.fixture
def only_recorded(monkeypatch):
    """Programs without a code generator: what is recorded runs as it is. How often it was."""
    made = []

    def record(module, inputs):
        made.append(len(inputs))
        program = torch.export.export(module, inputs, strict=False).module()
        weights, *_, rings = inputs

        def run(flat):
            rest = iter(flat[len(weights) :])
            tokens, position = next(rest), next(rest)
            here = [tuple(x if x is None else next(rest) for x in ring) for ring in rings]
            assert next(rest, None) is None, "a tensor too many"
            return [program(tuple(flat[: len(weights)]), tokens, position, here)]

        return run

    monkeypatch.setattr(compiled_room, "compiled", record)
    monkeypatch.setattr(compiled_room.shutil, "which", lambda name: name)
    return made


@pytest.mark.parametrize(
    "family, setting, n",
    list(zip(FAMILIES, ("LM-Infinite", "sliding window", "Λ without ceiling"), (3, 1, 3))),
)
def test_a_compiled_session_writes_the_same(only_recorded, family, setting, n):
    """Catches a step that is bound to its first cache, or leaves a length as it was."""
    model, lm = tiny_model(family, dtype=torch.float32), SETTINGS[setting]
    ids = some_tokens(n)[0].tolist()
    written = [
        list(generate(model, ids, lm, 40, seed=2, stop_ids=(), compile=compile))
        for compile in (False, True)
    ]
    assert written[0] == written[1] and len(written[0]) == 40 and len(only_recorded) == 1


def test_one_program_serves_every_text(only_recorded):
    """Catches a program that is recorded again, or works in the rings of another text."""
    model = tiny_model("llama", dtype=torch.float32)
    texts = some_tokens(20)[0].tolist(), some_tokens(20, seed=5)[0].tolist()
    sessions = [Session(model, LM, compile=compile) for compile in (True, False)]
    sessions[1].decode = sessions[0].decode
    plain = [Session(model, LM) for _ in texts]
    for here, right, ids in zip(sessions, plain, texts):
        here.read(ids), right.read(ids)
    for id in texts[0]:
        for here, right in zip(sessions, plain):
            assert (here.read([id]) - right.read([id])).abs().max() <= 1e-5
    sessions[0].forget()
    assert len(only_recorded) == 1 and sessions[0].decode is sessions[1].decode


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_the_program_itself():
    """Catches weights that the program has copies of, and rings that it copies."""
    model = tiny_model("llama", dtype=torch.float32)
    here, right = Session(model, LM, compile=True), Session(model, LM)
    ids = some_tokens(40)[0].tolist()
    here.read(ids[:10]), right.read(ids[:10])
    for id in ids[10:30]:
        assert (here.read([id]) - right.read([id])).abs().max() <= 1e-5
    for mine, theirs in zip(rings_of(here.cache), rings_of(right.cache)):
        for x, y in zip(mine[:2], theirs[:2]):
            assert (x[:, :, : LM.n_local] - y[:, :, : LM.n_local]).abs().max() <= 1e-5
    with torch.no_grad():
        model.head.weight.mul_(2)  # of all that was read before, nothing changes
    assert (here.read(ids[30:31]) - right.read(ids[30:31])).abs().max() <= 2e-5


def test_an_interrupted_step_is_refused(only_recorded):
    """Catches rings in which some layers have a token more than others."""
    session = Session(tiny_model("llama", dtype=torch.float32), LM, compile=True)
    session.read([1, 2, 3])
    session.read([4])

    def interrupt(flat):
        raise KeyboardInterrupt

    session.decode.program = interrupt
    with pytest.raises(KeyboardInterrupt):
        session.read([5])
    with pytest.raises(ValueError, match="this session was interrupted"):
        session.read([5])
    with pytest.raises(ValueError, match="this cache was interrupted"):
        session.model(torch.tensor([[5]]), LM, session.cache)


def test_what_cannot_be_compiled_is_refused(monkeypatch):
    """Catches a traceback of the compiler's in place of a sentence."""
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="leave out --compile"):
        Session(model, None, compile=True)
    monkeypatch.setattr(compiled_room.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="install g"):
        Session(model, LM, compile=True)


def test_where_a_program_cannot_be_loaded(monkeypatch, capsys):
    """Catches a crash of PyTorch's that takes the user's text with it."""
    made = []

    def compile(function, **settings):
        made.append(settings)
        return function

    monkeypatch.setattr(compiled_room, "compiled", lambda module, inputs: None)
    monkeypatch.setattr(compiled_room.shutil, "which", lambda name: name)
    monkeypatch.setattr(torch, "compile", compile)
    model = tiny_model("llama", dtype=torch.float32)
    here, right = Session(model, LM, compile=True), Session(model, LM)
    for id in some_tokens(30)[0].tolist():
        assert (here.read([id]) - right.read([id])).abs().max() <= 1e-5
    assert len(made) == 1 and capsys.readouterr().err.count("torch.compile is used") == 1


@pytest.mark.slow
def test_a_package_that_cannot_be_loaded_is_noticed(tmp_path):
    """Catches a broken package that is tried in this very process."""
    (tmp_path / "step.pt2").write_bytes(b"no archive")
    assert not compiled_room.can_be_loaded(str(tmp_path / "step.pt2"))
