"""The logits that transformers computed for tiny random models, met without transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from parity import TOLERANCE, WAYS, difference
from safetensors import safe_open

from minilm_inf.checkpoint import read_config

FIXTURES = Path(__file__).parent / "fixtures" / "llama"
NAMES = sorted(path.name for path in FIXTURES.iterdir())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name, way):
    """Catches any wrong weight, norm, angle, grouping, bias or scaling, in any of the paths."""
    assert difference(FIXTURES / name, way) <= TOLERANCE


def test_every_configuration_is_there():
    """Catches a fixture that was lost, and with it the only proof of its configuration."""
    assert set(NAMES) == {
        "mha", "gqa", "mqa", "tied", "head_dim", "attention_bias", "mlp_bias",
        "llama3", "linear", "theta_500000", "mistral",
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_fixtures_say_which_transformers_made_them(name):
    """Catches expected logits of unknown origin."""
    with safe_open(FIXTURES / name / "expected.safetensors", framework="pt") as file:
        assert file.metadata()["transformers"].split(".")[0].isdigit()


@pytest.mark.parametrize("kind_key", ["rope_type", "type"])
@pytest.mark.parametrize("name", NAMES)
def test_old_and_new_spelling_are_one_config(name, kind_key, tmp_path):
    """Catches a rope_theta or a scaling that is read in one spelling and lost in the other."""
    raw = json.loads((FIXTURES / name / "config.json").read_text())
    rope = raw.pop("rope_parameters")
    raw["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    rope.pop("type", None)
    raw["rope_scaling"] = None if kind == "default" else {kind_key: kind, **rope}
    raw["torch_dtype"] = raw.pop("dtype")
    (tmp_path / "config.json").write_text(json.dumps(raw))
    old, new = read_config(tmp_path), read_config(FIXTURES / name)
    assert old == new
    assert (new.rope_scaling is not None) == (name in ("llama3", "linear"))
    assert (new.rope_theta == 500000.0) == (name == "theta_500000")
