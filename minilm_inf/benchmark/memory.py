"""How much memory one call needs at its peak, beyond its inputs and its output; and its work.

PyTorch's allocators count it: on CUDA they keep the peak, on the CPU the profiler notes what
each operation, or the kernel within, asks for and gives back. What a matrix library holds for
its own use is not among it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def extra_bytes(run: Callable[[], Tensor], device: torch.device | str) -> int | None:
    """Bytes that run() needs at its peak beyond what exists before it, and its output; None on
    a device that does not tell."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        output = run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before - output.nbytes
    if kind != "cpu":
        return None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        output = run()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return max(0, peak - output.nbytes)


def work(run: Callable[[], Tensor]) -> int:
    """Multiplications and additions in the products of run(), by PyTorch's own counter, which
    is told of the fused attention that it does not know, the CPU's."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    known = {fused: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
    with FlopCounterMode(display=False, custom_mapping=known) as count:
        run()
    return count.get_total_flops()
