"""Decoding: tokens per second by context, by position, and over one long run. All greedy.

The other side is transformers' LlamaForCausalLM with a DynamicCache, where that package is
installed: the same weights, dtype, device and threads. Its cache is cut back to the context
before each round, so that its texts do not grow while they are timed; with LM-Infinite nothing
depends on what was read before the window.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ..config import LMInfinite
from ..transformer import Transformer
from ..writing.planning.cached import cache_bytes
from ..writing.session import Session
from .attention_race import told
from .prefill_race import random_ids
from .rows import Row
from .sizes import Sizes
from .timing import CannotRun, Contestant, race, synchroniser

CONTEXT, POSITION, ENDURANCE = "decoding", "decoding at position", "decoding on and on"
EAGER, COMPILED, THEIRS = "LM-Infinite", "LM-Infinite, compiled", "transformers, DynamicCache"
LARGE_CHUNK = 4096  # tokens read at a time on the way to a far position


class Ours:
    """A Session behind some tokens."""

    def __init__(self, session: Session, ids: list[int], steps: int):
        self.session, self.steps = session, steps
        self.next = int(session.read(ids).argmax())

    def run(self):
        for _ in range(self.steps):
            self.session.accept(self.next)
            self.next = int(self.session.read([]).argmax())

    @property
    def cache_bytes(self) -> int:
        return self.session.cache_bytes


class Theirs:
    """transformers' model behind some tokens."""

    def __init__(self, model, ids: list[int], steps: int):
        from transformers import DynamicCache

        self.model, self.steps, self.context = model, steps, len(ids)
        self.cache = DynamicCache(config=model.config)
        tokens = torch.tensor([ids], device=model.device)
        with torch.inference_mode():
            for chunk in tokens.split(512, 1):
                out = model(chunk, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.next = out.logits[:, -1].argmax(-1, keepdim=True)

    def prepare(self):
        extra = self.cache.get_seq_length() - self.context
        if extra:
            self.cache.crop(-extra)

    @torch.inference_mode()
    def run(self):
        for _ in range(self.steps):
            out = self.model(self.next, past_key_values=self.cache, use_cache=True)
            self.next = out.logits[:, -1].argmax(-1, keepdim=True)
        return int(self.next)  # a GPU's work is done when its answer is here

    @property
    def cache_bytes(self) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)


def load_theirs(folder: Path, model: Transformer):
    """transformers' model of the same folder. Raises CannotRun where there is none."""
    if model.config.family != "llama":
        raise CannotRun(f"the comparison is of Llama, and this is {model.config.family}")
    try:
        from transformers import LlamaForCausalLM
    except ImportError as error:
        raise CannotRun("transformers is not installed") from error
    weight = model.embed.weight
    theirs = LlamaForCausalLM.from_pretrained(folder, dtype=weight.dtype)
    return theirs.eval().to(weight.device)


def decoding_rows(
    model: Transformer, folder: Path, sizes: Sizes, report: Callable[[str], None]
) -> list[Row]:
    """All rows of decoding. The extra memory is the cache, but in the long run the growth of
    resident memory."""
    rows = []
    theirs = functools.cache(lambda: load_theirs(folder, model))
    for context in sizes.contexts:
        rows += rows_of_context(model, theirs, context, sizes, report)
    if sizes.positions:
        rows += rows_of_positions(model, sizes, report)
    if sizes.endurance:
        rows += rows_of_endurance(model, sizes.endurance, report)
    return rows


def rows_of_context(model, theirs, context: int, sizes: Sizes, report) -> list[Row]:
    """Eager, compiled, and the other side, whose model theirs() is, behind `context` tokens."""
    lm, ids = LMInfinite.for_model(model.config), random_ids(model, context)[0].tolist()

    def compiled():
        if not sizes.compiled:
            raise CannotRun("compiling takes longer than --quick lasts")
        return Ours(Session(model, lm, compile=True), ids, sizes.steps)

    makers = {
        EAGER: lambda: Ours(Session(model, lm), ids, sizes.steps),
        COMPILED: compiled,
        THEIRS: lambda: Theirs(theirs(), ids, sizes.steps),
    }
    base = (CONTEXT, THEIRS, context)
    label = f"{CONTEXT}, context {context:,}"
    return decode(makers, CONTEXT, dict.fromkeys(makers, (context, base)), sizes, label, report,
                  model.embed.weight.device)  # fmt: skip


