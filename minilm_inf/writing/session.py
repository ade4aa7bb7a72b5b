"""Growing texts, what the model remembers of them, and how it writes on: ids in, ids out.

With LM-Infinite the memory is constant, so a session never runs out. It holds one text, or
several side by side, each as if it were alone: those of different lengths are padded on the
left, which nobody sees, and one that has ended leaves, and costs nothing more.
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
    """Texts that grow: by what is read, and by what the model writes.

    path: "chunked" keeps a cache; "reference" keeps the ids and reads them all each time.
    middle: where the past is kept that lm.top_k reaches back to, "ram" or "disk".
    compile: take single tokens through a compiled step, see compiled.py. Raises ValueError
        where that cannot be.
    n_texts: how many texts; they are known by their numbers, from 0.
    """

    def __init__(
        self, model: Transformer, lm: LMInfinite | None, path="chunked", prefill_chunk=1024,
        compile=False, middle="ram", n_texts=1,
    ):  # fmt: skip
        require_integer("prefill_chunk", prefill_chunk, at_least=1)
        check_lm(lm)
        self.model, self.lm, self.path, self.prefill_chunk = model, lm, path, prefill_chunk
        self.device, self.middle = model.embed.weight.device, middle
        self.cache = model.new_cache(n_texts, lm, middle=middle) if path == "chunked" else None
        self.decode = compiled_step(model, self.cache) if compile else None
        self.growing = list(range(n_texts))  # the rows of the cache, as numbers of texts
        self.ids: list[list[int]] = [[] for _ in range(n_texts)]  # for the reference path only
        self.n_reads = 0  # likewise: how many of their last tokens have reached back
        self.unread: list[list[int]] = [[] for _ in range(n_texts)]  # written, or given
        self.seen: list[set[int]] = [set() for _ in range(n_texts)]  # which ids occur
        self.ended: dict[int, Step] = {}  # the tokens that ended what was written last

    def anew(self) -> Session:
        """A session like this one, of which nothing is read yet."""
        session = Session(
            self.model, self.lm, self.path, self.prefill_chunk, middle=self.middle,
            n_texts=len(self.ids),
        )  # fmt: skip
        session.decode = self.decode
        return session

    @property
    def n_read(self) -> int:
        """How many tokens of the longest text that grows have been read."""
        if self.cache is not None:
            return self.cache.length
        return max(len(self.ids[number]) for number in self.growing)

    @property
    def length(self) -> int:
        """How many tokens the first text has, with those that are not read yet."""
        return self.n_read + len(self.unread[0])

    @property
    def cache_bytes(self) -> int:
        return self.cache.nbytes if self.cache is not None else 0

    @property
    def visible(self) -> int:
        """How many of the tokens so far the last of them sees."""
        return self.length if self.lm is None else self.lm.visible(self.length)

    def read(self, ids: list[int], enough=lambda: False) -> torch.Tensor | None:
        """read_all, for a session of one text: the logits (V,) of the token that follows."""
        logits = self.read_all([ids], enough)
        return None if logits is None else logits[0]

    @torch.inference_mode()
    def read_all(self, texts: list[list[int]], enough=lambda: False) -> torch.Tensor | None:
        """Take in ids for each text that grows, in chunks; the logits (B, V) of the tokens that
        follow.

        What was not read before, such as the token that was written last, is read first.
        `enough()` is asked between chunks, for one text: where it is true the rest is read by
        the next call, and None returned.

        Raises ValueError where a text has nothing to read, or, after the first read, more or
        less than another; for ids outside the model's vocabulary, for logits that are not
        numbers, and where an earlier call was interrupted by an exception.
        """
        self.check_whole()
        many, size, new = len(self.growing) > 1, self.model.config.vocab_size, []
        for number, ids in zip(self.growing, texts, strict=True):
            where = f" of prompt {number + 1}" if many else ""
            new.append(self.unread[number] + checked_ids(ids, size, where))
            if not new[-1]:
                raise ValueError(f"there is nothing to read{where}: give at least one token")
        self._check(new)
        with self.changing():
            for number, ids in zip(self.growing, new):
                self.seen[number].update(ids)
            before = self.n_read
            logits = self._logits(new, enough)
            for number, ids in zip(self.growing, new):
                self.unread[number] = ids[self.n_read - before :]
        if logits is not None:
            sampling.require_numbers(logits)
        return logits

    def _check(self, new: list[list[int]]):
        """Raise ValueError for ids that cannot be read after what was read."""
        if not self.n_read:
            return
        if len({len(ids) for ids in new}) > 1:
            raise ValueError("texts side by side grow together: give each as many new tokens")
        if self.cache is None and len(new[0]) > 1 and self._last_reaches():
            raise ValueError(
                "the reference path reads one prompt only where the last token of a prompt "
                "reaches back: leave out --path, or take --top-k-queries all"
            )

    def _last_reaches(self) -> bool:
        """Whether of a prompt only the last token reaches back to the middle."""
        return self.lm is not None and self.lm.top_k > 0 and self.lm.top_k_queries == "last"

    def _logits(self, new: list[list[int]], enough) -> torch.Tensor | None:
        """read_all, without its checks."""
        if self.cache is None:
            hidden = self._read_from_the_start(new)
        else:
            tokens, lengths = self._rows(new)
            if not self.cache.length:
                self.cache.pad([tokens.shape[1] - length for length in lengths])
            if self.decode and tokens.shape[1] == 1 and starting_tokens_are_read(self.cache):
                return self._step(tokens)
            hidden = self.model.prefill(tokens, self.lm, self.cache, self.prefill_chunk, enough)
        return None if hidden is None else self.model.head(hidden[:, -1]).cpu()

    def _rows(self, texts: list[list[int]]) -> tuple[torch.Tensor, list[int]]:
        """Texts as rows of one length, (B, T), padded on the left; and their lengths."""
        lengths = [len(ids) for ids in texts]
        rows = [[0] * (max(lengths) - len(ids)) + ids for ids in texts]
        return torch.tensor(rows, device=self.device), lengths

    def _read_from_the_start(self, new: list[list[int]]) -> torch.Tensor:
        """Read by the definition: all of each text, and what was written of it reaches back."""
        for number, ids in zip(self.growing, new):
            self.ids[number] += ids
        self.n_reads += 1
        tokens, lengths = self._rows([self.ids[number] for number in self.growing])
        n_reaching = self.n_reads if self._last_reaches() else None
        return self.model.read(
            tokens, self.lm, path=self.path, lengths=lengths, n_reaching=n_reaching
        )

    def _step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read one token of each text, (B, 1), compiled."""
        with self.cache.changing():
            self.cache.settle()
            position = torch.full((), self.cache.length, device=self.device)
            logits = self.decode(tokens, self.cache, position)
            self.cache.length += 1
        return logits.cpu()

    def accept(self, id: int, number: int = 0):
        """Make a written token part of a text; the next read begins with it."""
        self.unread[number].append(id)

    def end(self, number: int) -> bool:
        """Let a text grow no more, while others do; False where there are no others: then it
        stays, and may be read on."""
        self.check_whole()
        if len(self.growing) == 1:
            return False
        row = self.growing.index(number)
        with self.changing():
            del self.growing[row]
            if self.cache is not None:
                self.cache.keep([r for r in range(len(self.growing) + 1) if r != row])
        return True


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


