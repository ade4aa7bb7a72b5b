"""The program: its flags, its two outputs, its prompts, its ends."""

import importlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import ROOT

from minilm_inf import LMInfinite
from minilm_inf import generate as generate_ids
from minilm_inf.generate import PROMPT, main, parser
from minilm_inf.terminal import options, progress
from minilm_inf.writing.session import Session

GREEDY = {"temperature": 0.0, "stop_ids": ()}
PROGRAMS = "generate evaluate diagnose train inspect convert benchmark card conformance".split()
PROGRAMS += ["corpus"]


@pytest.fixture(autouse=True)
def loaded_once(shipped, monkeypatch):
    """The shipped folder is read once for all calls that name no other."""
    load = options.load

    def load_or_take(given):
        named = given.model, given.device, given.dtype
        return shipped if named == (options.SHIPPED, "auto", "auto") else load(given)

    monkeypatch.setattr(options, "load", load_or_take)


@pytest.fixture
def run(program):
    """A call of the program: arguments -> (exit code, stdout, stderr)."""
    return partial(program, main)


@pytest.fixture
def typed(monkeypatch):
    """A function that makes bytes the standard input."""

    def use(content: bytes):
        stdin = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", stdin)

    return use


def as_json(run, *arguments) -> dict:
    code, out, _ = run("--json", *arguments)
    assert code == 0
    return json.loads(out)


