"""--plan: what it predicts is what a run takes, and it runs nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SETTINGS, tiny_llama, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minilm_inf.checkpoint import checkpoint, save
from minilm_inf.config import FULL_ATTENTION, LMInfinite
from minilm_inf.evaluate import __main__ as evaluate
from minilm_inf.evaluate.byte_counts import ByteCounts
from minilm_inf.evaluate.compare import reencoded_nll, stream_nll
from minilm_inf.evaluate.documents import Separate, TokensFile
from minilm_inf.evaluate.stream import Run
from minilm_inf.fast.band import window_mask
from minilm_inf.generate import main as generate
from minilm_inf.writing.planning.arithmetic import reaching_flops, token_flops, visible_together
from minilm_inf.writing.planning.cached import cache_bytes, middle_bytes
from minilm_inf.writing.planning.units import scaled
from minilm_inf.writing.planning.working import Reading, working_bytes
from minilm_inf.writing.session import Session, write

LM = SETTINGS["LM-Infinite"]
SHIPPED = ROOT / "weights" / "tiny-llama"


def run(capsys, program, *arguments) -> tuple[int, str, str]:
    """A program's exit code, stdout and stderr."""
    try:
        code = program([str(argument) for argument in arguments])
    except SystemExit as stopped:
        code = stopped.code
    return code, *capsys.readouterr()


def planned(capsys, program, *arguments) -> dict:
    """What --plan --json says."""
    code, out, _ = run(capsys, program, *arguments, "--plan", "--json")
    assert code == 0
    return json.loads(out)


# ---- the peak of a real run

MEASURE = """
import contextlib, io, json, sys
import torch
torch.set_num_threads(1)
import minilm_inf
from minilm_inf.evaluate import __main__ as evaluate
from minilm_inf.benchmark import memory
memory.keep_no_freed_memory()
torch.ones(64, 64) @ torch.ones(64, 64)
before = memory.reset_peak()
program, *arguments = sys.argv[1:]
main = {"evaluate": evaluate, "generate": sys.modules["minilm_inf.generate"]}[program].main
with contextlib.redirect_stdout(io.StringIO()):
    code = main(arguments)
print(json.dumps([code, memory.resident_peak() - before]))
"""

PROMPT = "It was a bright morning and the captain said that we must go. " * 40
SIZES = {  # which part is the largest -> the network, and the run
    "weights": (
        dict(n_layer=8, n_embd=1024, n_head=16, n_kv_head=8, head_dim=64, n_inner=2816),
        ["generate", "-p", PROMPT, "-n", "3", "--prefill-chunk", "256"],
    ),
    "cache": (
        dict(n_layer=12, n_embd=256, n_head=8, n_kv_head=8, head_dim=64, n_inner=256),
        ["generate", *["-p", PROMPT] * 16, "-n", "3", "--prefill-chunk", "64"],
    ),
    "logits": (
        dict(n_layer=2, n_embd=256, n_head=8, n_kv_head=8, head_dim=32, n_inner=1024,
             vocab_size=32000),
        ["evaluate", "perplexity", "--tokens", "ids.npy"],
    ),
}  # fmt: skip


def big_folder(folder: Path, facts: dict):
    """A random checkpoint, stored in bfloat16, with a tokenizer."""
    facts = dict(vocab_size=2048, tied=False, context_length=512) | facts
    model = tiny_model("llama", n_layer=1, n_embd=8, n_inner=8, n_head=1, n_kv_head=1)
    with torch.device("meta"):
        config = type(model.config)(**{**vars(model.config), **facts})
        model = checkpoint.FAMILIES["llama"].build(config)
    model = model.to_empty(device="cpu").to(torch.bfloat16)
    for weight in model.parameters():
        weight.data.fill_(0.01)
    save(model, folder)
    shutil.copy(SHIPPED / "tokenizer.model", folder)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells it")
@pytest.mark.parametrize("largest", SIZES)
def test_the_peak_of_memory_is_the_predicted_one(largest, tmp_path, monkeypatch, capsys):
    """A formula that forgot a buffer, or counts one that is gone by then.

    Measured is VmHWM in a process of its own, beyond what is resident once PyTorch and this
    package are imported and one product was computed; with one thread, and with a C library
    that hands freed memory back at once. The working memory is an estimate, so the whole may be
    off by 25%; it was 10% while each buffer had a formula of its own.
    """
    facts, arguments = SIZES[largest]
    big_folder(tmp_path, facts)
    np.save(tmp_path / "ids.npy", np.arange(4500) % 2000)
    monkeypatch.chdir(tmp_path)
    arguments = [*arguments, "-m", str(tmp_path), "--device", "cpu", "--threads", "1"]
    child = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True,
        timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    code, measured = json.loads(child.stdout)
    assert code == 0
    program = generate if arguments[0] == "generate" else evaluate.main
    found = planned(capsys, program, *arguments[1:])
    plan = found["plan"][0]
    parts = {name: plan[f"{name}_bytes"] for name in ("weights", "cache", "working", "logits")}
    assert max(parts, key=parts.get) == largest, parts
    assert found["total_bytes"] == pytest.approx(measured, rel=0.25), (parts, measured)


