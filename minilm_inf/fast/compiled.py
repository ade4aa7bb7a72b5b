"""A decode step as a program: recorded once, compiled, and run for every token that follows.

reading.py takes one token in shapes that never change, however long the text is. So on a
CPU the step can be recorded (torch.export) and compiled ahead of time (AOTInductor). The
program is handed the weights and the cache's rings, works in them, and copies none. It is
called past Python: nothing is looked up or checked between two tokens, which with torch.compile
takes longer than the arithmetic of a small model. A GPU, for which that counts less, has
torch.compile; and so has a CPU on which PyTorch cannot load what it has compiled.

What is gained is the price of operations, not of bytes: a model whose weights take longer to
read than that gains little. And since no shape changes, a step passes over the whole window
from the start: in a text much shorter than n_local, it is eager steps that are faster.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from ..transformer import Transformer
from .cache import Cache
from .reading import rings_of

# One row times a matrix is a sum for each column, which fuses with what is around it. PyTorch
# does so up to 2,048 rows and columns; larger matrices stay products.
OPTIONS = {"post_grad_fusion_options": {"decompose_mm_pass": {}}}


def compiled_step(model: Transformer, cache: Cache | None):
    """model.decode, compiled when it is first called: about half a minute.

    It serves any cache of the first one's shapes. Raises ValueError for a setting whose steps
    change their shape, and where there is no C++ compiler for the CPU.
    """
    lm = cache and cache.lm
    if not lm or not lm.n_local or lm.distance_ceiling not in (None, lm.n_local) or lm.top_k:
        raise ValueError(
            "only the chunked path with a window, a ceiling of its size or none, and no top-k "
            "can be compiled: leave out --compile"
        )
    if model.embed.weight.device.type != "cpu":
        return torch.compile(model.decode, fullgraph=True, dynamic=False)
    compilers = os.environ.get("CXX", "g++"), "g++", "clang++"
    if not any(map(shutil.which, compilers)):
        raise ValueError(
            "there is no C++ compiler to compile the step with: install g++, or leave out "
            "--compile"
        )
    return CompiledStep(model)


class CompiledStep:
    """model.decode on a CPU, as a program."""

    def __init__(self, model: Transformer):
        self.model = model
        self.names, self.weights = zip(*model.named_parameters())
        self.program = None  # a function of a list of tensors, to a list of tensors
        self.instead = None  # a function like model.decode, where there can be no program

    def __call__(self, tokens: Tensor, cache: Cache, position: Tensor) -> Tensor:
        """Transformer.decode."""
        rings = rings_of(cache)
        if not (self.program or self.instead):
            self._compile(tokens, cache, position, rings)
        if self.instead:
            return self.instead(tokens, cache, position)
        flat = [*self.weights, tokens, position]
        for ring in rings:
            flat.extend(x for x in ring if x is not None)
        return self.program(flat)[0]

    def _compile(self, tokens: Tensor, cache: Cache, position: Tensor, rings):
        with torch.inference_mode(False), torch.no_grad():
            # Inputs of the same shapes, of which only the weights' numbers are there.
            rings = [
                tuple(x if x is None else torch.empty_like(x) for x in ring) for ring in rings
            ]
            inputs = self.weights, torch.zeros_like(tokens), torch.zeros_like(position), rings
            self.program = compiled(self._recordable(cache), inputs)
        if self.program is None:
            print(
                "PyTorch cannot load what it has compiled ahead of time; torch.compile is used",
                file=sys.stderr,
            )
            self.instead = torch.compile(
                self.model.decode, fullgraph=True, dynamic=False, options={"cpp_wrapper": True}
            )

    def _recordable(self, cache: Cache) -> nn.Module:
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
    """A module as a program: a function of a list of its inputs' tensors. None where it cannot
    be loaded."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those that PyTorch gives about PyTorch
        recorded = torch.export.export(module, inputs, strict=False)
        path = str(Path(folder) / "step.pt2")
        path = torch._inductor.aoti_compile_and_package(
            recorded, package_path=path, inductor_configs=OPTIONS
        )
        if not can_be_loaded(path):
            return None
        return torch._inductor.aoti_load_package(path).loader.boxed_run


def can_be_loaded(path: str) -> bool:
    """Tried in a process of its own: some builds of PyTorch crash over it (seen with 2.11 for
    CUDA 13, on a CPU too)."""
    code = "import sys, torch; torch._inductor.aoti_load_package(sys.argv[1])"
    command = [sys.executable, "-c", code, path]
    return subprocess.run(command, capture_output=True).returncode == 0
