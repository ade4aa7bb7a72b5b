"""The Triton kernel without a GPU: `python tests/check_kernel.py`, which `make kernel` runs.

Interpreted, it is held to the definition by the conformance suite, alone and where fast/ calls
it; compiled for GPUs that are not here, its shared memory is held to each one's limit.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from unittest import mock

COMPILES = "--compile" in sys.argv
if not COMPILES:
    os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from minilm_inf import LMInfinite, chunked_attend, load  # noqa: E402
from minilm_inf.conformance import check  # noqa: E402
from minilm_inf.fast import chunked, kernel, reading, triton_band  # noqa: E402
from minilm_inf.fast.kernel import kernel_attend, kernel_band  # noqa: E402

SHARED_KIB = {80: 163, 89: 99, 90: 227}  # compute capability -> what a program may have
NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
POINTERS = "placed unplaced k v start_k start_v out".split()
READ_AS_BAND = chunked.read_as_band
NUMBERS = "n_queries n_keys n_starting n_local".split()


def by_the_kernel(q, k, v, k_positions, how):
    """chunked.read_as_band as it is on a GPU."""
    with mock.patch.object(torch.Tensor, "is_cuda", True):
        return READ_AS_BAND(q, k, v, k_positions, how)


def interpreted() -> bool:
    """Whether the kernel is right, asked alone and by chunked_attend."""
    is_right = True
    for dtype in NAMES:
        report = check(kernel_attend, dtype)
        print(f"kernel_attend in {NAMES[dtype]}, interpreted:\n{report}\n", flush=True)
        is_right &= not report and all(answered for answered, _ in report.done.values())
    calls = mock.Mock(side_effect=kernel_band)
    kernel.QUERIES_PER_STRETCH, kernel.kernel_band, reading.attend_band = 32, calls, calls
    chunked.read_as_band = by_the_kernel
    report = check(chunked_attend, skip=["blocks"])
    in_text = calls.call_count
    print(f"chunked_attend by the kernel:\n{report}\n", flush=True)
    model, lm = load("weights/tiny-llama")[0], LMInfinite(20, 4, 20)
    tokens, rows = torch.arange(5, 121).view(2, 58), [58, 41]
    with torch.no_grad():
        cache = model.new_cache(2, lm, padding=[0, 17])
        in_chunks = torch.cat([model(x, lm, cache) for x in tokens.split(13, 1)], 1)
        right = model(tokens, lm, path="reference", lengths=rows)
    each = [(in_chunks[r, -n:] - right[r, -n:]).abs().max() for r, n in enumerate(rows)]
    off, in_all = float(torch.stack(each).max()), calls.call_count
    print(f"tiny-llama in chunks of 13 by the kernel: off by {off:.1e}; {in_all} calls of it")
    answered = all(answered for answered, _ in report.done.values())
    return is_right and not report and answered and 0 < in_text < in_all and off < 1e-4


def compiled(capability: int, dim: int, dtype: torch.dtype, bias: bool = False) -> bool:
    """Whether the kernel compiles within the limit, in the sizes it is launched with."""
    chosen = triton_band.sizes(dim, dtype)
    options = {name: chosen.pop(name) for name in ("num_warps", "num_stages")}
    known = dict(H=32, GROUP=1, BIAS=bias, DIM=dim, WIDTH=dim, **chosen)
    kinds = dict.fromkeys(POINTERS, "*" + NAMES[dtype]) | dict(
        firsts="*i64", slopes="*fp32" if bias else "*i64"
    )
    kinds |= {f"{name}_steps": ("i32", "i32", "i32") for name in POINTERS[2:6]}
    kinds |= dict.fromkeys(NUMBERS, "i32") | dict(ceiling="i64", scale="fp32")
    aligned = {}  # what Triton finds out when it is called: addresses that 16 divides
    for index, kind in enumerate(kinds.values()):
        parts = range(3) if isinstance(kind, tuple) else [None] * (kind[0] == "*")
        aligned |= {(index,) if part is None else (index, part): [["tt.divisibility", 16]]
                    for part in parts}  # fmt: skip
    kinds |= dict.fromkeys(known, "constexpr")
    source = ASTSource(triton_band.band, kinds, known, aligned)
    program = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    kib, limit = program.metadata.shared / 1024, SHARED_KIB[capability]
    products = "wgmma" if "wgmma" in program.asm["ptx"] else "mma"
    what = f"sm_{capability}, head size {dim}, {NAMES[dtype]}" + ", ALiBi" * bias
    print(f"{what}: {kib:.0f} of {limit} KiB of shared memory, {products}", flush=True)
    return kib <= limit


if __name__ == "__main__":
    sizes = [(c, dim, dtype) for c in SHARED_KIB for dim in (64, 128, 256) for dtype in NAMES
             if dtype != torch.float16]  # fmt: skip
    sizes += [(c, 128, torch.bfloat16, True) for c in SHARED_KIB]
    is_right = all([compiled(*size) for size in sizes]) if COMPILES else interpreted()
    sys.exit(0 if is_right else 1)