# ---- the formulas, part by part


class LiveBytes(TorchDispatchMode):
    """The largest number of bytes of tensors, made inside, that exist at a time."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs)):
            self._meet(x, new=False)
        for x in tree_leaves(result):
            self._meet(x, new=True)
        self.peak = max(self.peak, self.live)
        return result

    def _meet(self, x, new: bool):
        if not isinstance(x, torch.Tensor) or x.untyped_storage()._cdata in self.known:
            return
        storage = x.untyped_storage()
        key, n_bytes = storage._cdata, storage.nbytes() if new else 0

        def gone(_):
            self.live -= n_bytes
            self.known.pop(key, None)

        self.live += n_bytes
        self.known[key] = weakref.ref(storage, gone)


NETWORKS = {
    "llama": dict(n_head=8, n_kv_head=2, n_embd=256, n_inner=1024, head_dim=32),
    "mpt": dict(n_head=8, n_kv_head=8, n_embd=256, n_inner=1024, head_dim=32, clip_qkv=None,
                qk_ln=False),
    "gptj": dict(n_head=8, n_kv_head=8, n_embd=256, n_inner=1024, head_dim=32, rotary_dim=16),
}  # fmt: skip
LMS = {
    "vanilla": None,
    "LM-Infinite": LMInfinite(512, 10, 512),
    "a large window": LMInfinite(2048, 10, 2048),
    "without ceiling": LMInfinite(512, 10, None),
    "ceiling below the window": LMInfinite(512, 10, 256),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("lm", LMS.values(), ids=LMS)
@pytest.mark.parametrize("family", NETWORKS)
@torch.inference_mode()
def test_the_working_buffers_are_those_that_exist(family, lm, dtype):
    """A large buffer of one family, one setting or one dtype that the three sizes above lack.

    Tensors are counted one by one as they come and go, so that the measured number is exact;
    the predicted one is an estimate, and may be off by 25% (10% until fast/ was rewritten, when
    each buffer had a formula of its own), but by no more than 12.5% too small. First chunks,
    chunks that follow a full window, and one across its edge.
    """
    model = tiny_model(family, dtype=dtype, vocab_size=64, **NETWORKS[family])
    for before, tokens, batch in ((0, 512, 1), (256, 512, 2), (2560, 700, 2)):
        window_mask.cache_clear()  # it stays for the next text, and belongs to the first
        cache = model.new_cache(batch, lm)
        for layer in cache.layers:  # as if `before` tokens were read, and no buffer grows
            layer.reserve(before + tokens)
            if lm is not None and before:
                shape = (*layer.keys.shape[:2], lm.n_global, layer.keys.shape[3])
                layer.starting_keys = layer.starting_values = torch.zeros(shape, dtype=dtype)
            if lm is not None and before and before + tokens >= lm.n_local + lm.n_global:
                layer.settle()
        cache.count(before)
        with LiveBytes() as live:
            model.read(torch.zeros(batch, tokens, dtype=torch.long), lm, cache)
        r = Reading(model.config, lm or FULL_ATTENTION, dtype, model.scheme.has_bias, batch)
        assert 0.875 * live.peak <= working_bytes(r, before, tokens) <= 1.25 * live.peak, before


@pytest.mark.parametrize("lm", [None, *SETTINGS.values()], ids=["vanilla", *SETTINGS])
def test_the_cache_has_the_predicted_bytes(lm):
    """A buffer that grows by another rule than the formula's, in chunks or one by one."""
    model = tiny_llama()
    for chunk in (1, 3, 5, 8, 40):
        for length in (1, 4, 7, 8, 13, 30):
            session = Session(model, lm, prefill_chunk=chunk)
            logits = session.read([1] * length)
            for written, _ in enumerate(write(session, logits, 12)):
                found = cache_bytes(model.config, length, lm, torch.float64, chunk, written)
                assert found == session.cache_bytes, (chunk, length, written)


