"""Saved contexts: a text once read is gone on from, bit for bit, and nothing else is."""

import re
from functools import partial

import pytest
import torch
from conftest import (
    FAMILIES,
    SETTINGS,
    error,
    fuzz,
    interrupted,
    named,
    some_tokens,
    tiny_model,
)
from safetensors.torch import save_file

from minilm_inf import LMInfinite
from minilm_inf.checkpoint.run_state import CONTEXT, read_state, write_state
from minilm_inf.generate import main
from minilm_inf.terminal import blocks
from minilm_inf.writing.explain import explain
from minilm_inf.writing.sampling import seeded
from minilm_inf.writing.session import Session, write_all

LM, TOP_K = SETTINGS["LM-Infinite"], LMInfinite(6, 2, 6, top_k=3)
SIGHTS = LM, TOP_K, SETTINGS["ceiling below the window"], LMInfinite(3, 7, 3), None


def texts_of(*lengths) -> list[list[int]]:
    return [some_tokens(n, seed=n)[0].tolist() if n else [] for n in lengths]


def written(session, texts, n=8) -> list:
    """What a session writes after these ids, by seeds, with the log-probabilities."""
    logits, draws = session.read_all(texts), [seeded(n) for n in range(session.n_texts)]
    return [logits.tolist(), *write_all(session, logits, n, 2.0, 0, 1.0, draws)]


@pytest.mark.parametrize(
    "draw",
    [dict(family="llama", lm=LM, lengths=(4,), before=0, more=1, dtype=None, settled=True)]
    + fuzz(3, 15, family=FAMILIES, lm=SIGHTS, lengths=[(1,), (4,), (40,), (9, 1, 25)],
           before=[0, 1, 5], more=[0, 1, 3, 40], dtype=[torch.float32, torch.bfloat16]),
    ids=named,
)  # fmt: skip
def test_a_saved_text_goes_on_bit_for_bit(draw, tmp_path, monkeypatch):
    """Catches a ring that is turned, padding or a written token that is forgotten, logits that
    another kind of step would have made, and what a compiled step made room for."""
    monkeypatch.setattr(blocks, "TOKENS_PER_BLOCK", 8)
    lm, n = draw["lm"], len(draw["lengths"])
    new = partial(Session, tiny_model(draw["family"], dtype=draw["dtype"]), lm, 7, n_texts=n)
    first, saved, more = new(), tmp_path / "a" / "x", texts_of(*[draw["more"]] * n)
    written(first, texts_of(*draw["lengths"]), draw["before"])
    if "settled" in draw:
        first.cache.settle()
    n_bytes, past = first.save(saved)
    facts, tensors = read_state(saved, CONTEXT)
    assert n_bytes == saved.stat().st_size and facts["tokens"] == first.lengths
    assert past == sum(x.nbytes for name, x in tensors.items() if ".middle." in name)
    assert (past > 0) == (lm == TOP_K)
    lengths, right = first.lengths, written(first, more)
    for middle in ("ram", "disk"):
        later = new(middle=middle)
        later.load(saved)
        if "settled" in draw:
            later.cache.settle()
        assert later.lengths == lengths and written(later, more) == right


def test_its_size_does_not_grow_with_the_text(tmp_path):
    """Catches a context that holds its text; one with top-k whose past is not whole."""
    for lm, grows in ((LM, 0), (TOP_K, 400 * 2 * 2 * 2 * 8 * 8)):
        session, sizes = Session(tiny_model("llama"), lm), []
        for n in (100, 400):
            session.read(texts_of(n)[0])
            sizes.append(session.save(tmp_path / "x"))
        (small, _), (large, past) = sizes
        assert past - sizes[0][1] == grows and large - small - grows in (0, 8)  # of the header


