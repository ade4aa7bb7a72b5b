"""A whole model: reading by length; decoding by context, and by position; many processes.

A text is read as Session and evaluate read it, chunk by chunk through the cache, and only the
last token is asked what follows. Decoding is greedy. Its other side is transformers'
LlamaForCausalLM with a DynamicCache, where that package is installed: the same weights, dtype,
device and threads. Where a GGUF file lies beside the weights, llama-cpp-python decodes it as
well. The extra memory of all of them is the cache.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch

from ..config import LMInfinite
from ..transformer import Transformer
from ..writing.session import Session
from .race import Row, race

CHUNK = 1024  # tokens that are read at a time


def random_ids(model: Transformer, count: int) -> list[int]:
    """Some ids of the model's vocabulary, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.config.vocab_size, (count,), generator=generator).tolist()


def prefill(model: Transformer, ids: list[int], lm: LMInfinite | None):
    """A function that reads ids, and returns the logits (V,) of what follows."""

    def read() -> torch.Tensor:
        session = Session(model, lm, prefill_chunk=CHUNK)
        logits = session.read(ids)
        read.extra_bytes = session.cache.nbytes
        return logits

    return read


def prefill_rows(model: Transformer, sizes) -> list[Row]:
    """A row for each length, and one for the vanilla model at the shortest, beyond which its
    O(n^2) would take all the time."""
    readings = [("LM-Infinite", n, LMInfinite.for_model(model.config)) for n in sizes.tokens]
    makers = [
        (Row(f"prefill: {name}", n, n), partial(prefill, model, random_ids(model, n), lm))
        for name, n, lm in [*readings, ("vanilla", sizes.tokens[0], None)]
    ]
    return race(makers, sizes.rounds, model.embed.weight.device)


class Ours:
    """A Session after some tokens, which writes `steps` more. position: where the last of the
    tokens stands; None, where they end."""

    def __init__(self, model, ids: list[int], steps: int, position=None, compile=False):
        lm, self.steps = LMInfinite.for_model(model.config), steps
        self.session = Session(model, lm, compile=compile)
        if position is not None:
            first = position - len(ids)
            self.session.cache = model.new_cache(1, lm, first_position=first)
        self.next = int(self.session.read(ids).argmax())

    def __call__(self):
        for _ in range(self.steps):
            self.session.accept(self.next)
            self.next = int(self.session.read([]).argmax())

    @property
    def extra_bytes(self) -> int:
        return self.session.cache.nbytes


class Theirs:
    """transformers' model of the same folder after some tokens. Each run begins with its cache
    cut back to those, so that its texts do not grow; with LM-Infinite nothing depends on what
    was read before the window. Raises ValueError where there is no such model."""

    def __init__(self, folder: Path, model: Transformer, ids: list[int], steps: int):
        if model.config.family != "llama":
            raise ValueError(f"the comparison is of Llama, and this is {model.config.family}")
        from transformers import DynamicCache, LlamaForCausalLM

        weight = model.embed.weight
        theirs = LlamaForCausalLM.from_pretrained(folder, dtype=weight.dtype)
        self.model, self.steps, self.context = theirs.eval().to(weight.device), steps, len(ids)
        self.cache = DynamicCache(config=self.model.config)
        for chunk in torch.tensor([ids], device=weight.device).split(CHUNK, 1):
            self.next = self.read(chunk)

    @torch.inference_mode()
    def read(self, tokens):
        """The id that is likeliest to follow the next tokens (1, T): (1, 1)."""
        out = self.model(tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1, keepdim=True)

    def __call__(self):
        self.cache.crop(self.context - self.cache.get_seq_length())  # by so many
        for _ in range(self.steps):
            self.next = self.read(self.next)
        return int(self.next)  # a GPU's work is done when its answer is here

    @property
    def extra_bytes(self) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)


class LlamaCpp:
    """llama-cpp-python with a folder's GGUF file after some tokens, to which each run returns.
    Its cache is of float16, for as many tokens as it is told of."""

    def __init__(self, path: Path, model: Transformer, ids: list[int], steps: int):
        from llama_cpp import Llama

        size, threads, config = len(ids) + steps, torch.get_num_threads(), model.config
        self.extra_bytes = 4 * config.n_layer * config.n_kv_head * config.head_dim * size
        self.model = Llama(
            str(path), n_ctx=size, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        self.model.eval(ids)
        self.steps, self.context, self.next = steps, len(ids), self.model.sample(temp=0)

    def __call__(self):
        self.model.n_tokens = self.context  # what was written after it is cut off
        for _ in range(self.steps):
            self.model.eval([self.next])
            self.next = self.model.sample(temp=0)


def decoding_rows(model: Transformer, folder: Path, sizes) -> list[Row]:
    """A race after each context, of both sides; and one of positions, near the beginning of a
    text and far from it. No text is read up to there: all have as many tokens, and their
    positions end there."""
    races, steps, ours = [], sizes.steps, partial(Ours, model, steps=sizes.steps)
    for n in sizes.contexts:
        ids = random_ids(model, n)
        theirs = partial(Theirs, folder, model, ids, steps)
        sides = [
            ("transformers, DynamicCache", theirs),
            ("LM-Infinite", partial(ours, ids=ids)),
        ]
        if sizes.compiled:
            sides.append(("LM-Infinite, compiled", partial(ours, ids=ids, compile=True)))
        for path in sorted(Path(folder).glob("*.gguf")):
            make = partial(LlamaCpp, path, model, ids, steps)
            sides.append((f"llama.cpp, {path.stem}", make))
        races.append([(f"decoding: {name}", n, make) for name, make in sides])
    ids, name = random_ids(model, sizes.positions[0]), "decoding at position: LM-Infinite"
    races.append([(name, n, partial(ours, ids=ids, position=n)) for n in sizes.positions])
    rows = []
    for entrants in races:
        made = [(Row(name, n, steps, steps=steps), make) for name, n, make in entrants]
        rows += race(made, sizes.decoding_rounds, model.embed.weight.device)
    return rows


def share_rows(folder: Path, sizes) -> list[Row]:
    """`evaluate perplexity` of this file, again and again, by one process of one thread and by
    two. The seconds are those that it tells, of the slower one, without the start of Python.
    Raises ValueError where a run fails."""
    n = 16 * sizes.tokens[0]
    rows = [Row(f"scoring: {count} of one thread", n, n) for count in (1, 2)]
    for number in range(2 * sizes.rounds):
        row, count = rows[number % 2], 1 + number % 2
        line = f"-m torch.distributed.run --standalone --nproc-per-node {count} -m "
        line += f"minilm_inf.evaluate perplexity --stream --length {n} --threads 1 --json"
        words = [sys.executable, *line.split(), "--model", folder, "--text", __file__]
        run = subprocess.run(words, capture_output=True, text=True)
        if run.returncode:
            raise ValueError(f"{count} of torchrun's processes failed: {run.stderr[-200:]}")
        row.base = rows[0]
        row.seconds.append(json.loads(run.stdout)["timing"]["seconds"])
    return rows
