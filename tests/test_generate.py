"""The program: its flags, its two outputs, its prompts, its ends."""

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

from minilm_inf import LMInfinite, generate
from minilm_inf import generate as generate_ids
from minilm_inf.generate import PROMPT, main, parser
from minilm_inf.writing.session import Session

COMMAND = [sys.executable, "-m", "minilm_inf.generate"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}


@pytest.fixture(autouse=True)
def loaded_once(shipped, monkeypatch):
    """The shipped folder is read once for all calls that name no other."""
    from minilm_inf.terminal import options

    load = options.load

    def load_or_take(given):
        usual = given.model == options.SHIPPED and (given.device, given.dtype) == (
            "auto",
            "auto",
        )
        return shipped if usual else load(given)

    monkeypatch.setattr("minilm_inf.terminal.options.load", load_or_take)


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


def one_sentence(err: str, *words: str):
    """An error is one line for people, and holds these words."""
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    for word in words:
        assert word in err


def long_prompt(tokenizer, n: int) -> str:
    """Plain words of at least n tokens."""
    words = "The ship went on and the men looked at the sea, for it was late. "
    return words * (n // len(tokenizer.encode(words)) + 1)


# ---- as a newcomer meets it


def test_no_arguments_and_nothing_else():
    """A program that needs a flag, a network or a terminal to show anything at all."""
    done = subprocess.run(
        COMMAND, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    assert len(done.stdout.split()) > 20 and done.stdout.endswith("\n")
    lines = done.stderr.splitlines()
    assert len(lines) == 2, "statistics, and no warning"
    assert re.fullmatch(
        r"prompt \d+ tokens \([\d,]+ tokens/s\), new \d+ tokens \([\d,]+ tokens/s\)", lines[0]
    )
    assert re.fullmatch(r"cache [\d,]+ bytes; the last query sees \d+ of \d+ tokens", lines[1])


def test_help_tells_every_flag_and_its_default():
    """argparse shows no default for a flag without a help text; a list of thirty flags in the
    order in which they were written."""
    lines = parser().format_help()
    assert "None" not in lines and "[]" not in lines
    for action in parser()._actions:
        assert action.help, action.option_strings
        if action.default not in (None, False, "==SUPPRESS=="):
            assert f"({action.default}" in " ".join(lines.split()) or action.dest == "model"
    headings = re.findall(r"^(\w+):$", lines, re.MULTILINE)
    assert headings == ["options", "text", "sampling", "model", "attention", "speed", "output"]


# ---- prompts


def test_prompt_from_an_argument_stdin_and_a_file(run, typed, tmp_path):
    """A newline that is added or taken away on one of three ways in changes the text."""
    prompt = "It was a bright morning,\nand “all” was well\n"
    (tmp_path / "prompt.txt").write_bytes(prompt.encode())
    typed(prompt.encode())
    ways = (["-p", prompt], ["-p", "-"], ["-f", tmp_path / "prompt.txt"])
    results = [as_json(run, *way, "-n", 8) for way in ways]
    assert all(result["prompt"] == prompt for result in results)
    assert results[0]["ids"] == results[1]["ids"] == results[2]["ids"]


def test_an_empty_prompt_is_bos_alone(run):
    """`-p ""` means: begin a text."""
    assert as_json(run, "-p", "", "-n", 3)["tokens"] == 4


def test_prompts_that_cannot_be_read(run, typed, tmp_path):
    """A traceback is no answer to a mistyped file name."""
    (tmp_path / "latin").write_bytes("caf\xe9 au lait".encode("latin-1"))
    (tmp_path / "empty").touch()
    for path, words in (
        (tmp_path / "missing", ("missing", "No such file")),
        (tmp_path, ("directory",)),
        (tmp_path / "latin", ("latin", "not UTF-8", "byte 3")),
        (tmp_path / "empty", ("empty",)),
    ):
        code, out, err = run("-f", path)
        assert code == 1 and not out
        one_sentence(err, *words)
    for content, words in ((b"", ("standard input", "empty")), (b"\xff", ("not UTF-8",))):
        typed(content)
        code, out, err = run("-p", "-")
        assert code == 1 and not out
        one_sentence(err, *words)


def test_a_model_or_a_device_that_is_not_there(run, tmp_path):
    """A traceback is no answer to a mistyped folder either; and PyTorch's own sentence about a
    device is a page long."""
    for flag, value, more in (
        ("-m", tmp_path, ()), ("-m", tmp_path / "nowhere", ()),
        ("--device", "telescope", ("try cpu",)), ("--device", "cuda:99", ("try cpu",)),
    ):  # fmt: skip
        code, out, err = run(flag, value)
        assert code == 1 and not out
        one_sentence(err, str(value), *more)


# ---- settings


WRONG = {  # what the last line of stderr names -> flags, a set of them a line
    "-n": "-n -1\n-n many", "temperature": "-t -1\n-t nan", "top_k": "--top-k -1",
    "top_p": "--top-p 0", "--dtype": "--dtype int8", "--seed": f"--seed x\n--seed {10**30}",
    "--n-local": f"--n-local 0\n--n-local {10**30}", "--n-global": "--n-global -1",
    "--distance-ceiling": "--distance-ceiling low", "--threads": "--threads 0",
    "--prefill-chunk": "--prefill-chunk 0", "--attention": "--attention some",
    "--unknown": "--unknown", "not allowed with": "-p a -f b",
    "can be given once": "-p - -p -", "--system has no meaning": "--system x",
    "--n-local has no meaning": "--attention full --n-local 8",
    "--n-global has no meaning": "--attention full --n-global 8",
    "--middle has no meaning": "--middle disk",
    "have no meaning with --interactive": "--json -i\n-p a -i\n-f a -i\n--explain -i",
}  # fmt: skip


@pytest.mark.parametrize("word", WRONG)
def test_flags_that_make_no_sense(run, word):
    """A bad value that is clipped or ignored makes a text that nobody asked for."""
    for line in WRONG[word].splitlines():
        code, out, err = run(*line.split())
        assert code == 2 and not out and err.startswith("usage: "), line
        assert word in err.splitlines()[-1], line


@pytest.mark.parametrize(
    "flags, lm",
    [
        ("", LMInfinite(256, 10, 256)),
        ("--n-local 20 --n-global 3", LMInfinite(20, 3, 20)),
        ("--n-local 20 --distance-ceiling 9", LMInfinite(20, 10, 9)),
        ("--n-global 0", LMInfinite(256, 0, 256)),
        ("--attention full", None),
        ("--attention full --distance-ceiling 20", LMInfinite(None, 0, 20)),
    ],
)
def test_attention_flags_are_the_method_s_settings(run, shipped, flags, lm):
    """A flag that is parsed and dropped: the demo would compare a model with itself."""
    model, tokenizer = shipped
    prompt = long_prompt(tokenizer, 60)
    result = as_json(run, *flags.split(), "-p", prompt, "-n", 6, "-t", 0, "--ignore-eos")
    names = ("n_local", "n_global", "distance_ceiling")
    expected = lm and {name: getattr(lm, name) for name in names}
    sees = result["settings"]["sees"]
    assert sees and {name: sees[name] for name in names} == expected or sees is expected
    ids = tokenizer.encode(prompt)
    assert result["prompt_ids"] == ids
    assert result["ids"] == list(generate_ids(model, ids, lm, 6, temperature=0.0, stop_ids=()))
    session = Session(model, lm)
    logits = session.read(ids).log_softmax(-1)
    assert result["logprobs"][0] == pytest.approx(float(logits[result["ids"][0]]), abs=1e-4)
    assert result["visible"] == (len(ids) + 6 if lm is None else lm.visible(len(ids) + 6))


def test_the_settings_change_the_logprobs(run, tokenizer):
    """Equal texts under all settings would let the test above pass without a mask."""
    prompt = long_prompt(tokenizer, 60)
    seen = set()
    for flags in ([], ["--n-global", 0], ["--distance-ceiling", 5], ["--n-global", 1]):
        flags = [*flags, "--n-local", 20, "-p", prompt, "-n", 1, "-t", 0]
        seen.add(round(as_json(run, *flags)["logprobs"][0], 5))
    assert len(seen) == 4


def test_other_chunks_to_the_same_text(run, tokenizer):
    """A chunk that forgets the one before it."""
    flags = ["-p", long_prompt(tokenizer, 40), "--n-local", 16, "-t", 0, "-n", 10]
    assert as_json(run, *flags, "--prefill-chunk", 7)["ids"] == as_json(run, *flags)["ids"]


def test_the_sampling_flags_reach_the_draw(run):
    """A setting that is parsed, checked, and then dropped; a global generator, or a clock, in
    the draw."""
    texts = [run("-n", 30, "--seed", seed)[1] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    greedy = as_json(run, "-n", 20, "-t", 0)["ids"]
    hot = ["-n", 20, "-t", 30]
    assert as_json(run, *hot, "--top-k", 0)["ids"] != greedy
    assert as_json(run, *hot, "--top-k", 1)["ids"] == greedy
    assert as_json(run, *hot, "--top-p", 1e-6)["ids"] == greedy


def test_dtype_and_threads_are_used(run):
    """--dtype that is ignored gives float32's cache bytes."""
    usual = as_json(run, "-n", 4)["cache_bytes"]
    assert as_json(run, "-n", 4, "--dtype", "bfloat16")["cache_bytes"] == usual / 2
    found = as_json(run, "-n", 4, "--dtype", "float64", "--threads", 2)["cache_bytes"]
    assert found == usual * 2 and torch.get_num_threads() == 2


# ---- what is written


def test_json_is_one_object_and_nothing_else(run, shipped):
    """A note or a streamed word on stdout breaks whoever parses it."""
    model, tokenizer = shipped
    code, out, err = run("--json", "-n", 12, "-p", "The sea “was”", "--seed", 7)
    result = json.loads(out)
    assert code == 0 and out.count("\n") == 1 and "new 12 tokens" in err
    ids = result["prompt_ids"]
    expected = list(generate_ids(model, ids, LMInfinite(256, 10, 256), 12, seed=7))
    assert result["ids"] == expected
    whole = tokenizer.decode(ids + expected)
    assert whole == tokenizer.decode(ids) + result["text"]
    assert len(result["logprobs"]) == 12 and all(logprob <= 0 for logprob in result["logprobs"])
    assert result["timings"]["prefill_s"] > 0 and result["timings"]["decode_s"] > 0
    settings = result["settings"]
    assert settings["seed"] == 7 and settings["temperature"] == 0.8 and settings["top_k"] == 50
    assert result["tokens"] == len(ids) + 12


def test_text_arrives_piece_by_piece(run, monkeypatch):
    """A space lost between two pieces; a piece that is printed twice; a stream that is printed
    at its end."""
    assert run("-n", 40)[1] == as_json(run, "-n", 40)["text"] + "\n"
    shown = []
    monkeypatch.setattr(sys.modules["minilm_inf.generate"], "show_now", shown.append)
    run("-n", 20)
    assert len([piece for piece in shown if piece]) > 10


def test_quiet_and_no_new_tokens(run, typed, tokenizer):
    """-q that leaves a note on stderr fills a log; -n 0 reads and writes nothing: no division
    by zero, no token all the same."""
    code, out, err = run("-q", "-n", 5, "-p", long_prompt(tokenizer, 300))
    assert code == 0 and out and not err
    typed(b"The sea\n")
    code, out, err = run("-i", "-q", "-n", 3)
    assert code == 0 and out and not err
    code, out, err = run("-n", 0)
    assert code == 0 and out == "\n" and "new 0 tokens" in err


def test_the_note_on_what_cannot_be_seen(run, tokenizer):
    """The newcomer would take the model for one that forgets by mistake."""
    prompt = long_prompt(tokenizer, 100)
    n = len(tokenizer.encode(prompt))
    for flags, seen in (
        (["--n-local", 40], 50),
        (["--n-local", 40, "--n-global", 0], 40),
        (["--n-local", n - 10], n),
        (["--n-local", n - 11], n - 1),
        (["--attention", "full"], n),
    ):
        code, out, err = run("-p", prompt, "-n", 1, *flags)
        notes = [line for line in err.splitlines() if line.startswith("note: ")]
        assert len(notes) == (seen < n), flags
        if notes:
            assert f" {n - seen} of the prompt's {n} tokens" in notes[0]
            assert not any(word in out for word in notes)


def test_statistics_are_true(run, shipped):
    """Bytes and counts that come from another place than the cache and the mask."""
    model, tokenizer = shipped
    lm = LMInfinite(16, 4, 16)
    ids = tokenizer.encode(PROMPT)
    flags = ["--n-local", 16, "--n-global", 4, "-n", 30, "-t", 0, "--ignore-eos"]
    code, out, err = run(*flags)
    session = Session(model, lm)
    session.read(ids + list(generate_ids(model, ids, lm, 30, temperature=0.0, stop_ids=())))
    assert f"prompt {len(ids)} tokens" in err and "new 30 tokens" in err
    assert f"cache {session.cache.nbytes:,} bytes" in err
    assert f"the last query sees 20 of {len(ids) + 30} tokens" in err


# ---- ends


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


def test_eos_ends_the_text_unless_it_is_ignored(run, shipped):
    """A model that has said its last word, and is made to babble on; or </s> in the text."""
    model, tokenizer = shipped
    with likeliest(model, tokenizer.eos_id, after=5):
        result = as_json(run, "-n", 20)
        assert len(result["ids"]) == 6 and result["ids"].index(tokenizer.eos_id) == 5
        assert result["tokens"] == len(result["prompt_ids"]) + 5
        assert len(result["logprobs"]) == 6 and "</s>" not in result["text"]
    with likeliest(model, tokenizer.eos_id, after=5):
        result = as_json(run, "-n", 20, "--ignore-eos")
    assert result["ids"][5:] == [tokenizer.eos_id] * 15
    assert (
        result["text"] == tokenizer.decode(result["prompt_ids"] + result["ids"])[len(PROMPT) :]
    )


def test_torn_characters_at_the_end(run, shipped, tokenizer):
    """The bytes of half a character wait in the stream, and must not be lost or crash."""
    first_byte = tokenizer.encode("漢", bos=False)[-3]
    with likeliest(shipped[0], first_byte, after=3):
        result = as_json(run, "-n", 4)
    assert result["text"].endswith("\ufffd")


# ---- a conversation


@pytest.fixture
def prompts(monkeypatch):
    """The ids of every prompt that a session is given, in a list that grows."""
    given, read = [], Session.read_all

    def spy(session, texts, *more):
        given.extend(list(ids) for ids in texts if ids)  # writing reads no new ids
        return read(session, texts, *more)

    monkeypatch.setattr(Session, "read_all", spy)
    return given


def test_a_conversation_grows_and_ends(run, typed, tokenizer, prompts):
    """Each line is read after all that came before it, with BOS once, and /reset forgets."""
    typed(
        b"The sea\n/stats\n\nand the ship\n/stats\n"
        b"/reset\n/stats\nThe sea\n/stats\n/exit\nnot read\n"
    )
    code, out, err = run("-i", "-n", 6, "-t", 0, "--ignore-eos")
    assert code == 0
    replies = out.split("\n")[:-1]
    assert len(replies) == 3 and replies[0] == replies[2] and "not read" not in out
    counts = re.findall(r"prompt (\d+) tokens .* new (\d+) tokens", err)
    assert [new for _, new in counts] == ["6", "6", "6"]
    first = tokenizer.encode("The sea")
    assert prompts == [first, tokenizer.encode("\nand the ship", bos=False), first]
    assert [int(n) for n, _ in counts] == [len(ids) for ids in prompts]
    seen = [int(n) for n in re.findall(r"sees \d+ of (\d+) tokens", err)]
    assert seen == [len(first) + 6, len(first) + 6 + len(prompts[1]) + 6, len(first) + 6]
    assert "nothing was written yet" in err
    assert "/help" in err.splitlines()[0]


def test_a_second_reply_continues_the_whole_text(run, typed, shipped):
    """A conversation that begins again with every line, or reads its last token twice."""
    model, tokenizer = shipped
    typed(b"The sea\nand the ship\n")
    code, out, err = run("-i", "-n", 6, "-t", 0, "--ignore-eos", "--n-local", 12)
    assert code == 0
    lm, text = LMInfinite(12, 10, 12), tokenizer.encode("The sea")
    settings = {
        "max_new_tokens": 6,
        "temperature": 0.0,
        "stop_ids": (),
    }
    replies = []
    for line in (None, "\nand the ship"):
        if line is not None:
            text = text + tokenizer.encode(line, bos=False)
        new = list(generate(model, text, lm, **settings))
        before = tokenizer.decode(text)
        text = text + new
        replies.append(tokenizer.decode(text)[len(before) :])
    assert out == "".join(reply + "\n" for reply in replies)


def test_a_conversation_outlives_its_mistakes(run, typed):
    """An unknown command or a torn character is no reason to lose the text so far."""
    typed(b"/hlep\nThe sea\n\xff\xfe\nand\n/stats\n/help\n")
    code, out, err = run("-i", "-n", 3, "--ignore-eos")
    assert code == 0 and out.count("\n") == 2
    assert "no command /hlep" in err and "not UTF-8" in err
    assert all(f"{command} " in err for command in ("/stats", "/reset", "/exit"))
    assert re.search(r"sees (\d+) of \1 tokens", err) and "Traceback" not in err


@pytest.mark.parametrize("end", ["\r\n", "\r", " \t \n"])
def test_line_ends_of_every_system(run, typed, end):
    """Catches /exit with a carriage return, which is no command, or a prompt with one."""
    lines = ("\ufeffThe sea", "", "/stats", "and the ship", "/exit", "not read", "")
    typed(end.join(lines).encode())
    code, out, err = run("-i", "-n", 6, "-t", 0, "--ignore-eos")
    end = end if end == " \t \n" else "\n"
    typed(f"The sea{end}and the ship{end}".encode())
    assert (code, out) == run("-i", "-q", "-n", 6, "-t", 0, "--ignore-eos")[:2]
    assert "prompt " in err and "no command" not in err and "not read" not in out


def test_a_prompt_of_another_system(run, typed, tmp_path):
    """Catches carriage returns, and a byte order mark, that become part of a text."""
    content = "\ufeffIt was late,\r\nand\rcold".encode()
    (tmp_path / "prompt.txt").write_bytes(content)
    typed(content)
    for way in (["-p", "-"], ["-f", tmp_path / "prompt.txt"]):
        assert as_json(run, *way, "-n", 1)["prompt"] == "It was late,\nand\ncold"


def test_a_line_without_an_end(run, typed, monkeypatch):
    """Catches memory that grows with whatever is piped in."""
    monkeypatch.setattr("minilm_inf.writing.conversation.LONGEST_LINE", 1000)
    typed(b"a" * 999 + b"\n/stats\n" + b"a" * 1001)
    code, out, err = run("-i", "-n", 1)
    assert code == 1 and "prompt " in err
    assert err.endswith("error: a line of standard input has 1,000 characters or more\n")


def press_ctrl_c(*_):
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("lm", [None, LMInfinite(12, 10, 12)], ids=["vanilla", "LM-Infinite"])
def test_ctrl_c_in_a_reply_leaves_all_that_was_said(run, typed, shipped, monkeypatch, lm):
    """Catches a token that is lost, or read twice, when a reply is stopped."""
    model, tokenizer = shipped
    shown = []

    def show(piece):
        shown.append(piece)
        if len(shown) == 4:
            press_ctrl_c()

    monkeypatch.setattr("minilm_inf.writing.conversation.show_now", show)
    typed(b"The sea\nand the ship\n/exit\n")
    flags = ["--attention", "full"] if lm is None else ["--n-local", 12]
    code, _, err = run("-i", "-n", 9, "-t", 0, "--ignore-eos", *flags)
    settings = {"temperature": 0.0, "stop_ids": ()}
    text = tokenizer.encode("The sea")
    text += generate(model, text, lm, 4, **settings)
    text += tokenizer.encode("\nand the ship", bos=False)
    right = list(generate(model, text, lm, 9, **settings))
    assert code == 0 and "stopped: what was written so far stays" in err
    assert "".join(shown[4:]) == tokenizer.decode(text + right)[len(tokenizer.decode(text)) :]


@pytest.mark.parametrize(
    "number, code", [(signal.SIGINT, 0), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_signal_at_the_prompt(run, monkeypatch, number, code):
    """Catches a conversation that is lost for one key, and one that nobody can end."""
    lines = iter([number, "/stats", "/exit"])

    def read(_):
        line = next(lines)
        return line if isinstance(line, str) else os.kill(os.getpid(), line) or ""

    monkeypatch.setattr("minilm_inf.writing.conversation.read_line", read)
    found, _, err = run("-i")
    assert found == code and ("/exit leaves" in err) == (code == 0)
    assert ("stopped" in err) == (code == 143)


def started(*arguments, **pipes) -> subprocess.Popen:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=ROOT,
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell that runs the suite in the background has it ignore Ctrl-C, and its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **pipes,
    )


@pytest.mark.slow  # above it is the same signal, within this process
def test_ctrl_c_stops_a_reply_but_not_the_program():
    """A reader who has enough of one reply would lose the whole conversation."""
    program = started("-i", "-n", 10**6, "--ignore-eos", stdin=subprocess.PIPE)
    try:
        program.stdin.write(b"The sea\n")
        program.stdin.flush()
        assert program.stdout.read(20)
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(b"/stats\n/exit\n", timeout=60)
    finally:
        program.kill()
    assert program.returncode == 0
    count = re.search(r"new ([\d,]+) tokens", err.decode())
    assert 0 < int(count[1]) < 10**6 and "Traceback" not in err.decode()


@pytest.mark.slow
def test_ctrl_c_ends_a_plain_run():
    """A traceback of thirty lines for a key that everybody presses."""
    program = started("-n", 10**6, "--ignore-eos")
    try:
        assert program.stdout.read(20)
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=60)
    finally:
        program.kill()
    assert program.returncode == 130
    assert err.decode().strip() == "stopped"


def test_a_reader_that_has_left_already_is_no_error(monkeypatch):
    """What print has buffered would fail when the interpreter ends, with a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["--json", "-q", "-n", "3"]) == 0


def test_an_output_that_lacks_a_character(monkeypatch):
    """A text with an accent would end the program where the output is ASCII; a notebook's
    output, or a StringIO, cannot be told how to encode."""
    ascii = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    for stdout, shown in ((ascii, "caf? ?"), (io.StringIO(), "café 漢")):
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["-p", "café 漢", "--json", "-q", "-n", "3"]) == 0
        stdout.seek(0)
        assert stdout.read().startswith(f'{{"prompt": "{shown}')


# ---- several prompts


PROMPTS = ("The captain said", "It was late, and the men were very tired of it; for", "Oh")


def test_several_prompts_are_each_as_if_alone(run):
    """Texts that take each other's place, or that one padding changes."""
    settings = ["-n", 12, "--seed", 5, "--json"]
    alone = [json.loads(run("-p", prompt, *settings)[1]) for prompt in PROMPTS]
    code, out, _ = run(*(flag for prompt in PROMPTS for flag in ("-p", prompt)), *settings)
    together = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(together) == 3
    same = "prompt text prompt_ids ids tokens visible settings".split()
    for ours, theirs in zip(together, alone):
        assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}
        assert ours["logprobs"] == pytest.approx(theirs["logprobs"], abs=1e-4)


def test_each_of_several_texts_ends_with_its_own_id(run, shipped, monkeypatch):
    """Catches ids that the folder calls an end, and that end only a text that is alone."""
    model, _ = shipped
    prompts = [flag for prompt in PROMPTS for flag in ("-p", prompt)]
    usual = [
        json.loads(line) for line in run(*prompts, "-n", 9, "-t", 0, "--json")[1].splitlines()
    ]
    ends = (usual[0]["ids"][2], usual[1]["ids"][5])
    monkeypatch.setattr(model, "config", replace(model.config, eos_ids=ends))
    for flags in (prompts, *([*prompts[at : at + 2]] for at in (0, 2, 4))):
        _, out, _ = run(*flags, "-n", 9, "-t", 0, "--json")
        for found in map(json.loads, out.splitlines()):
            whole = usual[PROMPTS.index(found["prompt"])]["ids"]
            last = next((at for at, id in enumerate(whole) if id in ends), 8)
            assert found["ids"] == whole[: last + 1]
    _, out, _ = run(*prompts, "-n", 9, "-t", 0, "--json", "--ignore-eos")
    assert [json.loads(line)["ids"] for line in out.splitlines()] == [u["ids"] for u in usual]
    for flags, count in (([], usual[0]["ids"].index(ends[0])), (["--ignore-eos"], 9)):
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{PROMPTS[0]}\n/stats\n"))
        assert f"new {count} tokens" in run("-i", "-n", 9, "-t", 0, *flags)[2]


def test_several_texts_are_numbered(run):
    """Texts in a row that nobody can tell apart."""
    flags = [flag for prompt in PROMPTS for flag in ("-p", prompt)]
    code, out, err = run(*flags, "-n", 3, "-t", 0)
    assert code == 0
    for number, prompt in enumerate(PROMPTS, 1):
        alone = run("-p", prompt, "-n", 3, "-t", 0)[1]
        assert f"[{number}] {alone}" in out
    assert "3 prompts, new 9 tokens" in err and "\r" not in err
    assert run(*flags, "-n", 3, "-q")[2] == ""


def test_one_of_several_prompts_may_come_from_stdin(run, typed):
    """- that is taken for a text, or that reads what another prompt has read."""
    typed(b"The sea")
    _, out, _ = run("-p", "-", "-p", "Oh", "-n", 2, "--json")
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == ["The sea", "Oh"]


@pytest.mark.parametrize(
    "flags",
    [
        ["-t", 0], ["-n", 0], ["--json"], ["--attention", "full"], ["-p", "a", "-p", "bc"],
        ["-i"], ["--n-local", 4, "--top-k-middle", 2, "--middle", "disk"],
    ],
    ids=str,
)  # fmt: skip
def test_weights_that_are_not_numbers(run, typed, shipped, monkeypatch, flags):
    """Catches a text made of nothing, and NaN in JSON, in whichever way the model is asked."""
    head = shipped[0].head
    monkeypatch.setattr(
        head, "forward", lambda x: head.weight.new_full((*x.shape[:2], 2048), torch.nan)
    )
    typed(b"The sea\n")
    code, out, err = run(*flags)
    assert code == 1 and not out.strip()
    one_sentence(err.removeprefix("/help lists the commands\n"), "logits are not numbers")
