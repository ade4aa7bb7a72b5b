"""conformance/: a right kernel passes, and each planted mistake is called by its name."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from minilm_inf import Rotary, attend, chunked_attend
from minilm_inf.conformance import __main__ as program
from minilm_inf.conformance import check
from minilm_inf.conformance.questions import questions
from minilm_inf.lambda_mask import distances, lambda_mask

NAMES = list(questions())


def plain(q, k, v, i, j, scheme, lm, seen=None, slopes=None):
    """A kernel as one would write it for a first try, right but for `seen` and `slopes`."""
    group, exact = q.shape[1] // k.shape[1], torch.float64
    q, k, v = q.to(exact), *(x.to(exact).repeat_interleave(group, 1) for x in (k, v))
    d = distances(i, j)
    capped = d if lm.distance_ceiling is None else d.clamp(max=lm.distance_ceiling)
    near = scheme.place(q, i) @ scheme.place(k, j).mT
    far = near
    if lm.distance_ceiling is not None:
        far = scheme.place(q, torch.full_like(i, lm.distance_ceiling)) @ k.mT
    logits = torch.where((d == capped).unsqueeze(-3), near, far) / math.sqrt(q.shape[-1])
    if scheme.has_bias:
        slopes = scheme.slopes if slopes is None else slopes
        logits = logits - slopes[:, None, None] * capped.double().unsqueeze(-3)
    seen = lambda_mask(i, j, lm) if seen is None else seen
    logits = logits.masked_fill(~seen.unsqueeze(-3), -1e300)
    return logits.softmax(-1) @ v


def blind_and_poisoned(q, *others, **how):
    return plain(q, *others, **how).to(q.dtype)


def with_lm(**change):
    """attend, with some settings moved by a number, where they are not 0."""

    def kernel(*call):
        *others, lm = call
        moved = {name: getattr(lm, name) + by for name, by in change.items()
                 if getattr(lm, name)}  # fmt: skip
        return attend(*others, replace(lm, **moved))

    return kernel


def with_call(change):
    """attend, of other arguments."""
    return lambda *call: attend(*change(*call))


def heads_in_turn(q, k, v, *others):
    order = torch.arange(q.shape[1]) % k.shape[1]
    return attend(q, k[:, order], v[:, order], *others)


def last_block_unwritten(*call):
    out = attend(*call)
    out[:, :, 16 * (out.shape[2] // 16) :] = torch.nan
    return out


def counted_twice(q, k, v, i, j, scheme, lm):
    starts = j < lm.n_global
    if j.dim() == 2 or not starts.any() or scheme.has_bias:
        return attend(q, k, v, i, j, scheme, lm)
    twice = [torch.cat((x, x[:, :, starts]), 2) for x in (k, v)]
    return attend(q, *twice, i, torch.cat((j, j[starts])), scheme, lm)


def future_visible(q, k, v, i, j, scheme, lm):
    return plain(q, k, v, i, j, scheme, lm, lambda_mask(i + 1, j, lm)).to(q.dtype)


def gradient_of_k_lost(q, k, *others):
    return attend(q, k.detach(), *others)


def in_bfloat16(*call):
    return attend(*(x.bfloat16() for x in call[:3]), *call[3:]).to(call[0].dtype)


def positions_in_float32(q, k, v, i, j, *others):
    return attend(q, k, v, i.float().long(), j.float().long(), *others)


def slopes_backwards(q, k, v, i, j, scheme, lm):
    if not scheme.has_bias:
        return attend(q, k, v, i, j, scheme, lm)
    return plain(q, k, v, i, j, scheme, lm, slopes=scheme.slopes.flip(0)).to(q.dtype)


def pairs_as_halves(q, k, v, i, j, scheme, lm):
    scheme = scheme if scheme.has_bias else Rotary(scheme.rotary_dim)
    return attend(q, k, v, i, j, scheme, lm)


def padding_read(q, k, v, i, j, scheme, lm):
    seen = lambda_mask(i - j.min(), j - j.min(), replace(lm, n_global=0))
    seen = seen | lambda_mask(i, j, lm)
    return plain(q, k, v, i, j, scheme, lm, seen if j.min() < 0 else None).to(q.dtype)


def one_block_of_keys(q, k, v, i, j, *others):
    out = attend(q, k, v, i, j, *others)
    out[:, :, 512:] = 0
    return out


def ceiling_from_the_window(*call):
    *others, lm = call
    return attend(*others, replace(lm, distance_ceiling=lm.n_local))


MISTAKES = {  # what is planted: (the kernel, the name that it must get, a word of the finding)
    "window + 1": (with_lm(n_local=1), "window", "from row 24,"),
    "window - 1": (with_lm(n_local=-1), "window", "from row 23,"),
    "a starting token too many": (with_lm(n_global=1), "starting", "from row 28,"),
    "ceiling + 1": (with_lm(distance_ceiling=1), "ceiling", "from row 25,"),
    "ceiling - 1": (with_lm(distance_ceiling=-1), "ceiling", "from row 24,"),
    "the window as ceiling": (ceiling_from_the_window, "starting", "from row 25,"),
    "keys rotated twice": (
        with_call(lambda q, k, v, i, j, s, lm: (q, s.place(k, j), v, i, j, s, lm)),
        "positions", "from row 1,",
    ),
    "scale forgotten": (
        with_call(lambda q, *o: (q * math.sqrt(q.shape[-1]), *o)), "positions", "from row 1,",
    ),
    "heads dealt in turn": (heads_in_turn, "shapes", "(2, 4, 2, 32)"),
    "a starting token counted twice": (counted_twice, "starting", "from row 4,"),
    "last block unwritten": (last_block_unwritten, "shapes", "1 of 1 tokens"),
    "future visible": (future_visible, "positions", "from row 0,"),
    "gradient of k lost": (gradient_of_k_lost, "backward", "gradient of k not there"),
    "bfloat16 inside": (in_bfloat16, "positions", "from row 0,"),
    "positions in float32": (positions_in_float32, "far", "from row 0,"),
    "slopes backwards": (slopes_backwards, "positions", "ALiBi"),
    "pairs as halves": (pairs_as_halves, "positions", "RoPE pairs"),
    "padding read as text": (padding_read, "padding", "from row 7,"),
    "0 x NaN": (blind_and_poisoned, "poison", "from row 0,"),
    "one block of keys": (one_block_of_keys, "blocks", "from row 512,"),
    "a middle key too many": (with_lm(top_k=1), "top_k", "from row 69,"),
}  # fmt: skip


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_called_by_its_name(what):
    """Catches a question that brings in two things at once, and one that cannot fail."""
    kernel, name, word = MISTAKES[what]
    on_request = dict(top_k=name == "top_k", backward=name == "backward")
    skip = [] if name == "blocks" else ["blocks"]  # which take longest
    report = check(kernel, **on_request, skip=skip)
    assert next(iter(report)) == name and word in str(report[name]), report


def test_a_query_that_sees_nothing():
    """Catches a suite that takes the mean of all values for zeros."""

    def mean_of_values(*call):
        return plain(*(x.nan_to_num() for x in call[:3]), *call[3:]).to(call[0].dtype)

    assert list(check(mean_of_values)) == ["blind"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_right_kernel_passes(dtype):
    """Catches a tolerance that rounding alone exceeds, here by less than a factor of three."""
    for kernel in (attend, chunked_attend):
        report = check(kernel, dtype, backward=True, top_k=True)
        assert not report and list(report.done) == NAMES, report
    report = check(chunked_attend, dtype, placed=True, backward=True)
    assert not report and "ceiling" not in report.done


def test_what_is_not_done_is_no_mistake():
    """Catches a question that stops at the first thing which a kernel cannot do."""

    def grouped_not_done(q, k, *others):
        if q.shape[1] != k.shape[1]:
            raise NotImplementedError
        return attend(q, k, *others) + (0 if others[0].shape[2] != 16 else 1)

    report = check(grouped_not_done, skip=["positions"])
    answered, calls = report.done["shapes"]
    assert 0 < answered < calls and list(report) == ["shapes"] and "not done" in str(report)


@pytest.mark.parametrize("kernel, words", [
    (lambda *call: attend(*call)[:, :, 1:], "returned (1, 2, 15, 32)"),
    (lambda *call: attend(*call).double(), "torch.float64, not (1, 2, 16, 32)"),
    (lambda *call: None, "returned a NoneType"),
    (lambda q: q, "TypeError"),
])  # fmt: skip
def test_what_is_no_answer(kernel, words):
    """Catches a suite that dies of what it should report."""
    assert words in str(check(kernel)["positions"])


def test_the_program(tmp_path, monkeypatch, capsys):
    """Catches a wrong exit code, and a folder whose modules cannot be imported."""
    (tmp_path / "mine.py").write_text(
        "from dataclasses import replace\n"
        "from minilm_inf import attend\n"
        "def wide(*call):\n"
        "    return attend(*call[:6], replace(call[6], n_local=call[6].n_local + 1))\n"
    )
    monkeypatch.chdir(tmp_path)
    few = ["--skip", *(name for name in NAMES if name not in ("positions", "window"))]
    assert program.main(["minilm_inf:attend", *few, "--dtype", "float64"]) == 0
    assert program.main(["mine:wide", *few]) == 1
    assert "| window |" in capsys.readouterr().out
    assert program.main(["mine:wide", *few, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["found"]
    assert list(found) == ["window"] and found["window"]["row"] == 24
    for wrong in (["mine:narrow"], ["mine"], ["nowhere:wide"], ["mine:wide", "--skip", "all"],
                  ["mine:wide", "--placed", "--top-k"], ["minilm_inf:__doc__"]):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            program.main(wrong)
        assert ended.value.code == 2
        assert "Traceback" not in capsys.readouterr().err