@pytest.mark.parametrize("lm", [None, *SETTINGS.values()], ids=["vanilla", *SETTINGS])
def test_the_cache_of_uneven_texts_has_the_predicted_bytes(lm):
    """Starting keys that join the ring when the longest text fills it, not the shortest."""
    model = tiny_llama()
    for chunk, lengths in ((1, (2, 5)), (4, (1, 9)), (40, (7, 30))):
        session = Session(model, lm, prefill_chunk=chunk, n_texts=2)
        texts = [[1] * length for length in lengths]
        sizes = model.config, lengths[1], lm, torch.float64, chunk
        for written in range(12):
            session.read_all(texts)
            assert cache_bytes(*sizes, written, 2, lengths[0]) == session.cache_bytes
            texts = [[1], [1]]


@pytest.mark.parametrize("first", (0, 1))
def test_the_middle_has_the_predicted_bytes(first):
    """A block, or a layer that does not reach back, that is counted wrongly."""
    model, lm = tiny_llama(), replace(LM, top_k=2, top_k_from_layer=first)
    session = Session(model, lm, prefill_chunk=3000)
    for length in (4000, 90, 6, 1):
        session.read([1] * length)
        sizes = model.config, session.length, lm, torch.float64
        assert middle_bytes(*sizes) == session.cache.middle_bytes
    assert cache_bytes(model.config, 4097, lm, torch.float64, 3000) == session.cache_bytes


def test_arithmetic_counts_what_is_scored():
    """A middle key that is counted for no query, or for too many."""
    config, (n_local, n_global) = tiny_llama().config, (LM.n_local, LM.n_global)
    for k in (1, 3, 50):
        for first in (0, 1):
            for n in (3, 8, 9, 30):
                lm = replace(LM, top_k=k, top_k_from_layer=first)
                middles = [max(0, i - n_local - n_global) for i in range(1, n + 1)]
                of_one = 2 * 8 * 4 * (2 - first)  # 2 D, H, layers
                each = [of_one * (m + 2 * min(k, m)) for m in middles]
                assert reaching_flops(config, lm, n, is_last=True) == each[-1]
                assert reaching_flops(config, lm, n, is_last=False) == each[-1]
                every = replace(lm, top_k_queries="all")
                assert reaching_flops(config, every, n, is_last=False) == sum(each)


def test_a_file_is_no_memory(capsys):
    """A middle on disk that is counted as memory, or not told at all."""
    totals = {}
    for kind in ("ram", "disk"):
        arguments = ["-p", "Hello", "-n", "100000", "--top-k-middle", "2", "--middle", kind]
        found = planned(capsys, generate, *arguments, "--device", "cpu")["plan"][0]
        totals[kind] = found["total_bytes"], found["in_file_bytes"], found["cache_bytes"]
    assert totals["ram"][1] == 0 and totals["disk"][1] > 200e6
    assert totals["ram"][0] - totals["disk"][0] == totals["disk"][1]
    assert totals["ram"][2] - totals["disk"][2] == totals["disk"][1]


def test_arithmetic_counts_what_is_seen():
    """A closed formula that is off by a key, or a head's products left out."""
    for lm in (None, LM, SETTINGS["more starting than local"], SETTINGS["sliding window"]):
        for n in range(40):
            each = [i if lm is None else lm.visible(i) for i in range(1, n + 1)]
            assert visible_together(lm, n) == sum(each)
    config = tiny_llama().config
    keys = 4 * 8 * 4 * 2  # D, H, layers
    assert token_flops(config, 1000, 100, LM, 50) == 2200 + keys * (6 + 2)
    assert token_flops(config, 1000, 100, None, 50) == 2200 + keys * 50
    assert scaled(999) == "999.00 B" and scaled(1_672_896, "FLOP") == "1.67 MFLOP"


# ---- no logits without need