def long_prompt(tokenizer, n: int) -> str:
    """Plain words of at least n tokens."""
    words = "The ship went on and the men looked at the sea, for it was late. "
    return words * (n // len(tokenizer.encode(words)) + 1)


# ---- flags


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_takes_no_time(name, program, monkeypatch):
    """Seconds of PyTorch's import before a page of help; a page that is another without it."""
    monkeypatch.setenv("COLUMNS", "90")
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"minilm_inf.{name}", "--help"], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    after = os.times()
    assert done.returncode == 0 and not re.search(r"torch\._|numpy\._", done.stderr)
    assert after[2] + after[3] - before[2] - before[3] < 0.6, "seconds of CPU"
    module = importlib.import_module(f"minilm_inf.{name}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"minilm_inf.{name}.__main__")
    assert program(getattr(module, "main", main), "--help")[1] == done.stdout


def test_help_tells_every_flag_and_its_default():
    """argparse shows no default for a flag without a help text; a list of thirty flags in the
    order in which they were written; a flag that other programs call otherwise."""
    text = " ".join(parser().format_help().split())
    assert "None" not in text and "[]" not in text
    for action in parser()._actions:
        assert action.help, action.option_strings
        if action.default not in (None, False, "==SUPPRESS==", options.SHIPPED):
            assert f"(default: {action.default}" in text
    groups = [group.title for group in parser()._action_groups if group._group_actions]
    assert groups == ["options", "text", "sampling", "model", "attention", "speed", "output"]
    ours = parser().parse_args("-n 3 -t 0.5 --top-k 7".split())
    theirs = "--max-tokens 3 --temp 0.5 --top-k-sampling 7".split()
    assert parser().parse_args(theirs) == ours != parser().parse_args([])


WRONG = {  # what the last line of stderr names -> flags, a set of them a line
    "-n": "-n -1\n-n many", "temperature": "-t -1\n-t nan", "top_k": "--top-k -1",
    "top_p": "--top-p 0", "--dtype": "--dtype int4", "--seed": f"--seed x\n--seed {'9' * 5000}",
    "--n-local": f"--n-local 0\n--n-local {10**30}", "--n-global": "--n-global -1",
    "--distance-ceiling": "--distance-ceiling low",
    "--threads": f"--threads 0\n--threads=--\n--threads {2**63}",
    "--prefill-chunk": "--prefill-chunk 0", "--attention": "--attention some",
    "--unknown": "--unknown", "not allowed with": "-p a -f b",
    "--system has no meaning": "--system x",
    "--n-local has no meaning": "--attention full --n-local 8",
    "--n-global has no meaning": "--attention full --n-global 8",
    "--top-k-middle has no meaning": "--attention full --top-k-middle 8",
    "--middle has no meaning": "--middle disk", "one text at a time": "--explain -p a -p b",
    "have no meaning with --interactive":
        "--json -i\n-p a -i\n-f a -i\n--explain -i\n--plan -i",
}  # fmt: skip


@pytest.mark.parametrize("word", WRONG)
def test_flags_that_make_no_sense(run, word):
    """A bad value that is clipped or ignored makes a text that nobody asked for; a page of
    flags in which the mistake is not seen."""
    for line in WRONG[word].splitlines():
        code, out, err = run(*line.split())
        assert code == 2 and not out and err.startswith("usage: "), line
        assert err.count("\n") == 2 and word in err.splitlines()[-1], line


def test_attention_flags_are_the_method_s_settings(run, shipped):
    """A flag that is parsed and dropped: the demo would compare a model with itself; visible
    tokens, and a note of those that are not, that come from another place than the mask."""
    model, tokenizer = shipped
    prompt, seen = long_prompt(tokenizer, 60), set()
    ids = tokenizer.encode(prompt)
    for flags, lm in (
        ("", LMInfinite(256, 10, 256)), ("--attention full", None),
        ("--n-local 20 --n-global 3", LMInfinite(20, 3, 20)),
        ("--n-local 20 --distance-ceiling 9", LMInfinite(20, 10, 9)),
        ("--n-local 20 --n-global 0", LMInfinite(20, 0, 20)),
        ("--attention full --distance-ceiling 20", LMInfinite(None, 0, 20)),
    ):  # fmt: skip
        given = [*flags.split(), "-p", prompt, "-n", 3, "-t", 0, "--ignore-eos"]
        code, out, err = run("--json", *given)
        result = json.loads(out)
        assert result["prompt_ids"] == ids
        assert result["ids"] == list(generate_ids(model, ids, lm, 3, **GREEDY))
        assert result["settings"]["sees"] == (lm and vars(lm))
        logits = Session(model, lm).read(ids).log_softmax(-1)
        first = result["logprobs"][0]
        assert first == pytest.approx(float(logits[result["ids"][0]]), abs=1e-4)
        assert result["visible"] == (len(ids) + 2 if lm is None else lm.visible(len(ids) + 2))
        hidden = 0 if lm is None else len(ids) - lm.visible(len(ids))
        note = f"note: {hidden} of the prompt's {len(ids)} tokens"
        assert (note in err) == ("note: " in err) == (hidden > 0)
        seen.add(round(first, 5))
    assert len(seen) == 5, "equal texts under all settings would let this pass without a mask"


def test_the_other_flags_reach_the_draw(run, tokenizer):
    """A setting that is parsed, checked, and then dropped; a global generator, or a clock, in
    the draw."""
    texts = [run("-n", 12, "--seed", seed)[1] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    greedy = as_json(run, "-n", 8, "-t", 0)
    hot = ["-n", 8, "-t", 30]
    assert as_json(run, *hot, "--top-k", 0)["ids"] != greedy["ids"]
    for cold in (["--top-k", 1], ["--top-p", 1e-6]):
        assert as_json(run, *hot, *cold)["ids"] == greedy["ids"]
    for dtype, times in (("bfloat16", 0.5), ("float64", 2)):
        other = as_json(run, "-n", 8, "--dtype", dtype)
        assert other["cache_bytes"] == times * greedy["cache_bytes"]
    assert as_json(run, "-n", 0, "--device", "cpu", "--threads", 2)["text"] == ""
    assert torch.get_num_threads() == 2
    flags = ["-p", long_prompt(tokenizer, 40), "--n-local", 16, "-t", 0, "-n", 4]
    assert as_json(run, *flags, "--prefill-chunk", 7)["ids"] == as_json(run, *flags)["ids"]


# ---- prompts


def test_prompts_from_an_argument_stdin_and_a_file(run, typed, tmp_path):
    """A newline that is added or taken away on one of three ways in changes the text; carriage
    returns, and a byte order mark, that become part of it; a pipe that is not read, and one
    that holds nothing, as programs without a terminal have."""
    prompt = "It was a bright morning,\nand “all” was well\n"
    content = ("\ufeff" + prompt).replace("\n", "\r\n", 1).encode()
    (tmp_path / "prompt.txt").write_bytes(content)
    typed(content)
    ways = (["-p", prompt], ["-p", "-"], ["-f", tmp_path / "prompt.txt"])
    results = [as_json(run, *way, "-n", 2) for way in ways]
    assert all(result["prompt"] == prompt for result in results)
    assert results[0]["ids"] == results[1]["ids"] == results[2]["ids"]
    assert as_json(run, "-p", "", "-n", 3)["tokens"] == 4, "an empty prompt is BOS alone"
    typed(b"The sea")
    _, out, _ = run("-p", "-", "-p", "Oh", "-n", 2, "--json")
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == ["The sea", "Oh"]
    for piped, found in ((b"The sea\r\n", "The sea"), (b"", PROMPT)):
        typed(piped)
        assert as_json(run, "-n", 1)["prompt"] == found


def test_what_cannot_be_read(run, typed, tmp_path):
    """A traceback is no answer to a mistyped file name; and PyTorch's own sentence about a
    device is a page long."""
    (tmp_path / "latin").write_bytes("caf\xe9 au lait".encode("latin-1"))
    (tmp_path / "empty").touch()
    for flag, path, words in (
        ("-f", tmp_path / "missing", "No such file"), ("-f", tmp_path, "directory"),
        ("-f", tmp_path / "latin", "not UTF-8 text (byte 3)"),
        ("-f", tmp_path / "empty", "is empty"), ("-m", tmp_path, str(tmp_path)),
        ("--device", "telescope", "telescope cannot be used here: try cpu"),
        ("--device", "cuda:99", "try cpu"), ("-p", "-", "standard input is empty"),
    ):  # fmt: skip
        code, out, err = run(flag, path)
        assert code == 1 and not out and err.startswith("error: ") and err.count("\n") == 1
        assert words in err
    typed(b"\xff")
    assert "standard input is not UTF-8" in run()[2]


def test_a_terminal_shows_the_prompt_before_the_text(run, monkeypatch):
    """A text that begins in the middle of a sentence, for whoever did not type its beginning;
    a file or a pipe that gets more than the text; a screen full of a book."""
    text = run("-n", 3)[1]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run("-n", 3)[1] == f"\033[2m{PROMPT}\033[0m{text}"
    assert run("-n", 3, "-q")[1] == text
    out = run("-n", 1, "-p", "x" * 900 + "The end", "-p", "Oh")[1]
    assert re.match(r"\[1\] \033\[2m\.{3}x{393}The end\033\[0m.*\n\[2\] \033\[2mOh\033", out)


# ---- what is written


def test_json_is_one_object_and_nothing_else(run, shipped):
    """A note or a streamed word on stdout breaks whoever parses it; counts that come from
    another place than the cache and the mask."""
    model, tokenizer = shipped
    flags = ["-n", 12, "-p", "The sea “was”", "--seed", 7, "--n-local", 16, "--n-global", 4]
    code, out, err = run("--json", *flags)
    result, lm = json.loads(out), LMInfinite(16, 4, 16)
    assert code == 0 and out.count("\n") == 1
    ids = result["prompt_ids"]
    expected = list(generate_ids(model, ids, lm, 12, seed=7))
    assert result["ids"] == expected
    assert tokenizer.decode(ids + expected) == tokenizer.decode(ids) + result["text"]
    assert result["timings"]["prefill_s"] > 0 and result["timings"]["decode_s"] > 0
    settings = result["settings"]
    assert settings["seed"] == 7 and settings["temperature"] == 0.8 and settings["top_k"] == 50
    session, read = Session(model, lm), len(ids) + 11  # the last token was not
    last = session.read(ids + expected[:-1]).log_softmax(-1)[expected[-1]]  # uncooled
    assert len(result["logprobs"]) == 12
    assert result["logprobs"][-1] == pytest.approx(float(last), abs=1e-4)
    number = r"[\d,]+"
    assert re.fullmatch(
        rf"prompt {len(ids)} tokens \({number} tokens/s\), new 12 tokens \({number} tokens/s\)"
        rf"\ncache {session.cache.nbytes:,} bytes; the last query sees {lm.visible(read)} of "
        rf"{read} tokens\nnote: cut at -n 12; with a larger -n the text goes on\n", err,
    )  # fmt: skip


def test_text_arrives_piece_by_piece(run, typed, monkeypatch):
    """A space lost between two pieces; a piece that is printed twice; a stream that is printed
    at its end; -q that leaves a note on stderr fills a log; -n 0 that divides by zero."""
    assert run("-n", 20)[1] == as_json(run, "-n", 20)["text"] + "\n"
    assert run("-q", "-n", 2, "-p", "once " * 300)[2] == ""
    typed(b"The sea\n")
    code, out, err = run("-i", "-q", "-n", 3)
    assert code == 0 and out and not err
    code, out, err = run("-n", 0)
    assert code == 0 and out == "\n" and "new 0 tokens" in err and "note: " not in err
    shown = []
    monkeypatch.setattr(sys.modules["minilm_inf.generate"], "show_now", shown.append)
    run("-n", 20)
    assert len([piece for piece in shown if piece]) > 10


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_long_prompt_shows_progress(run, tokenizer, monkeypatch, is_terminal):
    """A minute in which nobody knows whether the program still runs; a log of one line that is
    written over itself."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    for name in ("EVERY", "EVERY_IN_A_LOG"):
        monkeypatch.setattr(progress, name, 0)
    prompt = long_prompt(tokenizer, 40)
    n, flags = len(tokenizer.encode(prompt)), ["-p", prompt, "-n", 1, "--prefill-chunk", 16]
    found = re.split(r"[\r\n]+", run(*flags)[2].strip())[:-3]
    assert [int(line.split("/")[0]) for line in found] == list(range(16, n, 16))
    line = rf"16/{n} tokens  [\d,]+ tokens/s  [\d,]+ s left *"
    assert re.fullmatch(line, found[0])
    assert ("\r" in run(*flags)[2]) == is_terminal
    assert "left" not in run("-q", *flags)[2]


@contextmanager
def likeliest(model, id: int, after: int):
    """A model that writes `id` once it has read `after` tokens."""
    head, read = model.head.forward, []

    def forward(x):
        logits = head(x).clone()
        read.append(None)
        if len(read) > after:
            logits[..., id] = 1e4
        return logits

    model.head.forward = forward
    try:
        yield
    finally:
        model.head.forward = head


def test_how_a_text_ends(run, shipped):
    """A model that has said its last word, and is made to babble on; or </s> in the text; the
    bytes of half a character, which wait in the stream, and must not be lost or crash; a text
    that was cut, or was not, and nobody is told."""
    model, tokenizer = shipped
    with likeliest(model, tokenizer.eos_id, after=5):
        _, out, err = run("-n", 20, "--json")
    result = json.loads(out)
    assert len(result["ids"]) == 6 and result["ids"].index(tokenizer.eos_id) == 5
    assert result["tokens"] == result["visible"] == len(result["prompt_ids"]) + 5
    assert len(result["logprobs"]) == 6 and "</s>" not in result["text"] and "cut" not in err
    with likeliest(model, tokenizer.eos_id, after=5):
        _, out, err = run("-n", 20, "--json", "--ignore-eos")
    assert json.loads(out)["ids"][5:] == [tokenizer.eos_id] * 15 and "cut" not in err
    with likeliest(model, tokenizer.encode("漢", bos=False)[-3], after=3):
        assert as_json(run, "-n", 4)["text"].endswith("\ufffd")


# ---- a conversation


@pytest.fixture
def prompts(monkeypatch):
    """The ids of every prompt that a session is given, in a list that grows."""
    given, read = [], Session.read_all

    def spy(session, texts, *show):
        given.extend(list(ids) for ids in texts if ids)  # writing reads no new ids
        return read(session, texts, *show)

    monkeypatch.setattr(Session, "read_all", spy)
    return given


@pytest.mark.parametrize("end, leave", [("\n", "/exit"), ("\r\n", "quit"), ("\r", "q "),
                                        ("\n", "exit")])  # fmt: skip
def test_a_conversation_grows_and_ends(run, typed, tokenizer, prompts, end, leave):
    """Each line is read after all that came before it, with BOS once, and /reset forgets; an
    unknown command or a torn character is no reason to lose the text so far; /exit with a
    carriage return, which is no command, or a prompt with one."""
    lines = [
        b"\xef\xbb\xbfThe sea", b"/stats", b"", b"\xff\xfe", b"/hlep", b"and the ship",
        b"/stats", b"/reset", b"/stats", b"/help", b"The sea", b"/stats", leave.encode(),
        b"not read", b"",
    ]  # fmt: skip
    typed(end.encode().join(lines))
    code, out, err = run("-i", "-n", 6, "-t", 0)
    assert code == 0
    replies = out.split("\n")[:-1]
    assert len(replies) == 3 and replies[0] == replies[2] and "not read" not in out
    counts = re.findall(r"prompt (\d+) tokens .* new (\d+) tokens", err)
    assert [new for _, new in counts] == ["6", "6", "6"] and err.count("note: cut at -n 6") == 3
    first = tokenizer.encode("The sea")
    assert prompts == [first, tokenizer.encode("\nand the ship", bos=False), first]
    assert [int(n) for n, _ in counts] == [len(ids) for ids in prompts]
    seen = [int(n) for n in re.findall(r"sees \d+ of (\d+) tokens", err)]
    assert seen == [len(first) + 5, len(first) + 6 + len(prompts[1]) + 5, len(first) + 5]
    assert "nothing was written" in err and "/help" in err.splitlines()[0]
    assert "no command /hlep" in err and "not UTF-8" in err
    assert all(f"{command} " in err for command in ("/stats", "/reset", "/exit"))


@pytest.mark.parametrize("lm", [None, LMInfinite(12, 10, 12)], ids=["vanilla", "LM-Infinite"])
def test_ctrl_c_in_a_reply_leaves_all_that_was_said(run, typed, shipped, monkeypatch, lm):
    """Catches a token that is lost, or read twice, when a reply is stopped; a conversation that
    begins again with every line."""
    model, tokenizer = shipped
    shown = []

    def show(piece):
        shown.append(piece)
        if len(shown) == 5:  # "", and four pieces
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("minilm_inf.writing.conversation.show_now", show)
    typed(b"The sea\nand the ship\n/exit\n")
    flags = ["--attention", "full"] if lm is None else ["--n-local", 12]
    code, _, err = run("-i", "-n", 9, "-t", 0, "--ignore-eos", *flags)
    text = tokenizer.encode("The sea")
    text += generate_ids(model, text, lm, 4, **GREEDY)
    text += tokenizer.encode("\nand the ship", bos=False)
    right = list(generate_ids(model, text, lm, 9, **GREEDY))
    assert code == 0 and "stopped: what was written so far stays" in err
    assert "".join(shown[5:]) == tokenizer.decode(text + right)[len(tokenizer.decode(text)) :]


@pytest.mark.parametrize(
    "number, code", [(signal.SIGINT, 0), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_signal_at_the_prompt(run, monkeypatch, number, code):
    """Catches a conversation that is lost for one key, and one that nobody can end."""
    lines = iter([number, "/stats", "/exit"])

    def read(_):
        line = next(lines)
        return line if isinstance(line, str) else signal.raise_signal(line) or ""

    monkeypatch.setattr("builtins.input", read)
    found, _, err = run("-i")
    assert found == code and ("/exit leaves" in err) == (code == 0)
    assert ("stopped" in err) == (code == 143)


def test_outputs_of_other_kinds(monkeypatch):
    """What print has buffered for a reader that has left would fail when the interpreter ends;
    an accent would end the program where the output is ASCII; a notebook's output, or a
    StringIO, cannot be told how to encode."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["--json", "-q", "-n", "3", "-p", "Oh"]) == 0
    ascii = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    for stdout, shown in ((ascii, "caf? ?"), (io.StringIO(), "café 漢")):
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["-p", "café 漢", "--json", "-q", "-n", "3"]) == 0
        stdout.seek(0)
        assert stdout.read().startswith(f'{{"prompt": "{shown}')


# ---- several prompts


def test_several_prompts_are_each_as_if_alone(run, shipped, monkeypatch):
    """Texts that take each other's place, or that one padding changes, or that end with
    another's last id; texts in a row that nobody can tell apart."""
    prompts = "The captain said", "It was late, and the men were very tired of it; for", "Oh"
    together = [flag for prompt in prompts for flag in ("-p", prompt)]
    settings = ["-n", 9, "--seed", 5]
    usual = [as_json(run, "-p", prompt, *settings)["ids"] for prompt in prompts]
    ends = usual[0][2], usual[1][5]
    monkeypatch.setattr(shipped[0], "config", replace(shipped[0].config, eos_ids=ends))
    alone = [as_json(run, "-p", prompt, *settings) for prompt in prompts]
    code, out, _ = run(*together, *settings, "--json")
    same = "prompt text prompt_ids ids tokens visible settings".split()
    for ours, theirs in zip(map(json.loads, out.splitlines()), alone, strict=True):
        assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}
        assert ours["logprobs"] == pytest.approx(theirs["logprobs"], abs=1e-4)
    for found, whole in zip(alone, usual):
        cut = next((at for at, id in enumerate(whole) if id in ends), 8)
        assert found["ids"] == whole[: cut + 1]
    new = sum(len(found["ids"]) - (found["ids"][-1] in ends) for found in alone)
    code, out, err = run(*together, *settings)
    assert code == 0 and re.search(rf"^3 prompts, prompt \d+ .* new {new} tokens", err, re.M)
    assert out == "".join(f"[{n}] {found['text']}\n" for n, found in enumerate(alone, 1))


@pytest.mark.parametrize("flags", [["-n", 0], ["--json"], ["-p", "a", "-p", "bc"], ["-i"]])
def test_weights_that_are_not_numbers(run, typed, shipped, monkeypatch, flags):
    """Catches a text made of nothing, and NaN in JSON, in whichever way the model is asked."""
    head = shipped[0].head
    nan = lambda x: head.weight.new_full((*x.shape[:2], 2048), torch.nan)  # noqa: E731
    monkeypatch.setattr(head, "forward", nan)
    typed(b"The sea\n")
    code, out, err = run(*flags)
    assert code == 1 and not out.strip()
    assert re.match(r"(/help.*\n)?error: the model's logits are not numbers.*\n$", err)
