"""A whole model: reading by length; decoding by context, by position, and over one long run.

A text is read as Session and evaluate read it, chunk by chunk through the cache, and only the
last token is asked what follows. Decoding is greedy. Its other side is transformers'
LlamaForCausalLM with a DynamicCache, where that package is installed: the same weights, dtype,
device and threads. Its cache is cut back to the context before each round, so that its texts do
not grow while they are timed; with LM-Infinite nothing depends on what was read before the
window.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ..config import LMInfinite
from ..terminal.progress import memory
from ..transformer import Transformer
from ..writing.costs import cache_bytes
from ..writing.session import Session
from .race import CannotRun, Row, race
from .sizes import Sizes

PREFILL, CONTEXT, POSITION = "prefill", "decoding", "decoding at position"
ENDURANCE = "decoding on and on"
OURS, VANILLA, COMPILED = "LM-Infinite", "vanilla", "LM-Infinite, compiled"
THEIRS = "transformers, DynamicCache"
LARGE_CHUNK = 4096  # tokens read at a time on the way to a far position


def random_ids(model: Transformer, count: int) -> torch.Tensor:
    """Some ids of the model's vocabulary, (1, count), always the same ones."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, count), generator=generator)
    return ids.to(model.embed.weight.device)


# ---- reading


class Prefill:
    """Reads tokens (1, T), and returns the logits (1, V) of what follows."""

    def __init__(self, model: Transformer, tokens, lm: LMInfinite | None, chunk: int):
        self.model, self.tokens, self.lm, self.chunk = model, tokens, lm, chunk

    @torch.inference_mode()
    def __call__(self):
        cache = self.model.new_cache(1, self.lm)
        hidden = self.model.prefill(self.tokens, self.lm, cache, self.chunk)
        self.extra_bytes = cache.nbytes
        return self.model.head(hidden[:, -1])


def prefill_rows(model: Transformer, sizes: Sizes, report: Callable[[str], None]) -> list[Row]:
    """A row for each length, and one for the vanilla model at the shortest, beyond which its
    O(n^2) would take all the time. The extra memory is the cache."""
    lm, shortest = LMInfinite.for_model(model.config), min(sizes.tokens)
    tokens, makers = random_ids(model, max(sizes.tokens)), []
    for name, n, setting in [*((OURS, n, lm) for n in sizes.tokens), (VANILLA, shortest, None)]:
        reading = Prefill(model, tokens[:, :n], setting, sizes.prefill_chunk)
        row = Row(PREFILL, name, n, tokens=n, base=(PREFILL, OURS, shortest))
        makers.append((row, lambda reading=reading: reading))
    race(makers, sizes.rounds, lambda now: report(f"{PREFILL}: {now}"), tokens.device)
    return [row for row, _ in makers]


# ---- decoding


class Ours:
    """A Session after some tokens, which writes `steps` more."""

    def __init__(self, session: Session, ids: list[int], steps: int):
        self.session, self.steps = session, steps
        self.next = int(session.read(ids).argmax())

    def __call__(self):
        for _ in range(self.steps):
            self.session.accept(self.next)
            self.next = int(self.session.read([]).argmax())

    @property
    def extra_bytes(self) -> int:
        return self.session.cache.nbytes


class Theirs:
    """transformers' model after some tokens."""

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
    def __call__(self):
        for _ in range(self.steps):
            out = self.model(self.next, past_key_values=self.cache, use_cache=True)
            self.next = out.logits[:, -1].argmax(-1, keepdim=True)
        return int(self.next)  # a GPU's work is done when its answer is here

    @property
    def extra_bytes(self) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)


def load_theirs(folder: Path, model: Transformer):
    """transformers' model of the same folder. Raises CannotRun where there is none."""
    if model.config.family != "llama":
        raise CannotRun(f"the comparison is of Llama, and this is {model.config.family}")
    from transformers import LlamaForCausalLM

    weight = model.embed.weight
    theirs = LlamaForCausalLM.from_pretrained(folder, dtype=weight.dtype)
    return theirs.eval().to(weight.device)


def decoding_rows(
    model: Transformer, folder: Path, sizes: Sizes, report: Callable[[str], None]
) -> list[Row]:
    """All rows of decoding. The extra memory is the cache, but in the long run the growth of
    resident memory."""
    theirs = functools.cache(lambda: load_theirs(folder, model))
    races = {f"{CONTEXT}, context {n:,}": by_context(model, theirs, n, sizes)
             for n in sizes.contexts}  # fmt: skip
    races[POSITION] = by_position(model, sizes)
    rows = []
    for label, makers in races.items():
        rounds, device = sizes.decoding_rounds, model.embed.weight.device
        race(makers, rounds, lambda now, label=label: report(f"{label}: {now}"), device)
        rows += [row for row, _ in makers]
    return rows + (rows_of_endurance(model, sizes.endurance, report) if sizes.endurance else [])


def by_context(model, theirs, context: int, sizes: Sizes) -> list[tuple[Row, Callable]]:
    """Eager, compiled, and the other side, whose model theirs() is, after `context` tokens."""
    lm, ids = LMInfinite.for_model(model.config), random_ids(model, context)[0].tolist()

    def compiled():
        if sizes.quick:
            raise CannotRun("compiling takes longer than --quick lasts")
        return Ours(Session(model, lm, compile=True), ids, sizes.steps)

    contestants = {
        OURS: lambda: Ours(Session(model, lm), ids, sizes.steps),
        COMPILED: compiled,
        THEIRS: lambda: Theirs(theirs(), ids, sizes.steps),
    }
    base = (CONTEXT, THEIRS, context)
    return [
        (Row(CONTEXT, name, context, tokens=sizes.steps, base=base), make)
        for name, make in contestants.items()
    ]


def by_position(model, sizes: Sizes) -> list[tuple[Row, Callable]]:
    """Eager decoding near the beginning of a text, and far from it."""
    lm, first = LMInfinite.for_model(model.config), min(sizes.positions)
    ids = random_ids(model, first if sizes.quick else max(sizes.positions))[0].tolist()

    def after(position: int) -> Ours:
        session = Session(model, lm, prefill_chunk=LARGE_CHUNK)
        if sizes.quick:
            session.cache = model.new_cache(1, lm, first_position=position - first)
        return Ours(session, ids[:position], sizes.steps)

    makers = []
    for n in sizes.positions:
        row = Row(POSITION, OURS, n, tokens=sizes.steps, base=(POSITION, OURS, first))
        makers.append((row, functools.partial(after, n)))
        if sizes.quick and n != first:
            row.notes.append(
                f"not read up to there: {first:,} tokens whose positions end at {n:,}"
            )
    return makers


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
        decoder()
        times.append(time.perf_counter() - began)
        if done % (5 * part) == 0:
            report(f"{ENDURANCE}: {done:,} of {count:,} tokens")
        if done in (2 * part, count):
            resident.append(memory()[0])
    early = Row(ENDURANCE, f"tokens {part:,} to {2 * part:,}", 2 * part, times[part : 2 * part])
    late = Row(ENDURANCE, f"the last {part:,} tokens", count, times[-part:], base=early.key)
    early.tokens = late.tokens = 1
    if None not in resident:
        late.extra_bytes = max(0, resident[1] - resident[0])
    predicted = cache_bytes(config, count, lm, model.embed.weight.dtype)
    late.notes.append(
        f"memory is the growth of resident memory since token {2 * part:,}; the cache ends at "
        f"{decoder.extra_bytes:,} bytes, where {predicted:,} are predicted"
    )
    return [early, late]