def write_all(
    session: Session, logits: torch.Tensor, max_new_tokens: int, temperature: float = 0.8,
    top_k: int = 50, top_p: float = 1.0, min_p: float = 0.0, repetition_penalty: float = 1.0,
    generators: list[torch.Generator | None] | None = None, stop_ids: tuple[int, ...] = (),
    n_ids: int | None = None,
) -> Iterator[tuple[int, Step]]:  # fmt: skip
    """Yield (text's number, token) for every text that still grows, in turns; `logits` are
    those that session.read_all returned last.

    An id of stop_ids ends a text and is not yielded, but kept in session.ended; session.end,
    called between two tokens, ends one as well. generators: one for each text; with the same
    seed each becomes what it would become alone. n_ids: only ids below it are drawn; a model
    may have more ids than its tokenizer, to round their number up.
    """
    sampling.check(temperature, top_k, top_p, min_p, repetition_penalty)
    require_integer("max_new_tokens", max_new_tokens, at_least=0)
    if not isinstance(stop_ids, tuple | list | set | frozenset):
        raise ValueError(f"stop_ids must be token ids in a tuple, not {shown(stop_ids)}")
    generators = generators or [None] * len(session.ids)
    session.ended = {}
    for count in range(max_new_tokens):
        if count:
            logits = session.read_all([[] for _ in session.growing])
        steps = []
        for row, number in enumerate(list(session.growing)):
            likely = sampling.penalise(logits[row], session.seen[number], repetition_penalty)
            id = sampling.choose(
                likely[:n_ids], temperature, top_k, top_p, min_p, generators[number]
            )
            step = Step(id, float(logits[row].float().log_softmax(-1)[id]))
            if id not in stop_ids:
                session.accept(id, number)
                steps.append((number, step))
                continue
            session.ended[number] = step
            if not session.end(number):
                return
        yield from steps


def write(session: Session, logits: torch.Tensor, *settings, generator=None, **more):
    """write_all for a session of one text: yield its tokens."""
    steps = write_all(session, logits[None], *settings, generators=[generator], **more)
    return (step for _, step in steps)


def generate(
    model: Transformer, ids: list[int], lm: LMInfinite | None = None,
    max_new_tokens: int = 256, temperature: float = 0.8, top_k: int = 50, top_p: float = 1.0,
    min_p: float = 0.0, repetition_penalty: float = 1.0, seed: int | None = None,
    stop_ids: tuple[int, ...] | None = None, path: str = "chunked", prefill_chunk: int = 1024,
    compile: bool = False, middle: str = "ram",
) -> Iterator[int]:  # fmt: skip
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
        repetition_penalty, generator=generator, stop_ids=stop_ids,
    )  # fmt: skip
    for step in steps:
        yield step.id
