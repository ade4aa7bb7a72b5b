"""How a method answers: which of a trial's ids it reads, under which setting, how many rows.

The answer is what greedy decoding writes. A digit is fed only once it was written, and a wrong
one ends the row, so what is fed stands in the row already: it is read up to its answer, and a
digit more as long as all before it were right. Rows of one length are read side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...config import LMInfinite
from ...writing.sampling import require_numbers
from .trials import Trial

WHERE = ("starting", "middle", "window")
CPU_TOKENS, GPU_TOKENS = 4096, 65536  # read by one call, in all rows
CPU_BYTES = 1 << 30  # of cache, in all rows


class Method(NamedTuple):
    """lm: as in Transformer. last: no more than `last` ids are read, the first n_bos of a trial
    and its end (all)."""

    lm: LMInfinite | None
    last: int | None = None
    n_bos: int = 1

    def rows(self, trials: list[Trial], device) -> Tensor:
        """What is read of trials of one length, the answers at the end: (B, T)."""
        rows = torch.tensor([trial.ids for trial in trials], device=device)
        if self.last is None or rows.shape[1] <= self.last:
            return rows
        end = rows[:, rows.shape[1] - self.last + self.n_bos :]
        return torch.cat((rows[:, : self.n_bos], end), 1)

    def length(self, length: int) -> int:
        """How many ids are read of a trial of `length`."""
        return length if self.last is None else min(length, self.last)

    def kept(self, length: int) -> int:
        """How many tokens' keys are kept at most, per row, by the end of `length`."""
        length, lm = self.length(length), self.lm
        if lm is None or lm.n_local is None or lm.top_k:
            return length
        return min(length, lm.n_local + lm.n_global)


def where_it_lies(trial: Trial, lm: LMInfinite) -> str | None:
    """How the queries that write the answer see what states it: as WHERE names it.

    The t-th digit of the answer is written by the query before it, and is stated by the t-th of
    trial.stated. A needle of which any digit cannot be seen without top_k lies in the middle;
    None where the text does not state it.
    """
    if not trial.stated:
        return None
    first = len(trial.ids) - trial.width - 1  # the query that writes the first digit
    places = set()
    for t, j in enumerate(trial.stated):
        i = first + min(t, trial.width - 1)
        if lm.n_local is None or i - j < lm.n_local:
            places.add("window")
        else:
            places.add("starting" if j < lm.n_global else "middle")
    return "middle" if "middle" in places else "starting" if "starting" in places else "window"


@torch.inference_mode()
def answering(
    model, rows: Tensor, width: int, lm, chunk: int, right: list, middle="ram"
) -> Iterator[int]:
    """Read rows (B, T) and write their answers, of `width` ids; yields after every call of the
    model how many ids it read.

    right: filled, at the end, with how many of its digits each row wrote before a wrong one.
    middle: as in new_cache. Raises ValueError for logits that are not numbers.
    """
    prompt, answer = rows[:, :-width], rows[:, -width:]
    cache = model.new_cache(len(rows), lm, middle=middle)
    pieces = prompt.split(chunk, 1)
    for number, piece in enumerate(pieces, 1):
        hidden = read(model, piece, lm, cache, last=number == len(pieces))
        yield piece.numel()
    count = torch.zeros(len(rows), dtype=torch.long, device="cpu")
    going = torch.arange(len(rows), device="cpu")  # the rows without a wrong digit
    for digit in range(width):
        logits = model.head(hidden[:, -1]).float()
        require_numbers(logits)
        hit = (logits.argmax(-1) == answer[going.to(rows.device), digit]).cpu()
        going = going[hit]
        count[going] += 1
        if digit + 1 == width or len(going) == 0:
            break
        if not hit.all():
            cache.keep(hit.nonzero()[:, 0].tolist())
        hidden = read(model, answer[going.to(rows.device), digit, None], lm, cache, last=True)
        yield len(going)
    right.extend(count.tolist())


def read(model, tokens: Tensor, lm: LMInfinite | None, cache, last: bool) -> Tensor:
    """model.read, with the middle coming back as for a prompt: for its last token, at the end
    of the last piece, or for all."""
    reach = None if last or lm is None or lm.top_k_queries == "all" else 0
    return model.read(tokens, lm, cache, n_reaching=reach)


def rows_at_once(model, method: Method, length: int, chunk: int) -> int:
    """How many rows to read side by side: as the memory for their keys allows, and no more than
    keep the machine busy."""
    config, weight = model.config, model.embed.weight
    token = 2 * config.n_layer * config.n_kv_head * config.head_dim * weight.element_size()
    on_gpu = weight.device.type == "cuda"
    room = torch.cuda.mem_get_info(weight.device)[0] // 4 if on_gpu else CPU_BYTES
    tokens = GPU_TOKENS if on_gpu else CPU_TOKENS
    by_memory = room // (token * method.kept(length))
    by_work = tokens // min(chunk, method.length(length))
    return int(max(1, min(by_memory, by_work)))
