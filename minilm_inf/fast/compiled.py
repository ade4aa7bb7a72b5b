"""A decode step as a program: one block is recorded, compiled, and run for every layer.

The blocks of a model differ in nothing but their weights. So on a CPU one program, which is
handed a layer's weights, its part of the cache and what the token sees, serves all layers and
all tokens. How many columns the cache has is left open: the step passes over what is filled of
the ring, which doubles as a text grows. The program is recorded by torch.export, compiled ahead
of time (AOTInductor), kept on disk for the next run, and called once a layer: in it nothing is
looked up or checked. What is gained is the price of small operations, not of bytes.

A GPU has torch.compile, and a CUDA graph: all launches of a step, recorded once, as one launch.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..terminal.files import beside
from ..transformer import Transformer
from .cache import Cache
from .reading import OneToken, next_token

# One row times a matrix is a sum for each column, which fuses with what is around it. PyTorch
# does so up to 2,048 rows and columns; larger matrices stay products.
OPTIONS = {"post_grad_fusion_options": {"decompose_mm_pass": {}}}
KEPT_IN = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "minilm_inf")


def compiled_step(model: Transformer, cache: Cache):
    """model.decode, compiled when it is first called, or found on disk.

    Raises ValueError for a setting whose steps change their shape, and where there is no C++
    compiler for the CPU.
    """
    lm = cache.lm
    if not lm.n_local or lm.distance_ceiling not in (None, lm.n_local) or lm.top_k:
        raise ValueError(
            "only the chunked path with a window, a ceiling of its size or none, and no top-k "
            "can be compiled: leave out --compile"
        )
    if model.embed.weight.device.type != "cpu":
        return GraphedStep(torch.compile(model.decode, fullgraph=True, dynamic=False))
    compilers = os.environ.get("CXX", "g++"), "g++", "clang++"
    if not any(map(shutil.which, compilers)):
        raise ValueError(
            "there is no C++ compiler to compile the step with: install g++, or leave out "
            "--compile"
        )
    return CompiledStep(model)


class CompiledStep:
    """model.decode on a CPU, whose blocks are a program."""

    def __init__(self, model: Transformer):
        self.model = model
        self.weights = [tensors_of(block) for block in model.blocks]
        self.program = None  # a function of a list of tensors, to a list of one

    def __call__(self, tokens: Tensor, cache: Cache, position: Tensor) -> Tensor:
        """Transformer.decode. Raises ValueError where PyTorch cannot load the program."""
        cache.settle(cache.length + 1)
        model, x = self.model, self.model.embed(tokens)
        one = next_token(cache, model.scheme, position, model.config.softmax_scale, x)
        seen = [y for y in (one.turn, one.slot, one.slots, one.mask) if y is not None]
        for weights, ring in zip(self.weights, one.rings):
            inputs = [*weights.values(), x, *seen, *ring]
            if not self.program:
                self.program = program_of(Block(model.blocks[0], one), inputs, model.config)
            x = self.program(inputs)[0]
        return model.head(model.norm(x))[:, -1]


def tensors_of(block: nn.Module) -> dict[str, Tensor]:
    """All that a block has learnt, by name."""
    return {**dict(block.named_parameters()), **dict(block.named_buffers())}


class Block(nn.Module):
    """A block as a function of all that it reads in a decode step, as one list of tensors."""

    def __init__(self, block: nn.Module, one: OneToken):
        super().__init__()
        self.block = [block]  # in a list, it is no part of this module
        self.names, self.scale = list(tensors_of(block)), one.scale
        self.is_placed = one.turn is not None

    def forward(self, tensors: list[Tensor]) -> Tensor:
        weights = dict(zip(self.names, tensors))
        x, *seen, keys, values, starting = tensors[len(weights) :]
        turn = seen.pop(0) if self.is_placed else None
        one = OneToken(turn, *seen, self.scale, [(keys, values, starting)])
        return torch.func.functional_call(self.block[0], weights, (x, partial(one, 0)))


def program_of(block: Block, inputs: list[Tensor], config):
    """A block as a program: a function of a list like `inputs`, to a list of one tensor. Made
    once for a model's shapes, and kept in the user's cache, if that can be written to. Raises
    ValueError where PyTorch cannot load what it has compiled."""
    path = KEPT_IN / f"step-{key_of(block, inputs, config)}.pt2"
    with contextlib.suppress(RuntimeError):  # that what is there is no program
        if path.exists():
            return loaded(path)
    print("compiling the decode step: 20 seconds, once for this model", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "step.pt2")
        compile_block(block, inputs, made)
        if torch.version.cuda and not can_be_loaded(made):
            raise ValueError(
                "this PyTorch cannot load the step that it has compiled: leave out --compile"
            )
        with contextlib.suppress(ValueError), beside(path) as own:
            shutil.copyfile(made, own)
        return loaded(made)


def loaded(path: Path):
    """A program on disk as a function of a list of tensors, to a list. Raises RuntimeError
    where it is none."""
    return torch._inductor.aoti_load_package(str(path)).loader.boxed_run


def can_be_loaded(path: Path) -> bool:
    """Tried in a process of its own: some builds of PyTorch for CUDA crash over it (seen with
    2.11 for CUDA 13, and a model on the CPU)."""
    code = "import sys, torch; torch._inductor.aoti_load_package(sys.argv[1])"
    command = [sys.executable, "-c", code, str(path)]
    return subprocess.run(command, capture_output=True).returncode == 0


def any_columns(inputs: list[Tensor]) -> tuple[list[Tensor], list]:
    """Inputs of a block to record it with, and which of their dimensions are left open."""
    n_before, dims = inputs[-1].shape[2], [None] * len(inputs)
    columns = torch.export.Dim("columns", min=n_before + 2)
    dims[-4:] = {3: columns}, {2: columns}, {2: columns}, None  # mask, keys, values, starting
    some = []
    for x, dim in zip(inputs, dims):
        shape = [n_before + 64 if i in (dim or ()) else n for i, n in enumerate(x.shape)]
        some.append(torch.empty(shape, dtype=x.dtype))
    return some, dims


def compile_block(block: Block, inputs: list[Tensor], path: Path):
    """Record a block for any number of columns, and write it as a program."""
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # those that PyTorch gives about PyTorch
        inputs, dims = any_columns(inputs)
        recorded = torch.export.export(block, (inputs,), dynamic_shapes=(dims,), strict=False)
        torch._inductor.aoti_compile_and_package(
            recorded, package_path=str(path), inductor_configs=OPTIONS
        )


def key_of(block: Block, inputs: list[Tensor], config) -> str:
    """What a program depends on, in 16 letters: this package, PyTorch, the machine with its
    threads, the model, and the shapes of all but the columns."""
    shapes = [(tuple(x.shape), x.dtype) for x in (*inputs[:-4], inputs[-1])]
    machine = platform.node(), torch.__version__, torch.get_num_threads(), os.environ.get("CXX")
    key = hashlib.sha256(repr((machine, config, block.is_placed, shapes)).encode())
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        key.update(path.read_bytes())
    return key.hexdigest()[:16]


class GraphedStep:
    """model.decode on a GPU as one launch.

    A CUDA graph reads and writes the memory that it was recorded with, so token and position
    are copied there. Another cache is recorded anew; a step that is run twice writes the same
    key into the same slot, so that recording changes nothing.
    """

    def __init__(self, decode):
        self.decode, self.cache = decode, None

    def __call__(self, tokens: Tensor, cache: Cache, position: Tensor) -> Tensor:
        """Transformer.decode."""
        if cache is not self.cache:
            self.record(tokens.clone(), cache, position.clone())
        self.tokens.copy_(tokens)
        self.position.copy_(position)
        self.graph.replay()
        return self.logits

    def record(self, tokens: Tensor, cache: Cache, position: Tensor):
        """Have the graph of a step for a cache, which does not grow from here on."""
        cache.settle()
        apart = torch.cuda.Stream(tokens.device)
        apart.wait_stream(torch.cuda.current_stream(tokens.device))
        with torch.cuda.stream(apart):
            for _ in range(3):  # compiled, and at home in its memory
                self.decode(tokens, cache, position)
        torch.cuda.current_stream(tokens.device).wait_stream(apart)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = self.decode(tokens, cache, position)
        self.tokens, self.position, self.cache = tokens, position, cache
