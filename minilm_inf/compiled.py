"""A decode step as a program: recorded once, compiled, and run for every token that follows.

decoding.py takes a token in shapes that never change, however long the text is. So the step can
be recorded (torch.export) and compiled ahead of the next token (AOTInductor): to C++ on a CPU,
to kernels on a GPU. The program is handed the weights and the cache's rings, works in them, and
copies none. It is called past Python: nothing is checked or looked up between two tokens, which
takes torch.compile longer than the arithmetic of a small model.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from .cache import Cache
from .layer_cache import ring_and_starting
from .transformer import Transformer

# One row times a matrix is a sum for each column, which fuses with what is around it. PyTorch
# does so up to 2,048 rows and columns; larger matrices stay products.
CPU_OPTIONS = {"post_grad_fusion_options": {"decompose_mm_pass": {}}}


class CompiledStep:
    """model.decode, compiled when it is first called: for any cache of that cache's shapes."""

    def __init__(self, model: Transformer):
        self.model = model
        self.names, self.weights = zip(*model.named_parameters())
        self.run = None

    def __call__(self, tokens: Tensor, cache: Cache, position: Tensor) -> Tensor:
        """Transformer.decode."""
        rings = cache.rings()
        if self.run is None:
            with torch.inference_mode(False), torch.no_grad():
                self.run = compiled(self._recorded(cache), self._like(tokens, position, rings))
        flat = [*self.weights, tokens, position]
        for ring in rings:
            flat.extend(x for x in ring if x is not None)
        return self.run(flat)[0]

    def _like(self, tokens: Tensor, position: Tensor, rings) -> tuple:
        """Inputs of the same shapes, of which only the weights' numbers are there."""
        rings = [tuple(x if x is None else torch.empty_like(x) for x in ring) for ring in rings]
        return self.weights, torch.zeros_like(tokens), torch.zeros_like(position), rings

    def _recorded(self, cache: Cache) -> nn.Module:
        step = Decode(self.model, cache)
        names = [f"model.{name}" for name in self.names]

        class Handed(nn.Module):
            """The step as a function of all that it reads, weights included."""

            def forward(self, weights, *inputs):
                return torch.func.functional_call(step, dict(zip(names, weights)), inputs)

        return Handed()


class Decode(nn.Module):
    """model.decode as a module, with the rings of a cache apart from it."""

    def __init__(self, model: Transformer, cache: Cache):
        super().__init__()
        self.model, self.cache = model, cache

    def forward(self, tokens: Tensor, position: Tensor, rings) -> Tensor:
        return self.model.decode(tokens, self.cache, position, rings)


def compiled(module: nn.Module, inputs: tuple):
    """The module as a program: a function of a list of its inputs' tensors, to a list."""
    on_cpu = inputs[1].device.type == "cpu"
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those that PyTorch gives about PyTorch
        recorded = torch.export.export(module, inputs, strict=False)
        path = torch._inductor.aoti_compile_and_package(
            recorded,
            package_path=str(Path(folder) / "step.pt2"),
            inductor_configs=CPU_OPTIONS if on_cpu else None,
        )
        program = torch._inductor.aoti_load_package(path)
    return program.loader.boxed_run


def compiled_step(model: Transformer, cache: Cache | None) -> CompiledStep:
    """The step for a model's texts, to be compiled when it is first taken: about half a minute.

    Raises ValueError for a setting whose steps change their shape, and where there is no C++
    compiler for the CPU.
    """
    if cache is None or not ring_and_starting(cache.lm) or cache.lm.top_k:
        raise ValueError(
            "only the chunked path with a window, a ceiling of its size or none, and no top-k "
            "can be compiled: leave out --compile"
        )
    compilers = os.environ.get("CXX", "g++"), "g++", "clang++"
    if model.embed.weight.device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise ValueError(
            "there is no C++ compiler to compile the step with: install g++, or leave out "
            "--compile"
        )
    return CompiledStep(model)
