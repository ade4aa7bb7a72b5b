"""models/mpt.py and models/gptj.py, held to their formulas, and what they store by which name.

transformers leaves out three facts of MosaicML's own code, an alibi_bias_max other than 8,
biases and qk_ln, so that no fixture of its making can tell them: here stands the formula.
"""

from __future__ import annotations

import math

import pytest
import torch
from conftest import READINGS, SETTINGS, layer_norm, seen_by, some_tokens, stored, tiny_model
from safetensors.torch import load_file, save_file

from minilm_inf.checkpoint import load_model, save

LM_INFINITE = SETTINGS["LM-Infinite"]
DIFFERENT = 1e-3


def slopes_of(n_head: int, bias_max: float) -> list[float]:
    """ALiBi's slopes (Press et al., section 3), as MosaicML takes them for any head count."""
    power = 1
    while power < n_head:
        power *= 2
    slopes = [2.0 ** (-bias_max * t / power) for t in range(1, power + 1)]
    if power == n_head:
        return slopes
    return [*slopes[1::2], *slopes[0::2]][:n_head]


def mpt_logits(raw: dict, tensors: dict, tokens: torch.Tensor, lm) -> torch.Tensor:
    """MPT's logits (T, V) for tokens (T,), from a config.json and the tensors by its names."""
    n_head, width = raw["n_heads"], raw["d_model"]
    facts, head_dim = raw["attn_config"], width // n_head
    scale = facts["softmax_scale"] or head_dim**-0.5

    def linear(x, name):
        return x @ tensors[name + ".weight"].T + tensors.get(name + ".bias", 0.0)

    def norm(x, name):
        bias = tensors.get(name + ".bias", 0.0)
        return layer_norm(x, tensors[name + ".weight"], bias, raw["layer_norm_epsilon"])

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
        for head, slope in enumerate(slopes_of(n_head, facts["alibi_bias_max"])):
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


def test_the_slopes_of_the_specification():
    """Catches a specification that is wrong in the very way of the code: slopes by hand."""
    assert slopes_of(4, 8) == [1 / 4, 1 / 16, 1 / 64, 1 / 256]
    assert slopes_of(4, 16) == [1 / 16, 1 / 256, 1 / 4096, 1 / 65536]
    assert slopes_of(6, 8) == [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]
    assert slopes_of(6, 16) == [1 / 16, 1 / 256, 1 / 4096, 1 / 65536, 1 / 4, 1 / 64]


def gptj_logits(raw: dict, tensors: dict, tokens: torch.Tensor, lm) -> torch.Tensor:
    """GPT-J's logits (T, V) for tokens (T,), from a config.json and the tensors by its names.

    Each pair of neighbouring coordinates is a complex number, and a distance turns it.
    """
    n_head, width, rotary_dim = raw["n_head"], raw["n_embd"], raw["rotary_dim"]
    head_dim, eps = width // n_head, raw["layer_norm_epsilon"]
    angles = 10000.0 ** (-torch.arange(0, rotary_dim, 2).double() / rotary_dim)

    def norm(x, name):
        return layer_norm(x, tensors[name + ".weight"], tensors[name + ".bias"], eps)

    def pairs(x):
        return torch.complex(x[..., 0:rotary_dim:2], x[..., 1:rotary_dim:2])

    x = tensors["transformer.wte.weight"][tokens]
    for layer in range(raw["n_layer"]):
        block = f"transformer.h.{layer}."
        normed = norm(x, block + "ln_1")
        q, k, v = (normed @ tensors[f"{block}attn.{c}_proj.weight"].T for c in "qkv")
        gathered = torch.zeros_like(x)
        for head in range(n_head):
            part = slice(head * head_dim, (head + 1) * head_dim)
            for i in range(len(x)):
                felt = seen_by(i, lm)
                keys, query = k[list(felt), part], q[i, part]
                turns = torch.tensor([*felt.values()])[:, None] * angles
                turned = pairs(query) * pairs(keys).conj() * torch.exp(1j * turns)
                passing = keys[:, rotary_dim:] @ query[rotary_dim:]
                logits = (turned.real.sum(-1) + passing) / math.sqrt(head_dim)
                gathered[i, part] = logits.softmax(0) @ v[list(felt), part]
        attended = gathered @ tensors[block + "attn.out_proj.weight"].T
        up = normed @ tensors[block + "mlp.fc_in.weight"].T + tensors[block + "mlp.fc_in.bias"]
        inner = math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)
        gelu = up * (1 + torch.tanh(inner)) / 2
        down = gelu @ tensors[block + "mlp.fc_out.weight"].T
        x = x + attended + down + tensors[block + "mlp.fc_out.bias"]
    head = tensors.get("lm_head.weight", tensors["transformer.wte.weight"])
    return norm(x, "transformer.ln_f") @ head.T + tensors["lm_head.bias"]


FOUR_HEADS = dict(n_head=4, n_kv_head=4, n_embd=32)
PLAIN = dict(clip_qkv=None, qk_ln=False, bias=False)
VARIANTS = {  # family -> name -> facts of a tiny model
    "mpt": {
        "plain": PLAIN,
        "alibi_bias_max, four heads": PLAIN | FOUR_HEADS | dict(alibi_bias_max=16.0),
        "alibi_bias_max": PLAIN | dict(alibi_bias_max=16.0),
        "qk_ln": PLAIN | dict(qk_ln=True),
        "clip_qkv": PLAIN | dict(clip_qkv=1.0),
        "clip_qkv and qk_ln": PLAIN | dict(clip_qkv=1.0, qk_ln=True, bias=True),
        "softmax_scale": PLAIN | dict(softmax_scale=0.9, tied=False),
        "norm_eps": PLAIN | dict(norm_eps=0.1),
        "all at once": dict(
            tied=False, clip_qkv=1.0, qk_ln=True, bias=True, softmax_scale=0.9, n_inner=61,
            alibi_bias_max=12.5, norm_eps=0.1,
        ),
    },
    "gptj": {
        "part of a head turns": {},
        "a pair of a head turns": dict(rotary_dim=2, n_inner=61),
        "a whole head turns": dict(rotary_dim=8, n_inner=128),
        "tied": dict(tied=True),
        "norm_eps": dict(norm_eps=0.1),
    },
}  # fmt: skip
LOGITS = {"mpt": mpt_logits, "gptj": gptj_logits}
NAMED = [(family, name) for family in VARIANTS for name in VARIANTS[family]]


