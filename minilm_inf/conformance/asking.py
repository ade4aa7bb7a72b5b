"""Ask a kernel, and compare its answers with the definition's."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention import attend
from ..terminal.files import shown
from ..terminal.tables import markdown
from .questions import Call, arguments, questions

# Values are drawn from a normal distribution, so answers are about 1 in size. Right kernels are
# off by 1e-15 in float64, and by 1e-6 in float32, which rounds by 6e-8 in sums of a thousand.
# The short types round q, k and weights by 2^-12 and 2^-9 and are off by some times as much.
# The planted mistakes of the tests are off by 0.1 to 4; bfloat16 in float32 by 0.01.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 1e-2}
TOLERANCES |= {torch.bfloat16: 6e-2}


@dataclass
class Finding:
    """What is wrong: in which call, what, from which row on, and by how much."""

    call: str
    what: str = ""
    row: int | None = None
    error: float | None = None

    def __str__(self) -> str:
        if self.row is None:
            return f"{self.what} ({self.call})"
        return f"{self.what} from row {self.row}, by {self.error:.2g} ({self.call})"


class Report(dict):
    """What is wrong, name -> Finding, in the order of the questions; empty if nothing is.
    Printed, it is a table of all that was asked.

    done: name -> (calls that were answered, all calls).
    """

    def __init__(self):
        self.done: dict[str, tuple[int, int]] = {}

    def __str__(self) -> str:
        lines, asked = [], questions()
        for name, (answered, calls) in self.done.items():
            words = [str(self[name])] if name in self else ["right"] if answered else []
            if answered < calls:
                words.append(f"{calls - answered} of {calls} calls not done")
            lines.append([name, asked[name][0], "; ".join(words)])
        return markdown(["question", "what it brings in", "answer"], lines)


def check(
    kernel, dtype=torch.float32, device="cpu", placed=False, backward=False, top_k=False,
    skip=(),
) -> Report:  # fmt: skip
    """What is wrong with kernel(q, k, v, q_positions, k_positions, scheme, lm), by name.

    placed:   the kernel takes q and k that are placed, scheme None and a ceiling of None.
    backward: ask for the gradients of q, k and v as well.
    top_k:    ask for lm.top_k as well.
    skip:     names of questions that are not asked.

    Raises ValueError for another name, dtype or mixture.
    """
    asked = questions()
    if unknown := set(skip) - set(asked):
        raise ValueError(f"there is no question {shown(min(unknown))}: {', '.join(asked)}")
    if dtype not in TOLERANCES or placed and top_k:
        raise ValueError("dtype must be one of floating point, and what is placed has no top_k")
    unasked = {"top_k": not top_k, "backward": not backward, "ceiling": placed}
    report = Report()
    for name, (_, calls) in asked.items():
        if name in skip or unasked.get(name):
            continue
        calls = [call for call in calls if not (placed and call.scheme.has_bias)]
        answered = 0
        for call in calls:
            with contextlib.suppress(NotImplementedError):
                found = wrong(kernel, call, dtype, device, placed, name == "backward")
                answered += 1
                if found and name not in report:
                    report[name] = found
        report.done[name] = answered, len(calls)
    return report


def wrong(kernel, call: Call, dtype, device, placed, backward) -> Finding | None:
    """How the kernel's answer to a call differs from the definition's, in float64, to the same
    vectors."""
    *qkv, i, j, scheme, lm = arguments(call, dtype, device, placed)
    exact = [x.double().requires_grad_(backward) for x in qkv]
    right = attend(*exact, i, j, scheme, lm)
    qkv = [x.requires_grad_(backward) for x in qkv]
    try:
        out = kernel(*qkv, i, j, scheme, lm)
        kind, expected = f"a {type(out).__name__}", f"{tuple(right.shape)}, {dtype}"
        if isinstance(out, Tensor):
            kind = f"{tuple(out.shape)}, {out.dtype}"
        if kind != expected:
            return Finding(str(call), f"returned {kind}, not {expected}")
        is_text = (i >= 0).expand(len(out), -1)[:, None, :, None]
        pairs = {"wrong": (out, right)}
        if not call.blind:
            pairs = {"wrong": (out.where(is_text, 0), right.where(is_text, 0))}
        if backward:
            weights = torch.randn(right.shape, generator=torch.Generator().manual_seed(0))
            weights = weights.to(device).where(is_text, 0)
            names = ("gradient of q wrong", "gradient of k wrong", "gradient of v wrong")
            (right * weights).sum().backward()
            (out * weights.to(dtype)).sum().backward()
            pairs |= {n: (x.grad, y.grad) for n, x, y in zip(names, qkv, exact)}
    except NotImplementedError:
        raise
    except Exception as error:
        return Finding(str(call), " ".join(f"{type(error).__name__}: {error}".split()))
    for what, (ours, theirs) in pairs.items():
        if ours is None:
            return Finding(str(call), what.replace("wrong", "not there"))
        error = (ours.double() - theirs).abs().nan_to_num(torch.inf).amax((0, 1, 3))
        bad = error > TOLERANCES[dtype] * theirs.abs().max().clamp(min=1)
        if bad.any():
            return Finding(str(call), what, int(bad.nonzero()[0]), float(error.max()))
    return None