def rows_of_positions(model, sizes: Sizes, report) -> list[Row]:
    """Eager decoding near the beginning of a text, and far from it."""
    lm, first = LMInfinite.for_model(model.config), min(sizes.positions)
    ids = random_ids(model, max(sizes.positions) if sizes.read_on else first)[0].tolist()

    def behind(position: int) -> Ours:
        session = Session(model, lm, prefill_chunk=LARGE_CHUNK)
        if sizes.read_on:
            return Ours(session, ids[:position], sizes.steps)
        session.cache = model.new_cache(1, lm, first_position=position - first)
        return Ours(session, ids, sizes.steps)

    # Each position is a contestant; its name in the race is its number.
    makers = {str(n): lambda n=n: behind(n) for n in sizes.positions}
    base = (POSITION, EAGER, first)
    rows = decode(makers, POSITION, {str(n): (n, base) for n in sizes.positions}, sizes,
                  POSITION, report, model.embed.weight.device)  # fmt: skip
    for row in rows:
        row.name = EAGER
        if not sizes.read_on and row.n != first:
            row.notes.append(
                f"not read up to there: {first:,} tokens whose positions end at {row.n:,}"
            )
    return rows


def decode(makers, group: str, places: dict, sizes: Sizes, label: str, report, device):
    """A race of decoders, as rows. places: name -> the row's n, and its base."""
    made = {}

    def maker(name: str):
        def make() -> Contestant:
            decoder = made[name] = makers[name]()
            return Contestant(name, decoder.run, getattr(decoder, "prepare", None))

        return make

    rounds = sizes.decoding_rounds
    results = race(
        {name: maker(name) for name in makers},
        rounds,
        lambda number: report(f"{label}: {told(number, rounds)}"),
        synchroniser(device),
    )
    rows = []
    for name, (n, base) in places.items():
        row = Row(group, name, n, tokens=sizes.steps, base=base).take(results[name])
        row.extra_bytes = made[name].cache_bytes if row.seconds else None
        rows.append(row)
    return rows


def rows_of_endurance(model: Transformer, count: int, report) -> list[Row]:
    """One run of `count` tokens: the time of one early and late, and the memory between.

    The rounds of a row are the single tokens of a twentieth of the run: of its second, and of
    its last.
    """
    lm, config = LMInfinite.for_model(model.config), model.config
    start = 0 if config.bos_id is None else config.bos_id
    decoder, part = Ours(Session(model, lm), [start], steps=1), max(1, count // 20)
    times, resident = [], []
    for done in range(1, count + 1):
        began = time.perf_counter()
        decoder.run()
        times.append(time.perf_counter() - began)
        if done % (5 * part) == 0:
            report(f"{ENDURANCE}: {done:,} of {count:,} tokens")
        if done in (2 * part, count):
            resident.append(resident_bytes())
    early = Row(ENDURANCE, f"tokens {part:,} to {2 * part:,}", 2 * part, times[part : 2 * part])
    late = Row(ENDURANCE, f"the last {part:,} tokens", count, times[-part:], base=early.key)
    for row in (early, late):
        row.tokens = 1
    if None not in resident:
        late.extra_bytes = max(0, resident[1] - resident[0])
    predicted = cache_bytes(config, count, lm, model.embed.weight.dtype)
    late.notes.append(
        f"memory is the growth of resident memory since token {2 * part:,}; the cache ends at "
        f"{decoder.cache_bytes:,} bytes, where {predicted:,} are predicted"
    )
    return [early, late]


def resident_bytes() -> int | None:
    """Resident memory of this process in bytes; None where the system does not tell."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
