"""Plans: bytes against what is measured, arithmetic against sums over the mask."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, SETTINGS, tiny_llama, tiny_model
from live_bytes import LiveBytes

from minilm_inf import load
from minilm_inf.checkpoint import load_model, save
from minilm_inf.config import FULL_ATTENTION, LMInfinite
from minilm_inf.evaluate.__main__ import main as evaluate
from minilm_inf.evaluate.compare import nll_of
from minilm_inf.generate import main as generate
from minilm_inf.terminal.progress import scaled
from minilm_inf.writing.plan import cache_bytes, flops, visible_pairs, working_bytes
from minilm_inf.writing.session import Session, write_all

SHIPPED = ROOT / "weights" / "tiny-llama"
LM = SETTINGS["LM-Infinite"]
TOP_K = replace(LM, top_k=2, top_k_from_layer=1)


@pytest.fixture
def planned(program):
    """What --plan --json says: (arguments...) -> the object."""

    def plan(*arguments) -> dict:
        code, out, err = program(generate, *arguments, "--device", "cpu", "--plan", "--json")
        assert code == 0, err
        return json.loads(out)

    return plan


# ---- bytes


def test_the_peak_of_memory_is_the_predicted_one(tmp_path, planned, program, monkeypatch):
    """A formula that forgot a part, or counts one that is gone by then. Tensors are counted one
    by one as they come and go; the weights, once they are loaded, stay."""
    sizes = dict(n_layer=4, n_embd=64, n_head=8, n_kv_head=8, head_dim=64, n_inner=128)
    facts = dict(vocab_size=2048, context_length=256, dtype=torch.bfloat16)
    save(tiny_model("llama", **facts, **sizes), tmp_path)
    shutil.copy(SHIPPED / "tokenizer.model", tmp_path)
    prompt = "It was a bright morning and the captain said that we must go. " * 10
    arguments = [*["-p", prompt] * 4, "-n", 3, "--prefill-chunk", 64, "-m", tmp_path]
    found, loaded = planned(*arguments), load(tmp_path)
    monkeypatch.setattr("minilm_inf.terminal.options.load", lambda _: loaded)
    with LiveBytes() as live:
        assert program(generate, *arguments, "--device", "cpu")[0] == 0
    assert found["at the peak"] == pytest.approx(found["weights"] + live.peak, rel=0.25)


@pytest.mark.parametrize(
    "family, lm, facts",
    [("llama", FULL_ATTENTION, {}), ("llama", LMInfinite(512, 10, 256), {}),
     ("mpt", LMInfinite(512, 10, 512), dict(clip_qkv=None, qk_ln=False))],
)  # fmt: skip
@torch.inference_mode()
def test_working_buffers_are_those_that_exist(family, lm, facts):
    """A large buffer of one family or setting that the run above lacks. Tensors are counted one
    by one as they come and go, so that the measured number is exact."""
    sizes = dict(n_head=8, n_kv_head=8, n_embd=256, n_inner=1024, head_dim=32, vocab_size=64)
    model = tiny_model(family, n_layer=2, dtype=torch.float32, **sizes, **facts)
    cache, tokens = model.new_cache(1, lm), torch.zeros(1, 256, dtype=torch.long)
    for _ in range(3):  # masks that stay for the next text are made, and the window is full
        model.read(tokens, lm, cache)
    with LiveBytes() as live:
        model.read(tokens, lm, cache)
    net = SimpleNamespace(config=model.config, dtype=torch.float32)
    rest = cache.nbytes + sum(weight.nbytes for weight in model.parameters())
    predicted = rest + working_bytes(net, lm, 768, 256)
    assert predicted == pytest.approx(rest + live.peak, rel=0.25)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_scored_text_is_planned(dtype, program):
    """Catches logits of a chunk that are counted as those of one token, or in one dtype."""
    flags = ["--length", 900, "--chunk", 300, "--dtype", dtype, "--device", "cpu"]
    code, out, err = program(evaluate, "perplexity", *flags, "--plan", "--json")
    assert code == 0, err
    model = load_model(SHIPPED, dtype=getattr(torch, dtype))
    tokens = torch.ones(1, 300, dtype=torch.long)
    with torch.inference_mode():
        hidden = model.read(tokens)[0]
        with LiveBytes() as live:
            nll_of(model, hidden, tokens[0])
    assert json.loads(out)["logits"] == pytest.approx(live.peak, rel=0.05)
    code, out, err = program(evaluate, "perplexity", "--plan")
    assert code == 1 and "--length" in err


@pytest.mark.parametrize("lm", [FULL_ATTENTION, *SETTINGS.values(), TOP_K], ids=str)
def test_the_cache_has_the_predicted_bytes(lm):
    """A buffer that grows by another rule than the formula's, in chunks or one by one; a block
    of the middle, or a layer that does not reach back, that is counted wrongly."""
    model = tiny_llama()
    for chunk, length in ((1, 4), (3, 13), (40, 30)):
        session = Session(model, lm, prefill_chunk=chunk)
        logits = session.read_all([[1] * length])
        for written, _ in enumerate(write_all(session, logits, 12)):
            found = cache_bytes(model.config, length + written, lm, torch.float64)
            assert found == session.cache.nbytes, (chunk, length, written)
    for lengths in ((2, 5), (1, 9), (7, 4100 if lm.top_k else 30)):
        session = Session(model, lm, n_texts=2)
        session.read_all([[1] * length for length in lengths])
        n, shortest = max(lengths), min(lengths)
        found = cache_bytes(model.config, n, lm, torch.float64, 2, shortest)
        assert found == session.cache.nbytes, lengths


# ---- arithmetic


def test_arithmetic_counts_what_is_seen():
    """A closed formula that is off by a key, or a head's products left out."""
    config = tiny_llama().config
    net = SimpleNamespace(config=config, in_layers=1000, in_head=100)
    of_a_key = 2 * 8 * 4 * 2  # 2 D, H, layers
    for lm in (FULL_ATTENTION, LM, SETTINGS["more starting than local"],
               SETTINGS["sliding window"]):  # fmt: skip
        each = [lm.visible(i) for i in range(1, 41)]
        for n in (0, 1, 3, 7, 8, 40):
            assert visible_pairs(n, lm) == sum(each[:n])
        assert flops(net, lm, 0, 40, 3) == 80_600 + 2 * of_a_key * sum(each)
        assert flops(net, lm, 39, 40, 1) == 2200 + 2 * of_a_key * each[-1]
    assert flops(net, None, 0, 40, 3) == flops(net, FULL_ATTENTION, 0, 40, 3)
    assert scaled(999) == "999.00 B" and scaled(1_672_896, "FLOP") == "1.67 MFLOP"


