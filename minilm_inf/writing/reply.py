"""Replies to prompts, shown as they are written.

Here the ids of session.py meet a tokenizer and somebody who reads along.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field

from .session import Session, Step, write_all


@dataclass
class Reply:
    """What became of one prompt, and the seconds that all texts beside it took together."""

    prompt_ids: list[int]
    steps: list[Step] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    ended: Step | None = None  # the token that ended it, if one did

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class Plain:
    """Prompts as they stand, each on a line of its own after all that was said.

    chat.Chat is the other kind: stop_ids are the ids that end a reply besides the model's own,
    and begun says whether a reply continues its prompt's text.
    """

    stop_ids, begun = (), True

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def prompt(self, text: str, first: bool) -> list[int]:
        """The ids to be read before the reply to a text. Raises ValueError for no Unicode."""
        return self.tokenizer.encode(text if first else "\n" + text, bos=first)


def replies(
    session: Session, turns, prompts: list[list[int]], options, generators, show,
    enough=lambda: False,
) -> list[Reply]:  # fmt: skip
    """Read the ids of each prompt, write on, and hand each piece of text to `show` as it
    becomes certain.

    turns: the Plain or chat.Chat that made the ids. `enough()` is asked after every token, and
    ends the replies where it is true.
    """
    tokenizer, eos = turns.tokenizer, turns.tokenizer.eos_id
    found = [Reply(ids) for ids in prompts]
    streams = [tokenizer.stream(turns.begun) for _ in prompts]
    ends = (*session.model.config.eos_ids, *turns.stop_ids, *(() if eos is None else (eos,)))

    def emit(reply: Reply, piece: str):
        reply.pieces.append(piece)
        show(piece)

    began = time.perf_counter()
    logits = session.read_all(prompts)
    read = time.perf_counter()
    for number, step in write_all(
        session, logits, options.max_new_tokens, options.temperature, options.top_k,
        options.top_p, generators, () if options.ignore_eos else ends, tokenizer.vocab_size,
    ):  # fmt: skip
        found[number].steps.append(step)
        emit(found[number], streams[number].push(step.id))
        if enough():
            break
    for number, (reply, stream) in enumerate(zip(found, streams)):
        emit(reply, stream.flush())
        reply.ended = session.ended.get(number)
        reply.prefill_seconds, reply.decode_seconds = read - began, time.perf_counter() - read
    return found


def statistics(session: Session, results: list[Reply]) -> list[str]:
    """The lines that follow what was written: counts and speeds; of one text, cache and sight
    as well."""
    first, new = results[0], sum(len(reply.steps) for reply in results)
    speed = new / max(first.decode_seconds, 1e-9)
    if len(results) > 1:
        return [f"{len(results)} prompts, new {new} tokens ({speed:,.0f} tokens/s together)"]
    length = len(first.prompt_ids)
    return [
        f"prompt {length} tokens ({length / max(first.prefill_seconds, 1e-9):,.0f} tokens/s), "
        f"new {new} tokens ({speed:,.0f} tokens/s)",
        f"cache {session.cache.nbytes:,} bytes; the last query sees {session.visible:,} of "
        f"{session.length:,} tokens",
    ]


def as_json(session: Session, options, prompt: str, reply: Reply) -> dict:
    """Everything about a text and how it was written, in one object.

    Its ids are all that were drawn, the one that ended the text included. settings: the flags,
    and what the model sees, null for the vanilla model.
    """
    lm, drawn = session.lm, [*reply.steps, *filter(None, [reply.ended])]
    length = len(reply.prompt_ids) + len(reply.steps)
    weight = session.model.embed.weight
    device, dtype = str(weight.device), str(weight.dtype).removeprefix("torch.")
    flags = {name: value for name, value in vars(options).items() if name != "prompt"}
    return {
        "prompt": prompt,
        "text": reply.text,
        "prompt_ids": reply.prompt_ids,
        "ids": [step.id for step in drawn],
        "logprobs": [step.logprob for step in drawn],
        "timings": {"prefill_s": reply.prefill_seconds, "decode_s": reply.decode_seconds},
        "cache_bytes": session.cache.nbytes,
        "tokens": length,
        "visible": length if lm is None else lm.visible(length),
        "settings": flags | {"device": device, "dtype": dtype, "sees": lm and asdict(lm)},
    }


def show_now(text: str):
    """Print a piece of text where the reader can see it at once."""
    print(text, end="", flush=True)
