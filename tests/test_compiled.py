"""compiled.py: a decode step as a program, which is given all that it reads."""

import contextlib
import shutil

import pytest
import torch
from conftest import FAMILIES, SETTINGS, some_tokens, tiny_model

from minilm_inf.checkpoint import load_model, save
from minilm_inf.fast import compiled as compiled_room
from minilm_inf.writing.session import Session, generate

LM = SETTINGS["LM-Infinite"]


@pytest.fixture(autouse=True)
def kept_here(monkeypatch, tmp_path):
    """No test finds, or leaves, a program in the user's own folder."""
    monkeypatch.setattr(compiled_room, "KEPT_IN", tmp_path / "kept")
    monkeypatch.setattr(compiled_room.shutil, "which", lambda name: name)
    return tmp_path / "kept"


@pytest.fixture
def only_recorded(monkeypatch):
    """Programs without a code generator: what is recorded runs as it is. How often it was."""
    made = []

    def compile_block(block, inputs, path):
        with torch.inference_mode(False), torch.no_grad():
            inputs, dims = compiled_room.any_columns(inputs)
            program = torch.export.export(
                block, (inputs,), dynamic_shapes=(dims,), strict=False
            )
        made.append(program.module())

    monkeypatch.setattr(compiled_room, "compile_block", compile_block)
    monkeypatch.setattr(compiled_room, "can_be_loaded", lambda path: True)
    monkeypatch.setattr(compiled_room.shutil, "copyfile", lambda path, own: own.touch())
    monkeypatch.setattr(compiled_room, "loaded", lambda path: lambda flat: [made[-1](flat)])
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


def test_a_program_is_kept(only_recorded, kept_here, capsys):
    """Catches a model that is compiled again by the next run, and a program that is taken for
    another model, or for another number of threads."""
    model = tiny_model("llama", dtype=torch.float32)
    for _ in range(2):
        list(generate(model, [1, 2, 3], LM, 3, stop_ids=(), compile=True))
    assert len(only_recorded) == len(list(kept_here.glob("step-*.pt2"))) == 1
    assert capsys.readouterr().err.count("compiling the decode step") == 1
    list(
        generate(tiny_model("mpt", dtype=torch.float32), [1], LM, 3, stop_ids=(), compile=True)
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        list(generate(model, [1, 2, 3], LM, 3, stop_ids=(), compile=True))
    finally:
        torch.set_num_threads(threads)
    assert len(only_recorded) == len(list(kept_here.iterdir())) == 3


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
def test_the_program_itself(kept_here):
    """Catches weights that the program has copies of, rings that it copies, a number of columns
    that it was bound to, and a program on disk that is not whole."""
    model = tiny_model("llama", dtype=torch.float32)
    sessions = [Session(model, LM, compile=True) for _ in range(2)]
    right, ids = Session(model, LM), some_tokens(60)[0].tolist()
    for number, here in enumerate(sessions):
        right.forget()
        for id in ids[:50]:  # rings of 4, 8, ... n_local, and round again
            assert (here.read([id]) - right.read([id])).abs().max() <= 1e-5
        for mine, theirs in zip(here.cache.layers, right.cache.layers):
            assert (mine.ring - theirs.ring).abs().max() <= 1e-5
        [program] = kept_here.iterdir()
        if number == 0:
            program.write_bytes(program.read_bytes()[:1000])
    with torch.no_grad():
        model.head.weight.mul_(2)  # of all that was read before, nothing changes
        model.blocks[1].o.weight.mul_(2)
    assert (here.read(ids[50:51]) - right.read(ids[50:51])).abs().max() <= 2e-5


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


def test_where_a_program_cannot_be_loaded(only_recorded, monkeypatch, kept_here):
    """Catches a crash of PyTorch's that takes the user's text with it, and a program that is
    kept, and would crash the next run."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(compiled_room, "can_be_loaded", lambda path: False)
    session = Session(tiny_model("llama", dtype=torch.float32), LM, compile=True)
    session.read([1, 2, 3])
    with pytest.raises(ValueError, match="leave out --compile"):
        session.read([4])
    assert not kept_here.exists()


def test_a_graph_is_recorded_for_each_cache(monkeypatch):
    """Catches a replay with an old token, or in the rings of another text. A stand-in for a
    CUDA graph runs again what it recorded, on the tensors that it recorded."""

    recorded = []

    class Graph(contextlib.nullcontext):
        def __enter__(self):
            recorded.append(self)
            return self

        def replay(self):
            self.logits.copy_(model.decode(*self.read))

    class Stream(contextlib.nullcontext):
        def wait_stream(self, other):
            """Nothing runs beside anything else here."""

    def decode(*read):
        logits = model.decode(*read)
        if recorded and not hasattr(recorded[-1], "read"):
            recorded[-1].read, recorded[-1].logits = read, logits
        return logits

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: graph)
    for name in ("Stream", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *where: Stream())
    model = tiny_model("llama", dtype=torch.float32)
    here, right = Session(model, LM), Session(model, LM)
    here.decode = compiled_room.GraphedStep(decode)
    for text in some_tokens(40)[0].tolist(), some_tokens(40, seed=3)[0].tolist():
        for session in (here, right):
            session.forget()
            session.read(text[:5])
        for id in text[5:]:
            assert (here.read([id]) - right.read([id])).abs().max() <= 1e-5
    assert len(recorded) == 2


@pytest.mark.slow
def test_a_package_that_cannot_be_loaded_is_noticed(tmp_path):
    """Catches a broken package that is tried in this very process."""
    (tmp_path / "step.pt2").write_bytes(b"no archive")
    assert not compiled_room.can_be_loaded(tmp_path / "step.pt2")


def test_int8_weights_come_along(only_recorded, tmp_path):
    """Catches a program that has one layer's rounded weights built in, or lacks a scale."""
    save(tiny_model("llama", dtype=torch.float32, vocab_size=100), tmp_path)
    model, lm = load_model(tmp_path, dtype=torch.int8), SETTINGS["LM-Infinite"]
    written = [
        list(generate(model, [1, 2, 3], lm, 40, seed=2, stop_ids=(), compile=compile))
        for compile in (False, True)
    ]
    assert written[0] == written[1] and len(only_recorded) == 1
