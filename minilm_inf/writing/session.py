"""A growing text, what the model remembers of it, and how it writes on: ids in, ids out.

With LM-Infinite the memory is constant, so a session never runs out.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..checks import Guard, check_lm
from ..config import LMInfinite, require_integer
from ..fast.compiled import compiled_step
from ..fast.reading import starting_tokens_are_read
from ..terminal.files import shown
from ..transformer import Transformer
from . import sampling


class Session(Guard):
    """A text that grows: by what is read, and by what the model writes.

    path: "chunked" keeps a cache; "reference" keeps the ids and reads them all anew each time.
    middle: where the past is kept that lm.top_k reaches back to, "ram" or "disk".
    compile: take single tokens through a compiled step, see compiled.py. Raises ValueError
        where that cannot be.
    """

    def __init__(
        self,
        model: Transformer,
        lm: LMInfinite | None,
        path="chunked",
        prefill_chunk=512,
        compile=False,
        middle="ram",
    ):
        require_integer("prefill_chunk", prefill_chunk, at_least=1)
        check_lm(lm)
        self.model, self.lm, self.path, self.prefill_chunk = model, lm, path, prefill_chunk
        self.device = model.embed.weight.device
        self.middle = middle
        self.cache = model.new_cache(1, lm, middle=middle) if path == "chunked" else None
        self.decode = compiled_step(model, self.cache) if compile else None
        self.ids: list[int] = []  # all of them, for the reference path only
        self.n_reaching = 0  # how many of them have reached back, likewise
        self.unread: list[int] = []  # written, or given, but not yet read
        self.seen: set[int] = set()  # which ids occur, for the repetition penalty
        self.ended: Step | None = None  # the token that ended what was written last, if one did

    def anew(self) -> Session:
        """A session like this one, of which nothing is read yet."""
        session = Session(
            self.model, self.lm, self.path, self.prefill_chunk, middle=self.middle
        )
        session.decode = self.decode
        return session

    @property
    def length(self) -> int:
        """How many tokens the text has, with those that are not read yet."""
        read = len(self.ids) if self.cache is None else self.cache.length
        return read + len(self.unread)

    @property
    def cache_bytes(self) -> int:
        return self.cache.nbytes if self.cache is not None else 0

    @property
    def visible(self) -> int:
        """How many of the tokens so far the last of them sees."""
        return self.length if self.lm is None else self.lm.visible(self.length)

    @torch.inference_mode()
    def read(self, ids: list[int], enough=lambda: False) -> torch.Tensor | None:
        """Take in ids, in chunks; the logits (V,) of the token that follows the last of them.

        What was not read before, such as the token that was written last, is read first.
        `enough()` is asked between chunks: where it is true the rest is read by the next call,
        and None returned. Raises ValueError where there is nothing to read, for ids outside the
        model's vocabulary, for logits that are not numbers, and where an earlier call was
        interrupted by an exception.
        """
        ids = self.unread + checked_ids(ids, self.model.config.vocab_size)
        self._check(ids)
        with self.changing():
            self.seen.update(ids)
            self.unread = []
            before = self.length
            logits = self._logits(ids, enough)
            self.unread = ids[self.length - before :]
        if logits is not None:
            sampling.require_numbers(logits)
        return logits

    def _check(self, ids: list[int]):
        """Raise ValueError for ids that cannot be read next."""
        if not ids:
            raise ValueError("there is nothing to read: give at least one token")
        if self.ids and len(ids) > 1 and self._last_reaches():
            raise ValueError(
                "the reference path reads one prompt only where the last token of a prompt "
                "reaches back: leave out --path, or take --top-k-queries all"
            )

    def _last_reaches(self) -> bool:
        """Whether of a prompt only the last token reaches back to the middle."""
        return self.lm is not None and self.lm.top_k > 0 and self.lm.top_k_queries == "last"

    def _logits(self, ids: list[int], enough) -> torch.Tensor | None:
        """read, without its checks."""
        tokens = torch.tensor([ids], device=self.device)
        if self.cache is None:
            hidden = self._read_anew(ids)
        elif self.decode and len(ids) == 1 and starting_tokens_are_read(self.cache):
            return self._step(tokens)
        else:
            hidden = self.model.prefill(tokens, self.lm, self.cache, self.prefill_chunk, enough)
        return None if hidden is None else self.model.head(hidden[:, -1])[0].cpu()

    def _read_anew(self, ids: list[int]) -> torch.Tensor:
        """read, by the definition: all of the text, and what was written of it reaches back."""
        self.ids += ids
        self.n_reaching += 1
        tokens = torch.tensor([self.ids], device=self.device)
        n_reaching = self.n_reaching if self._last_reaches() else None
        return self.model.read(tokens, self.lm, path=self.path, n_reaching=n_reaching)

    def _step(self, tokens: torch.Tensor) -> torch.Tensor:
        """read for one token (1, 1), compiled."""
        with self.cache.changing():
            self.cache.settle()
            position = torch.full((), self.cache.length, device=self.device)
            logits = self.decode(tokens, self.cache, position)
            self.cache.length += 1
        return logits[0].cpu()

    def accept(self, id: int):
        """Make a written token part of the text; the next read begins with it."""
        self.unread.append(id)


def checked_ids(ids, vocab_size: int, where: str = "") -> list[int]:
    """Ids as a list of ints. Raises ValueError for what is none, or out of range; where: what
    the sentence says they are of."""
    try:
        found = [operator.index(id) for id in ids if not isinstance(id, bool)]
    except TypeError:
        found = None
    if found is None or len(found) != len(ids):
        raise ValueError(f"token ids{where} must be whole numbers, not {shown(ids)}")
    wrong = next((id for id in found if not 0 <= id < vocab_size), None)
    if wrong is not None:
        raise ValueError(
            f"token {shown(wrong)}{where} is out of range: the model has the ids 0 to "
            f"{vocab_size - 1}"
        )
    return found


class Step(NamedTuple):
    """One written token: its id, and its log-probability under the model (temperature 1)."""

    id: int
    logprob: float


def write(
    session: Session,
    logits: torch.Tensor,
    max_new_tokens: int,
    temperature: float = 0.8,
    top_k: int = 50,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    generator: torch.Generator | None = None,
    stop_ids: tuple[int, ...] = (),
    n_ids: int | None = None,
) -> Iterator[Step]:
    """Yield the tokens that follow; `logits` are those that session.read returned last.

    An id of stop_ids ends the text and is not yielded, but kept as session.ended. n_ids: only
    ids below it are drawn; a model may have more ids than its tokenizer, to round their number
    up.
    """
    sampling.check(temperature, top_k, top_p, min_p, repetition_penalty)
    check_ends(max_new_tokens, stop_ids)
    session.ended = None
    for count in range(max_new_tokens):
        if count:
            logits = session.read([])
        likely = sampling.penalise(logits, session.seen, repetition_penalty)[:n_ids]
        id = sampling.choose(likely, temperature, top_k, top_p, min_p, generator)
        step = Step(id, float(logits.float().log_softmax(-1)[id]))
        if id in stop_ids:
            session.ended = step
            return
        session.accept(id)
        yield step


def check_ends(max_new_tokens, stop_ids):
    """Raise ValueError where a text could not be ended by these."""
    require_integer("max_new_tokens", max_new_tokens, at_least=0)
    if not isinstance(stop_ids, tuple | list | set | frozenset):
        raise ValueError(f"stop_ids must be token ids in a tuple, not {shown(stop_ids)}")


def generate(
    model: Transformer,
    ids: list[int],
    lm: LMInfinite | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.8,
    top_k: int = 50,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    stop_ids: tuple[int, ...] | None = None,
    path: str = "chunked",
    prefill_chunk: int = 512,
    compile: bool = False,
    middle: str = "ram",
) -> Iterator[int]:
    """Yield up to max_new_tokens ids that follow `ids`.

    lm None is the vanilla model. temperature 0 is greedy. The same seed and settings give the
    same ids on the same machine. stop_ids None stands for the model's own eos_ids. path,
    prefill_chunk, compile and middle: as in Session.

    Raises ValueError for an empty prompt, ids out of range, and settings out of range, when the
    first id is asked for.
    """
    generator = sampling.seeded(seed)
    stop_ids = model.config.eos_ids if stop_ids is None else stop_ids
    session = Session(model, lm, path, prefill_chunk, compile, middle)
    steps = write(
        session, session.read(ids), max_new_tokens, temperature, top_k, top_p, min_p,
        repetition_penalty, generator, stop_ids,
    )  # fmt: skip
    for step in steps:
        yield step.id
