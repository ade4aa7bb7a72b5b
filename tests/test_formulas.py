"""models/mpt.py, held to its formula, and what it stores by which name.

transformers leaves out three facts of MosaicML's own code, an alibi_bias_max other than 8,
biases and qk_ln, so that no fixture of its making can tell them: here stands the formula. What
it computes, of all families, is in test_parity.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from conftest import READINGS, SETTINGS, seen_by, some_tokens, stored, tiny_model

from minilm_inf.checkpoint import load_model
from minilm_inf.positions import Alibi


def mpt_logits(raw: dict, tensors: dict, tokens: torch.Tensor, lm) -> torch.Tensor:
    """MPT's logits (T, V) for tokens (T,), from a config.json and the tensors by its names."""
    n_head, width = raw["n_heads"], raw["d_model"]
    facts, head_dim = raw["attn_config"], width // n_head
    scale = facts["softmax_scale"] or head_dim**-0.5

    def linear(x, name):  # of a norm, whose weight is a vector, it is the product of each
        weight = tensors[name + ".weight"]
        product = x @ weight.T if weight.dim() == 2 else x * weight
        return product + tensors.get(name + ".bias", 0.0)

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        deviation = ((centred**2).mean(-1, keepdim=True) + raw["layer_norm_epsilon"]) ** 0.5
        return linear(centred / deviation, name)

    x = tensors["transformer.wte.weight"][tokens]
    for layer in range(raw["n_layers"]):
        block = f"transformer.blocks.{layer}."
        qkv = linear(norm(x, block + "norm_1"), block + "attn.Wqkv")
        if facts["clip_qkv"]:  # before the norms, and of the values too
            qkv = qkv.clip(-facts["clip_qkv"], facts["clip_qkv"])
        q, k, v = qkv[:, :width], qkv[:, width : 2 * width], qkv[:, 2 * width :]
        if facts["qk_ln"]:  # over all heads together
            q, k = norm(q, block + "attn.q_ln"), norm(k, block + "attn.k_ln")
        gathered = torch.zeros_like(x)
        for head, slope in enumerate(Alibi(n_head, facts["alibi_bias_max"]).slopes):
            part = slice(head * head_dim, (head + 1) * head_dim)
            for i in range(len(x)):
                felt = seen_by(i, lm)
                keys, distances = list(felt), torch.tensor([*felt.values()]).double()
                logits = k[keys, part] @ q[i, part] * scale - slope * distances
                gathered[i, part] = logits.softmax(0) @ v[keys, part]
        x = x + linear(gathered, block + "attn.out_proj")
        up = linear(norm(x, block + "norm_2"), block + "ffn.up_proj")
        gelu = up * (1 + torch.erf(up / math.sqrt(2))) / 2
        x = x + linear(gelu, block + "ffn.down_proj")
    head = tensors.get("lm_head.weight", tensors["transformer.wte.weight"])
    return norm(x, "transformer.norm_f") @ head.T


PLAIN = dict(clip_qkv=None, qk_ln=False, bias=False)
VARIANTS = {  # name -> the facts of a tiny model; a key of its config.json, and another value
    "alibi_bias_max": (PLAIN | dict(alibi_bias_max=16.0), "alibi_bias_max", 8),
    "qk_ln": (PLAIN | dict(qk_ln=True), "qk_ln", False),
    "clip_qkv and qk_ln": (PLAIN | dict(clip_qkv=1.0, qk_ln=True), "clip_qkv", None),
    "norm_eps": (PLAIN | dict(norm_eps=0.1), "layer_norm_epsilon", 1e-5),
    "all at once, four heads": (
        dict(
            n_head=4, n_kv_head=4, n_embd=32, tied=False, clip_qkv=1.0, qk_ln=True, bias=True,
            softmax_scale=0.9, n_inner=61, alibi_bias_max=12.5, norm_eps=0.1,
        ),
        "softmax_scale", None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_the_formula(name, tmp_path):
    """Catches a fact that is dropped, misplaced or misnamed, where transformers cannot tell: a
    bias or a parameter that save drops or load misplaces; and a variant that computes what it
    would without its fact."""
    facts, key, other = VARIANTS[name]
    model, tokens = tiny_model("mpt", **facts), some_tokens(14)
    raw, tensors = stored(model, tmp_path)
    for lm in (SETTINGS["full attention"], SETTINGS["LM-Infinite"]):
        right = mpt_logits(raw, tensors, tokens[0], lm)
        assert 0.5 < right.std() < 2
        for way, read in READINGS.items():
            assert (read(model, tokens, lm)[0] - right).abs().max() <= 1e-10, way
    loaded = load_model(tmp_path, dtype=torch.float64)
    assert loaded.config == model.config
    ours, theirs = dict(model.named_parameters()), dict(loaded.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    part = raw if key in raw else raw["attn_config"]
    assert part[key] != other
    part[key] = other
    assert (mpt_logits(raw, tensors, tokens[0], lm) - right).abs().max() > 1e-3
