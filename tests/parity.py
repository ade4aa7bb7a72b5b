"""Our logits against those of the installed transformers, on fresh random models.

    python tests/parity.py [SEED]

prints the largest absolute difference for every configuration of make_fixtures.py and for each
way of reading, and, under "saved", that of transformers itself from the folder that our save
writes; the exit code is 1 if one exceeds 1e-5. test_parity.py does the same against
logits that are committed, and needs no transformers.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent.parent))
from minilm_inf.checkpoint import load_model, save

TOLERANCE = 1e-5
WAYS = ("chunked", "reference", "cached")


def logits_of(folder: Path, way: str, tokens: torch.Tensor) -> torch.Tensor:
    """Logits (B, T, V) of a folder's model: in one go by either path, or token by token."""
    model = load_model(folder, dtype=torch.float32)
    if way != "cached":
        return model(tokens, path=way)
    cache = model.new_cache(tokens.shape[0])
    return torch.cat([model(token, cache=cache) for token in tokens.split(1, dim=1)], dim=1)


def difference(folder: Path, way: str) -> float:
    """The largest absolute difference between our logits and the folder's expected ones."""
    expected = load_file(folder / "expected.safetensors")
    ours = logits_of(folder, way, expected["tokens"])
    return (ours - expected["logits"]).abs().max().item()


def saved_difference(folder: Path) -> float:
    """The largest difference that our load and save make to what transformers computes."""
    from transformers import AutoModelForCausalLM

    save(load_model(folder), folder / "saved")
    theirs = AutoModelForCausalLM.from_pretrained(
        folder / "saved", attn_implementation="eager", dtype=torch.float32
    )
    expected = load_file(folder / "expected.safetensors")
    with torch.no_grad():
        return (theirs(expected["tokens"]).logits - expected["logits"]).abs().max().item()


def main() -> int:
    """Print the table. Returns the exit code."""
    import transformers
    from make_fixtures import CONFIGURATIONS, make_folder

    transformers.utils.logging.disable_progress_bar()
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    print(f"seed {seed}")
    print(f"{'configuration':<21}" + "".join(f"{way:>12}" for way in (*WAYS, "saved")))
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for family, name in CONFIGURATIONS:
            place = Path(folder) / family / name
            make_folder(family, name, place, seed)
            differences = [difference(place, way) for way in WAYS] + [saved_difference(place)]
            print(f"{family:<6} {name:<14}" + "".join(f"{d:12.1e}" for d in differences))
            worst = max(worst, *differences)
    print(f"largest {worst:.1e}, allowed {TOLERANCE:.0e}")
    return int(not worst <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
