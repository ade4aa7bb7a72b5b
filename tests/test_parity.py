"""The logits that transformers computed for tiny random models, met without transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import FAMILIES
from parity import TOLERANCE, WAYS, difference
from safetensors import safe_open

from minilm_inf.checkpoint.checkpoint import read_config

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = sorted(
    f"{family}/{path.name}" for family in FAMILIES for path in FIXTURES.glob(f"{family}/*")
)
LLAMAS = [name for name in NAMES if name.startswith("llama/")]
DIFFERENT = 1e-2  # a thousand times what is allowed


@pytest.mark.parametrize(
    "name, way", [(name, WAYS[number % len(WAYS)]) for number, name in enumerate(NAMES * 2)]
)
def test_logits_are_those_of_transformers(name, way):
    """Catches any wrong weight, norm, angle, slope, grouping, bias or scaling, in any path."""
    assert difference(FIXTURES / name, way) <= TOLERANCE


def test_every_configuration_is_there():
    """Catches a fixture that was lost, and with it the only proof of its configuration; and
    expected logits of unknown origin."""
    families = [name.partition("/")[0] for name in NAMES]
    assert [families.count(family) for family in ("llama", "mpt", "gptj")] == [11, 6, 4]
    for name in NAMES:
        with safe_open(FIXTURES / name / "expected.safetensors", framework="pt") as file:
            assert file.metadata()["transformers"].split(".")[0].isdigit()


@pytest.mark.parametrize(
    "name, key, value",
    [
        ("mpt/heads_6", "alibi_bias_max", 16),
        ("mpt/heads_6", "n_heads", 4),
        ("mpt/clip_qkv", "clip_qkv", None),
        ("mpt/softmax_scale", "softmax_scale", None),
        ("mpt/untied", "layer_norm_epsilon", 0.1),
        ("gptj/partial", "rotary_dim", 8),
        ("gptj/whole", "rotary_dim", 4),
        ("gptj/partial", "layer_norm_epsilon", 0.1),
        ("llama/linear", "factor", 3.0),
        ("llama/llama3", "low_freq_factor", 2.0),
        ("llama/llama3", "high_freq_factor", 3.0),
    ],
)
def test_a_changed_fact_is_felt(name, key, value, tmp_path):
    """Negative control: catches a fixture too tame to tell, a bound that clips nothing."""
    folder = tmp_path / "changed"
    shutil.copytree(FIXTURES / name, folder)
    raw = json.loads((folder / "config.json").read_text())
    parts = raw, raw.get("attn_config", {}), raw.get("rope_parameters", {})
    part = next(part for part in parts if key in part)
    assert part[key] != value
    part[key] = value
    (folder / "config.json").write_text(json.dumps(raw))
    assert difference(folder, "chunked") > DIFFERENT


@pytest.mark.parametrize("name", LLAMAS)
def test_old_and_new_spelling_are_one_config(name, tmp_path):
    """Catches a rope_theta or a scaling that is read in one spelling and lost in the other."""
    raw = json.loads((FIXTURES / name / "config.json").read_text())
    rope = raw.pop("rope_parameters")
    raw["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    rope.pop("type", None)
    new = read_config(FIXTURES / name)
    for key in ("rope_type", "type"):
        raw["rope_scaling"] = None if kind == "default" else {key: kind, **rope}
        (tmp_path / "config.json").write_text(json.dumps(raw))
        assert read_config(tmp_path) == new
    assert (new.rope_scaling is not None) == (name in ("llama/llama3", "llama/linear"))
    assert (new.rope_theta == 500000.0) == (name == "llama/theta_500000")