def test_what_is_no_context_of_this_session_is_refused(tmp_path):
    """Catches a text that goes on by other weights or with another sight, a file that is cut
    or changed, and a session that is lost because a file was refused."""
    model, path, [text] = tiny_model("llama"), tmp_path / "x", texts_of(30)
    session, others = Session(model, TOP_K), [tiny_model("llama") for _ in range(2)]
    with pytest.raises(ValueError, match="nothing was read yet"):
        session.save(path)
    right = session.read(text)
    session.save(path)
    others[0].head.weight.data[3, 4] += 1e-12
    object.__setattr__(others[1].config, "norm_eps", 1e-4)
    for name, *other in (
        ("model", others[0], TOP_K), ("model", others[1], TOP_K), ("attention", model, LM),
        ("number of texts", model, TOP_K, 9, False, "ram", 2),
        ("dtype", tiny_model("llama", dtype=torch.float32), TOP_K),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"was saved with another {name}"):
            Session(*other).load(path)
    facts, state = read_state(path, CONTEXT)
    state = {name: x.clone() for name, x in state.items()}
    whole, without = path.read_bytes(), {"logits": state["logits"]}
    for put, told in (
        (path.unlink, "cannot read .*No such file"), (path.mkdir, "cannot read .*directory"),
        (lambda: path.rmdir() or path.write_bytes(b""), "no whole context"),
        (lambda: path.write_bytes(whole[:-9]), "no whole context"),
        (lambda: path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1])), "edited or damaged"),
        (lambda: write_state(path, without, facts, CONTEXT), "no whole context"),
        (lambda: write_state(path, state | {"cache.a": right}, facts, CONTEXT), "no whole"),
        (lambda: write_state(path, state, facts | {"unread": [[99]]}, CONTEXT), "no whole"),
        (lambda: write_state(path, state, facts), "no context of this version"),
        (lambda: save_file({"a": right}, path), "no context of this version"),
    ):  # fmt: skip
        put()
        with pytest.raises(ValueError, match=told):
            session.load(path)
        assert session.read([]).equal(right) and session.lengths == [30]
    with pytest.raises(ValueError, match="not written by this program"):
        session.save(path)
    path.write_bytes(whole)
    with interrupted(model.blocks[1]):
        session.read([1])
    with pytest.raises(ValueError, match="was interrupted"):
        session.save(path)
    session.load(path)
    with pytest.raises(ValueError, match="was not saved"):
        explain(session)
    assert session.read([1]).isfinite().all() and explain(session)


@pytest.fixture
def run(program, tmp_path, monkeypatch, shipped):
    """A call of generate in a folder: (its flags, what is typed) -> code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minilm_inf.terminal.options.load", lambda _: shipped)
    (tmp_path / "book").write_text("The ship went on, and the men looked at the sea. " * 9)
    (tmp_path / "notes").write_text("mine")

    def call(words, *lines):
        typed = iter(lines)
        monkeypatch.setattr("builtins.input", lambda _: next(typed))
        return program(main, "-n", 20, "--n-local", 30, "--ignore-eos", *words.split())

    return call


def test_the_program_saves_and_goes_on(run, tmp_path, tokenizer):
    """Catches a context saved after its text was written on; a prompt that is read as if it
    began a text, or one that nobody gave; seeds that an earlier reply used up; counts of the
    prompt alone."""
    code, text, err = run("-f book --seed 3 --save a")
    saved = (tmp_path / "a").read_bytes()
    more = 20 + len(tokenizer.encode("\nOh", bos=False))
    n = int(re.search(rf"^saved (\d+) tokens as {len(saved):,} bytes: a$", err, re.M)[1])
    assert code == 0 and run("-f book -q -n 0 --save b")[1:] == ("\n", "")
    assert saved == (tmp_path / "b").read_bytes()
    assert run("--load a --seed 3")[1] == text != run("--load a --seed 4")[1]
    answer = run("--load a -p Oh --seed 3 --save c")[1].strip("\n")
    found = run("--load a -p Oh --json")[1]
    assert f'"tokens": {n + more}, "visible": 40' in found
    assert run("--load c --seed 3")[1] == answer + "\n"
    talk = "/load a", "Oh", "/save d", "/load c", "/stats", "And", "/load a", "Oh", "/exit"
    code, out, err = run("-i --seed 3", *talk)
    assert code == 0 and f"saved {n + more} tokens" in err and f"loaded {n} tokens: a" in err
    assert out.startswith(answer) and out.strip("\n").endswith(answer)
    both = run("-f book -n 0 --top-k-middle 2 --save k")[2]
    assert re.search(r"bytes, [\d,]+ of them the past that --top-k-middle needs: k\n", both)


def test_the_program_s_refusals(run, tmp_path):
    """Catches a book that was read for nothing, since its context cannot be saved; somebody's
    notes overwritten; a conversation that a mistyped name ends."""
    for words in ("--load nothing", "--load notes", "--load .", "--save notes", "--save book"):
        found = error(run, words)
        assert f"{words} was not written by this program" in found or "--load" in words
    for words in ("-i --save x", "--load x --explain", "--load x --plan", "--save x --plan"):
        assert run(words)[0] == 2
    lines = "/load nothing", "/save", "/save x", "The sea", "/save notes", "/saved", "/exit"
    code, out, err = run("-i", *lines)
    assert code == 0 and out.strip() and "nothing: No such file" in err
    assert "nothing was read yet" in err and "no command /saved" in err
    assert (tmp_path / "notes").read_text() == "mine" and len(list(tmp_path.iterdir())) == 2
