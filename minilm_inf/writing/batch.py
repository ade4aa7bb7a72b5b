"""Several texts that grow side by side: each as if it were alone, all of them in one pass.

Texts of different lengths are padded on the left, which nobody sees. A text that has ended
leaves the batch, and costs nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..checks import Guard
from ..config import LMInfinite
from ..transformer import Transformer
from . import sampling
from .session import Step, check_ends, checked_ids


class Batch(Guard):
    """Texts that are read together, one to a row.

    prompts: the ids that each begins with. path, prefill_chunk and middle: as in
    session.Session.
    Raises ValueError for a prompt without ids, and for ids out of range.
    """

    def __init__(
        self,
        model: Transformer,
        prompts: list[list[int]],
        lm: LMInfinite | None = None,
        path="chunked",
        prefill_chunk=512,
        middle="ram",
    ):
        for number, ids in enumerate(prompts, 1):
            checked_ids(ids, model.config.vocab_size, f" of prompt {number}")
            if not ids:
                raise ValueError(f"prompt {number} is empty: give at least one token")
        self.model, self.lm, self.path, self.prefill_chunk = model, lm, path, prefill_chunk
        self.device = model.embed.weight.device
        self.texts = [list(ids) for ids in prompts]
        self.n_read = [0 for _ in prompts]  # tokens of each text that the cache holds
        self.growing = list(range(len(prompts)))  # the rows of the cache, as numbers of texts
        self.cache, self.middle = None, middle
        self.ended: dict[int, Step] = {}  # text's number -> the token that ended it, if one did
        self.n_reaching = 0  # tokens of each text that grows, for the reference path

    @property
    def cache_bytes(self) -> int:
        return self.cache.nbytes if self.cache is not None else 0

    @torch.inference_mode()
    def read(self) -> torch.Tensor:
        """Read what is new of every text; the logits (B, V) of what follows each that grows.

        Raises ValueError where a text that grows has not got one new token, for logits that are
        not numbers, and where an earlier call was interrupted by an exception.
        """
        self.check_whole()
        for number in self.growing:
            if self.cache is not None and len(self.texts[number]) != self.n_read[number] + 1:
                raise ValueError(f"text {number + 1} needs one new token before the next read")
        with self.changing():
            logits = self._logits()
            self.n_read = [len(text) for text in self.texts]
        sampling.require_numbers(logits)
        return logits

    def _logits(self) -> torch.Tensor:
        """read, without its checks."""
        texts = [self.texts[number] for number in self.growing]
        self.n_reaching += 1
        if self.path == "chunked" and self.cache is not None:
            tokens = torch.tensor([text[-1:] for text in texts], device=self.device)
            return self.model(tokens, self.lm, self.cache)[:, -1].cpu()
        longest = max(map(len, texts))
        padding = [longest - len(text) for text in texts]
        rows = [[0] * pad + text for pad, text in zip(padding, texts)]
        tokens = torch.tensor(rows, device=self.device)
        if self.path == "reference":
            lengths = [len(text) for text in texts]
            last = self.lm is not None and self.lm.top_k_queries == "last"
            hidden = self.model.read(
                tokens, self.lm, path=self.path, lengths=lengths,
                n_reaching=self.n_reaching if last and self.lm.top_k else None,
            )  # fmt: skip
        else:
            self.cache = self.model.new_cache(
                len(texts), self.lm, padding=padding, middle=self.middle
            )
            hidden = self.model.prefill(tokens, self.lm, self.cache, self.prefill_chunk)
        return self.model.head(hidden[:, -1]).cpu()

    def end(self, number: int):
        """Let a text grow no more."""
        row = self.growing.index(number)
        with self.changing():
            del self.growing[row]
            if self.cache is not None:
                self.cache.keep([r for r in range(len(self.growing) + 1) if r != row])


def write_all(
    batch: Batch,
    max_new_tokens: int,
    temperature: float = 0.8,
    top_k: int = 50,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    stop_ids: tuple[int, ...] = (),
    n_ids: int | None = None,
) -> Iterator[tuple[int, Step]]:
    """Yield (text's number, token) for every text that still grows, in turns.

    Each text draws from a generator of its own with the same seed, so that it becomes what it
    would become alone. An id of stop_ids ends a text, and is not yielded, but kept in
    batch.ended; batch.end, called between two tokens, ends one as well. n_ids: as in
    session.write.
    """
    sampling.check(temperature, top_k, top_p, min_p, repetition_penalty)
    check_ends(max_new_tokens, stop_ids)
    generators = [sampling.seeded(seed) for _ in batch.texts]
    seen = [set(ids) for ids in batch.texts]
    for _ in range(max_new_tokens):
        if not batch.growing:
            return
        logits, steps = batch.read(), []
        for row, number in enumerate(list(batch.growing)):
            likely = sampling.penalise(logits[row], seen[number], repetition_penalty)[:n_ids]
            id = sampling.choose(likely, temperature, top_k, top_p, min_p, generators[number])
            step = Step(id, float(logits[row].float().log_softmax(-1)[id]))
            if id in stop_ids:
                batch.ended[number] = step
                batch.end(number)
                continue
            batch.texts[number].append(id)
            seen[number].add(id)
            steps.append((number, step))
        yield from steps