def rows_of_head(model, work) -> list[int]:
    """How many rows of hidden states the head was given, call by call."""
    rows = []

    def count(module, arguments):
        rows.append(arguments[0].numel() // arguments[0].shape[-1])

    hook = model.head.register_forward_pre_hook(count)
    work()
    hook.remove()
    return rows


def test_a_prefill_builds_one_row_of_logits():
    """A whole prompt's logits, of which all but the last row are thrown away."""
    model, ids = tiny_llama(), [1] * 23
    assert rows_of_head(model, lambda: Session(model, LM, prefill_chunk=5).read(ids)) == [1]
    assert rows_of_head(model, lambda: Session(model, LM, "reference").read(ids)) == [1]
    for path in ("chunked", "reference"):
        session = Session(model, LM, path, prefill_chunk=5, n_texts=2)
        for texts in ([ids, ids[:9]], [[3], [3]]):
            read = partial(session.read_all, texts)
            assert rows_of_head(model, read) == [2]


def test_scoring_holds_one_chunk_s_logits(tmp_path):
    """A long text's logits all at once, or logits of tokens that are not scored."""
    model, ids = tiny_llama(), [1] * 24
    assert rows_of_head(model, lambda: stream_nll(model, ids, LM, 10)) == [10, 10, 3]
    np.save(tmp_path / "ids.npy", np.array(ids))
    source = TokensFile(tmp_path / "ids.npy", 31)
    scoring = Run(model, LM, Separate(source, None, None), ByteCounts(None, 31, source), 10, 2)

    def score():
        while not scoring.is_done:
            scoring.step()

    assert rows_of_head(model, score) == [10, 10, 3]
    # The first window in halves of the context length (6), then each window's second half.
    assert set(rows_of_head(model, lambda: reencoded_nll(model, ids))) == {3}


# ---- the programs


RUNS = {
    "generate": (generate, []),
    "perplexity": (evaluate.main, ["perplexity", "--text", "README.md"]),
    "compare": (evaluate.main, ["compare", "--text", "README.md", "--length", "1000"]),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_plan_loads_and_runs_nothing(name, capsys, monkeypatch):
    """A plan that reads the weights, or takes the memory that it should warn of."""
    program, arguments = RUNS[name]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(
        "minilm_inf.checkpoint.shards.Stored.read_into", lambda *_: pytest.fail("loads")
    )
    code, out, err = run(capsys, program, *arguments, "--plan")
    assert code == 0 and not err
    labels = ["weights", "cache", "working buffers", "logits", "at the peak", "reading"]
    for label in labels:
        assert f"\n{label} " in out
    found = planned(capsys, program, *arguments)
    assert found["parameters"] == 1_672_896
    assert found["total_bytes"] == max(plan["total_bytes"] for plan in found["plan"])


def test_the_plan_of_a_text_is_its_cache(capsys):
    """A plan of other settings than the run's: its prompt, its flags, its dtype."""
    for flags in (
        [], ["--attention", "full"], ["--n-local", "40", "--dtype", "bfloat16"],
        ["-p", "One", "-p", "Two"], ["--path", "reference", "-n", "5"],
    ):  # fmt: skip
        common = ["-n", "60", "--ignore-eos", "--device", "cpu", *flags]
        code, out, _ = run(capsys, generate, *common, "--json", "-q")
        real = json.loads(out.splitlines()[0])
        plan = planned(capsys, generate, *common)["plan"][0]
        assert code == 0 and plan["cache_bytes"] == real["cache_bytes"], flags


def test_attention_that_sees_all_shows_a_growing_cache(capsys):
    """A plan that hides what full attention costs."""
    sizes = {
        kind: [planned(capsys, generate, "-n", n, "--attention", kind)["plan"][0]
               for n in (1000, 4000)]
        for kind in ("lambda", "full")
    }  # fmt: skip
    assert sizes["lambda"][0]["cache_bytes"] == sizes["lambda"][1]["cache_bytes"]
    assert sizes["full"][1]["cache_bytes"] == 4 * sizes["full"][0]["cache_bytes"]
    assert sizes["full"][1]["token_flops"] > sizes["full"][0]["token_flops"]


def test_the_readme_shows_a_real_plan(capsys):
    """An example that an earlier model, or an earlier formula, printed."""
    command = 'python -m minilm_inf.generate -n 2000 -p "The captain said" --plan'
    arguments = ["-n", "2000", "-p", "The captain said", "--plan", "--device", "cpu"]
    code, out, _ = run(capsys, generate, *arguments)
    assert code == 0
    assert f"$ {command}\n{out}```" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_conversation_s_length_is_not_known(capsys):
    """A number for what nobody can know."""
    code, out, _ = run(capsys, generate, "-i", "--plan")
    assert code == 0 and "not known" in out.splitlines()[-1]
    code, out, err = run(capsys, generate, "-i", "--plan", "--attention", "full")
    assert (code, out) == (1, "") and "not known" in err and err.count("\n") == 1


def test_a_plan_takes_no_run_to_go_on_with(capsys, tmp_path):
    """--resume has the flags of its run, and nothing to plan."""
    arguments = ["perplexity", "--resume", tmp_path / "run.json", "--plan"]
    code, _, err = run(capsys, evaluate.main, *arguments)
    assert code == 2 and "--resume takes no other flag" in err


def test_a_model_on_meta_imports_no_compiler():
    """Random numbers for weights that are about to be read: a second, and 74 MB of imports."""
    program = (
        "import sys; from pathlib import Path; from minilm_inf import load_model; "
        "load_model(Path('weights/tiny-llama')); sys.exit('sympy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=120)
    assert done.returncode == 0