@pytest.mark.parametrize("family, name", NAMED)
def test_the_formula(family, name, tmp_path):
    """Catches a fact that is dropped, misplaced or misnamed, where transformers cannot tell:
    wrong pairs, a wrong gelu, a bias or a parameter that save drops or load misplaces."""
    model, tokens = tiny_model(family, **VARIANTS[family][name]), some_tokens(14)
    raw, tensors = stored(model, tmp_path)
    for lm in (SETTINGS["full attention"], LM_INFINITE):
        right = LOGITS[family](raw, tensors, tokens[0], lm)
        assert 0.5 < right.std() < 2
        for way, read in READINGS.items():
            assert (read(model, tokens, lm)[0] - right).abs().max() <= 1e-10, way
    loaded = load_model(tmp_path, dtype=torch.float64)
    assert loaded.config == model.config
    ours, theirs = dict(model.named_parameters()), dict(loaded.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (loaded.head.weight is loaded.embed.weight) == model.config.tied


@pytest.mark.parametrize(
    "family, name, key, value",
    [
        ("mpt", "alibi_bias_max", "alibi_bias_max", 8),
        ("mpt", "qk_ln", "qk_ln", False),
        ("mpt", "clip_qkv", "clip_qkv", None),
        ("mpt", "clip_qkv and qk_ln", "clip_qkv", None),
        ("mpt", "softmax_scale", "softmax_scale", None),
        ("mpt", "norm_eps", "layer_norm_epsilon", 1e-5),
        ("gptj", "part of a head turns", "rotary_dim", 8),
        ("gptj", "part of a head turns", "rotary_dim", 4),
        ("gptj", "a whole head turns", "rotary_dim", 6),
        ("gptj", "norm_eps", "layer_norm_epsilon", 1e-5),
    ],
)
def test_the_formula_feels_each_fact(family, name, key, value, tmp_path):
    """Negative control: catches a variant that computes what it would without its fact."""
    model, tokens = tiny_model(family, **VARIANTS[family][name]), some_tokens(20)
    raw, tensors = stored(model, tmp_path)
    part = raw if key in raw else raw["attn_config"]
    assert part[key] != value
    part[key] = value
    wrong = LOGITS[family](raw, tensors, tokens[0], SETTINGS["full attention"])
    assert (model(tokens)[0] - wrong).abs().max() > DIFFERENT


# What is stored

NAMES = {  # family -> where a layer's tensors are; with a weight only, and with a bias too
    "mpt": (
        "transformer.blocks.0.", "",
        "norm_1 attn.Wqkv attn.q_ln attn.k_ln attn.out_proj norm_2 ffn.up_proj ffn.down_proj",
    ),
    "gptj": (
        "transformer.h.0.", "attn.q_proj attn.k_proj attn.v_proj attn.out_proj",
        "ln_1 mlp.fc_in mlp.fc_out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", NAMES)
def test_the_names_of_the_tensors(family, tmp_path):
    """Catches a name that only our own load would know."""
    _, tensors = stored(tiny_model(family, n_layer=1, tied=False), tmp_path)
    layer, weights, both = NAMES[family]
    names = {f"{layer}{part}.weight" for part in (weights + " " + both).split()}
    names |= {f"{layer}{part}.bias" for part in both.split()}
    norm = "transformer.norm_f" if family == "mpt" else "transformer.ln_f"
    names |= {"transformer.wte.weight", "lm_head.weight", f"{norm}.weight", f"{norm}.bias"}
    assert tensors.keys() == names | ({"lm_head.bias"} if family == "gptj" else set())


def add_tensor(folder, name, tensor):
    path = folder / "model.safetensors"
    save_file(load_file(path) | {name: tensor}, path)


@pytest.mark.parametrize(
    "name, buffer",
    [
        ("attn.bias", torch.ones(1, 1, 16, 16).tril().bool()),
        ("attn.bias", torch.ones(1, 1, 16, 16).tril().byte()),
        ("attn.masked_bias", torch.tensor(-1e9)),
    ],
)
def test_buffers_are_ignored_by_name(name, buffer, tmp_path):
    """Catches the published GPT-J-6B refused because it stores its mask beside its weights."""
    model = tiny_model("gptj", dtype=torch.float32)
    save(model, tmp_path)
    for layer in range(2):
        add_tensor(tmp_path, f"transformer.h.{layer}.{name}", buffer.clone())
    loaded = load_model(tmp_path)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name))


@pytest.mark.parametrize("name", ["attn.q_proj.bias", "bias", "ln_2.weight"])
def test_any_other_surplus_tensor_is_refused(name, tmp_path):
    """Catches a part of the model that is left out."""
    save(tiny_model("gptj", dtype=torch.float32), tmp_path)
    add_tensor(tmp_path, f"transformer.h.0.{name}", torch.zeros(32))
    with pytest.raises(ValueError, match=f"^the tensor transformer.h.0.{name} .*no place"):
        load_model(tmp_path)
