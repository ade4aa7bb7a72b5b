"""Does memory hold a model and its cache? Answered by formula, before anything is loaded."""

from __future__ import annotations

import torch

from ..config import LMInfinite, ModelConfig
from ..terminal.progress import available_memory
from ..writing.costs import cache_bytes

LENGTHS = (4096, 32_768, 1_048_576)  # tokens for which the cache is told


def memory(config: ModelConfig, parameters: int, dtype: torch.dtype) -> dict:
    """Bytes of the weights and of one text's cache in a dtype, and whether both together fit.

    float32_bytes, of the weights, is told whatever the dtype; "fits" is None where the system
    does not tell its available memory.
    """
    available, weights = available_memory(), parameters * dtype.itemsize
    settings = {"vanilla": None, "lm_infinite": LMInfinite.for_model(config, n_global=10)}
    cache = []
    for name, lm in settings.items():
        for length in LENGTHS:
            n_bytes = cache_bytes(config, length, lm, dtype)
            fits = None if available is None else weights + n_bytes <= available
            cache.append({"reading": name, "tokens": length, "bytes": n_bytes, "fits": fits})
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "weights_bytes": weights,
        "float32_bytes": 4 * parameters,
        "available_bytes": available,
        "cache": cache,
    }
