"""Growing texts, what the model remembers of them, and how it writes on: ids in, ids out.

With LM-Infinite the memory is constant, so a session never runs out. It holds several texts
side by side, each as if it were alone: those of different lengths are padded on the left, which
nobody sees. One text is a batch of one. What is remembered can be saved, and gone on from.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import NamedTuple

import torch

from ..checkpoint.checkpoint import dtype_name
from ..checkpoint.run_state import CONTEXT, checksum, read_state, write_state
from ..config import LMInfinite, require_integer
from ..fast.compiled import compiled_step
from ..fast.reading import starting_tokens_are_read
from ..terminal.checks import Guard, fitting, taken
from ..terminal.files import SAVED, check_output, shown
from ..transformer import Transformer
from . import sampling, saved_cache


class Session(Guard):
    """Texts that grow: by what is read, and by what the model writes.

    compile: take single tokens through a compiled step, see compiled.py. Raises ValueError
        where that cannot be.
    middle: where the past is kept that lm.top_k reaches back to, "ram" or "disk".
    n_texts: how many texts; they are known by their numbers, from 0.
    """

    def __init__(
        self, model: Transformer, lm: LMInfinite | None, prefill_chunk=1024, compile=False,
        middle="ram", n_texts=1,
    ):  # fmt: skip
        require_integer("prefill_chunk", prefill_chunk, at_least=1)
        self.model, self.lm, self.prefill_chunk, self.middle = model, lm, prefill_chunk, middle
        self.n_texts = n_texts
        self.forget()
        self.decode = compiled_step(model, self.cache) if compile else None

    def forget(self):
        """Begin as if nothing had been read."""
        self.cache = self.model.new_cache(self.n_texts, self.lm, middle=self.middle)
        self.unread: list[list[int]] = [[] for _ in range(self.n_texts)]  # one each, at most
        self.logits: torch.Tensor | None = None  # of the last read
        self.interrupted = False

    def read(self, ids: list[int]) -> torch.Tensor:
        """read_all, for a session of one text: the logits (V,) of the token that follows."""
        return self.read_all([ids])[0]

    @torch.inference_mode()
    def read_all(self, texts: list[list[int]], show=lambda done: None) -> torch.Tensor:
        """Take in ids for each text, in chunks; the logits (B, V) of the tokens that follow. A
        token that was written, and not read yet, is read first. After each chunk `show` is told
        how many tokens of the longest text were read. Nothing new: the last read's logits.

        Raises ValueError where a text has nothing to read, or, after the first read, more or
        less than another; for ids outside the model's vocabulary, for logits that are not
        numbers, and where an earlier call was interrupted by an exception.
        """
        self.check_whole()
        size, pairs = self.model.config.vocab_size, zip(self.unread, texts, strict=True)
        new = [unread + checked_ids(ids, size) for unread, ids in pairs]
        lengths = [len(ids) for ids in new]
        if not max(lengths) and self.logits is not None:
            return self.logits
        if not min(lengths):
            raise ValueError("there is nothing to read: give at least one token")
        if self.cache.length and len(set(lengths)) > 1:
            raise ValueError("texts side by side grow together: give each as many new tokens")
        padding = [max(lengths) - length for length in lengths]
        rows = [[0] * n + ids for n, ids in zip(padding, new)]
        with self.changing():
            if not self.cache.length:
                self.cache.pad(padding)
            tokens = torch.tensor(rows, device=self.model.embed.weight.device)
            self.logits = logits = self._logits(tokens, show)
            self.unread = [[] for _ in rows]
        sampling.require_numbers(logits)
        return logits

    def _logits(self, tokens: torch.Tensor, show) -> torch.Tensor:
        """Read tokens (B, T): the logits (B, V) that follow."""
        if self.decode and tokens.shape[1] == 1 and starting_tokens_are_read(self.cache):
            with self.cache.changing():
                position = torch.full((), self.cache.length, device=tokens.device)
                logits = self.decode(tokens, self.cache, position)
                self.cache.length += 1
            return logits.cpu()
        hidden = self.model.prefill(tokens, self.lm, self.cache, self.prefill_chunk, show)
        return self.model.head(hidden[:, -1]).cpu()

    def accept(self, id: int, number: int = 0):
        """Make a written token part of a text; the next read begins with it."""
        self.unread[number].append(id)

    @property
    def lengths(self) -> list[int]:
        """How many tokens each text has, with one that was written and is not read yet."""
        each = zip(self.cache.padding, self.unread)
        return [self.cache.length - padding + len(unread) for padding, unread in each]

    def owner(self) -> dict:
        """What a saved context belongs to, by the names that a sentence has for it."""
        config, weights = asdict(self.model.config), self.model.state_dict()
        return {
            "dtype": f"torch.{dtype_name(self.model)}", "number of texts": self.n_texts,
            "attention": asdict(self.cache.lm), "model": checksum(config, weights),
        }  # fmt: skip

    def save(self, path) -> tuple[int, int]:
        """Write all that load needs; returns the file's bytes, and those of them that are the
        past for lm.top_k. Raises ValueError where nothing was read, after an interrupted read,
        and where there is another file, or none can be written."""
        self.check_whole()
        if self.logits is None:
            raise ValueError("nothing was read yet: there is nothing to save")
        check_output(path, SAVED, "the file")
        cache = {f"cache.{name}": x for name, x in saved_cache.state_of(self.cache).items()}
        rows = {"tokens": self.lengths, "padding": self.cache.padding, "unread": self.unread}
        write_state(path, {"logits": self.logits, **cache}, self.owner() | rows, CONTEXT)
        past = sum(x.nbytes for name, x in cache.items() if ".middle." in name)
        return os.path.getsize(path), past

    @torch.inference_mode()
    def load(self, path):
        """Go on, bit for bit, where a session of the same model, lm and n_texts was saved; what
        was read here is forgotten. Raises ValueError, and forgets nothing, for another file."""
        facts, state = read_state(path, CONTEXT)
        for name, ours in self.owner().items():
            if facts.get(name) != ours:
                differ = f"{shown(facts.get(name))}, not {shown(ours)}"
                raise ValueError(f"{path} was saved with another {name} ({differ}): take that")
        shape = self.n_texts, self.model.config.vocab_size
        try:
            unread = [checked_ids(ids, shape[1]) for ids in facts["unread"]]
            logits = fitting(state.pop("logits", None), shape, self.model.embed.weight.dtype)
            cache = self.model.new_cache(shape[0], self.lm, 0, facts["padding"], self.middle)
            saved_cache.restore(cache, taken(state, "cache"))
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path} is no whole context: {CONTEXT[1]}") from error
        self.cache, self.unread, self.logits = cache, unread, logits.clone()
        self.interrupted = False


def checked_ids(ids, vocab_size: int) -> list[int]:
    """Ids as a list of ints. Raises ValueError for what is none, or out of range."""
    try:
        found = [operator.index(id) for id in ids]
    except TypeError as error:
        raise ValueError(f"token ids must be whole numbers, not {shown(ids)}") from error
    wrong = next((id for id in found if not 0 <= id < vocab_size), None)
    if wrong is not None:
        raise ValueError(
            f"token {shown(wrong)} is out of range: the model has the ids 0 to {vocab_size - 1}"
        )
    return found


class Step(NamedTuple):
    """A token that was drawn: its id, its log-probability under the model (temperature 1), and
    whether it ends the text, and is no part of it."""

    id: int
    logprob: float
    ends: bool


def write_all(
    session: Session, logits: torch.Tensor, max_new_tokens: int, temperature: float = 0.8,
    top_k: int = 50, top_p: float = 1.0, generators: list[torch.Generator | None] | None = None,
    stop_ids: tuple[int, ...] = (), n_ids: int | None = None,
) -> Iterator[tuple[int, Step]]:  # fmt: skip
    """Yield (text's number, token) for every text that has not ended, in turns; `logits` are
    those that session.read_all returned last. A text that has ended and waits for the others
    is read on with ids that nobody sees.

    An id of stop_ids ends a text.
    generators: one for each text; with the same seed each becomes what it would become alone.
    n_ids: only ids below it are drawn; a model may have more ids than its tokenizer, to round
    their number up.
    """
    sampling.check(temperature, top_k, top_p)
    require_integer("max_new_tokens", max_new_tokens, at_least=0)
    if not isinstance(stop_ids, tuple | list | set | frozenset):
        raise ValueError(f"stop_ids must be token ids in a tuple, not {shown(stop_ids)}")
    generators = generators or [None] * session.n_texts
    growing = list(range(session.n_texts))
    for count in range(max_new_tokens):
        if count:
            fillers = [[0] * (number not in growing) for number in range(session.n_texts)]
            logits = session.read_all(fillers)
        steps = []
        for number in growing:
            row = logits[number]
            id = sampling.choose(row[:n_ids], temperature, top_k, top_p, generators[number])
            step = Step(id, float(row.float().log_softmax(-1)[id]), id in stop_ids)
            steps.append((number, step))
            if not step.ends:
                session.accept(id, number)
        growing = [number for number, step in steps if not step.ends]
        yield from steps
        if not growing:
            return


def generate(
    model: Transformer, ids: list[int], lm: LMInfinite | None = None,
    max_new_tokens: int = 256, temperature: float = 0.8, top_k: int = 50, top_p: float = 1.0,
    seed: int | None = None, stop_ids: tuple[int, ...] | None = None, prefill_chunk: int = 1024,
    compile: bool = False, middle: str = "ram",
) -> Iterator[int]:  # fmt: skip
    """Yield up to max_new_tokens ids that follow `ids`.

    lm None is the vanilla model. temperature 0 is greedy. The same seed and settings give the
    same ids on the same machine. stop_ids None stands for the model's own eos_ids.
    prefill_chunk, compile and middle: as in Session.

    Raises ValueError for an empty prompt, ids out of range, and settings out of range, when the
    first id is asked for.
    """
    generator = sampling.seeded(seed)
    stop_ids = model.config.eos_ids if stop_ids is None else stop_ids
    session = Session(model, lm, prefill_chunk, compile, middle)
    steps = write_all(
        session, session.read_all([ids]), max_new_tokens, temperature, top_k, top_p,
        [generator], stop_ids,
    )  # fmt: skip
    for _, step in steps:
        if not step.ends:
            yield step.id