# ---- the programs


def test_the_plan_of_a_text_is_its_cache(program, planned, monkeypatch):
    """A plan of other settings than the run's: its prompt, its flags, its dtype; one that hides
    what full attention costs, or counts a file as memory; one that loads what it warns of."""
    monkeypatch.setattr(
        "minilm_inf.checkpoint.shards.Stored.read_into", lambda *_: pytest.fail("loads")
    )
    plans = {
        flags: planned(*flags.split(), "-n", "20", "-p", "Hello")
        for flags in ("", "--attention full", "--n-local 40 --dtype bfloat16", "-p Two")
    }
    for kind, times in (("lambda", 1), ("full", 4)):
        short, long = (planned("--attention", kind, "-n", n) for n in (1000, 4000))
        assert long["cache"] == times * short["cache"]
        assert (long["the last token"] > short["the last token"]) == (kind == "full")
    flags = ["-p", "Hello", "-n", "100000", "--top-k-middle", "2", "--middle"]
    ram, disk = (planned(*flags, kind) for kind in ("ram", "disk"))
    assert "in a file" not in ram and disk["in a file"] > 200e6
    assert disk["cache"] == ram["cache"] - disk["in a file"]
    assert disk["at the peak"] == disk["while loading"] < 1e7 < ram["at the peak"]
    monkeypatch.undo()
    for flags, found in plans.items():
        common = ["-n", "20", "--ignore-eos", "--device", "cpu", "-p", "Hello", "-q", "--json"]
        _, out, _ = program(generate, *common, *flags.split())
        assert found["cache"] == json.loads(out.splitlines()[0])["cache_bytes"], flags
        assert found["parameters"] == 1_672_896
