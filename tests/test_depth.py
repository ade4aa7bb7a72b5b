"""What passes through the layers: that a key stands as far back as is said, and the reach."""

import sys
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from conftest import ROOT, tiny_model

from minilm_inf import load_tokenizer
from minilm_inf.train.practice import Practice

sys.path.insert(0, str(ROOT / "weights" / "pages"))  # programs, and no package
import depth  # noqa: E402

TOKENIZER = load_tokenizer(ROOT / "weights" / "nano-llama")
TEXT = TOKENIZER.encode((ROOT / "tutorials" / "text.txt").read_text(encoding="utf-8"))
PRACTICE = Practice(TOKENIZER, np.array(TEXT))


def test_each_digit_is_due_as_far_after_it_was_stated_as_is_said():
    """Catches a distance that is off by one, or of the first digit alone; another's key that
    counts as right; and a difference of the wrong sign."""

    def copies(distance, rows, lm):
        """The token so far back is the likeliest next one, by four nats."""
        before = torch.zeros(len(rows), distance, dtype=torch.long)
        copied = torch.cat((before, rows), 1)[:, : rows.shape[1]]
        return 4.0 * F.one_hot(copied, TOKENIZER.vocab_size)

    for distance in (60, 127, 128):
        found = depth.keys(partial(copies, distance), PRACTICE, distance)
        assert (
            found["right"] == 1 and found["interval"][0] < found["nats"] < found["interval"][1]
        )
        assert 16 < found["nats"] < 20  # of ten digits of another key, one is the same
        assert depth.keys(partial(copies, distance + 1), PRACTICE, distance)["right"] < 0.1


def test_influence_and_gradient_end_at_the_reach():
    """Catches a reach that is one token short or long, and what another token does."""
    model = tiny_model("llama", vocab_size=TOKENIZER.vocab_size).requires_grad_()
    at, beyond = depth.at_the_reach(model, PRACTICE)
    assert at > 0 == beyond
    with torch.no_grad():
        found = depth.influence(model, PRACTICE)
    assert found[0] > 0.01 and found[254] > 1e-14 > max(found[255:])
