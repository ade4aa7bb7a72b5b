"""Replies to prompts, shown as they are written.

Here the ids of session.py meet a tokenizer and somebody who reads along.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from ..text.tokenizer import StopAt
from .session import Session, Step, write_all


@dataclass
class Reply:
    """What one continuation gave. text and steps: empty where it was only shown."""

    prompt_tokens: int
    steps: list[Step]
    new_tokens: int = 0
    text: str = ""
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    ended: Step | None = None  # the token that ended it, if one did


class Plain:
    """Prompts as they stand, each on a line of its own after all that was said.

    chat.Chat is the other kind: stop_ids are the ids that end a reply besides the model's own,
    and begun says whether a reply continues its prompt's text.
    """

    stop_ids, begun = (), True

    def __init__(self, tokenizer, bos: bool):
        self.tokenizer, self.bos = tokenizer, bos

    def prompt(self, text: str, first: bool) -> list[int]:
        """The ids to be read before the reply to a text. Raises ValueError for no Unicode."""
        return self.tokenizer.encode(text if first else "\n" + text, bos=first and self.bos)


def replies(
    session: Session, turns, prompts: list[list[int]], options, generators, show,
    enough=lambda: False,
) -> list[Reply]:  # fmt: skip
    """Read the ids of each prompt, write on, and hand each piece of text to `show` as it
    becomes certain. The seconds are those of all texts together.

    turns: the Plain or chat.Chat that made the ids. `enough()` is asked after every token, and
    between two chunks of a prompt, and ends the replies where it is true. Of a text that is
    streamed nothing is kept, so that a reply of any length takes constant memory; but for its
    ids, where --explain will show them.
    """
    kept = options.json or options.no_stream or len(prompts) > 1
    tokenizer, eos = turns.tokenizer, turns.tokenizer.eos_id
    found, pieces = [Reply(len(ids), []) for ids in prompts], [[] for _ in prompts]
    streams = [tokenizer.stream(turns.begun) for _ in prompts]
    stops = [StopAt(options.stop) for _ in prompts]
    ends = (*session.model.config.eos_ids, *turns.stop_ids, *(() if eos is None else (eos,)))

    def emit(number: int, piece: str):
        if kept:
            pieces[number].append(piece)
        show(piece)

    began = time.perf_counter()
    logits = session.read_all(prompts, enough)
    read = time.perf_counter()
    for number, step in [] if logits is None else write_all(
        session, logits, options.max_new_tokens, options.temperature, options.top_k,
        options.top_p, options.min_p, options.repetition_penalty, generators,
        () if options.ignore_eos else ends, tokenizer.vocab_size,
    ):  # fmt: skip
        found[number].new_tokens += 1
        if kept or options.explain:
            found[number].steps.append(step)
        emit(number, stops[number].push(streams[number].push(step.id)))
        if enough() or (stops[number].stopped and not session.end(number)):
            break
    for number, (reply, stream, stop) in enumerate(zip(found, streams, stops)):
        if not stop.stopped:
            emit(number, stop.push(stream.flush()) + stop.flush())
        reply.text, reply.ended = "".join(pieces[number]), session.ended.get(number)
        reply.prefill_seconds, reply.decode_seconds = read - began, time.perf_counter() - read
    return found


def statistics(session: Session, results: list[Reply]) -> list[str]:
    """The lines that follow what was written: counts and speeds; of one text, cache and sight
    as well."""
    first, cache = results[0], session.cache
    new = sum(result.new_tokens for result in results)
    speed = new / max(first.decode_seconds, 1e-9)
    if len(results) > 1:
        return [f"{len(results)} prompts, new {new} tokens ({speed:,.0f} tokens/s together)"]
    prefill = first.prompt_tokens / max(first.prefill_seconds, 1e-9)
    held = f"cache {session.cache_bytes:,} bytes" if cache else "no cache"
    lines = [
        f"prompt {first.prompt_tokens} tokens ({prefill:,.0f} tokens/s), "
        f"new {new} tokens ({speed:,.0f} tokens/s)",
        f"{held}; the last query sees {session.visible:,} of {session.length:,} tokens",
    ]
    far = cache.middle_bytes if cache else 0
    if far:
        lines.append(f"top-k: {far:,} of these bytes hold the whole text, and grow with it")
    return lines


SETTINGS = """path prefill_chunk max_new_tokens stop chat system ignore_eos temperature top_k
top_p min_p repetition_penalty seed""".split()


def as_json(session: Session, options, prompt: str, ids: list[int], result: Reply) -> dict:
    """Everything about a text and how it was written, in one object.

    Its ids are all that were drawn, the one that ended the text included.
    """
    lm, drawn = session.lm, [*result.steps, *filter(None, [result.ended])]
    length, reaches = len(ids) + result.new_tokens, lm is not None and lm.top_k > 0
    return {
        "prompt": prompt,
        "text": result.text,
        "prompt_ids": ids,
        "ids": [step.id for step in drawn],
        "logprobs": [step.logprob for step in drawn],
        "timings": {"prefill_s": result.prefill_seconds, "decode_s": result.decode_seconds},
        "cache_bytes": session.cache_bytes,
        "tokens": length,
        "visible": length if lm is None else lm.visible(length),
        "settings": {
            "model": str(options.model),
            "attention": options.attention,
            "n_local": lm and lm.n_local,
            "n_global": lm and lm.n_global,
            "distance_ceiling": lm and lm.distance_ceiling,
            "top_k_middle": lm.top_k if lm else 0,
            "top_k_distance": lm.middle_distance if reaches else None,
            "top_k_from_layer": lm.top_k_from_layer if reaches else None,
            "top_k_queries": lm.top_k_queries if reaches else None,
            "bos": not options.no_bos,
            "device": str(session.device),
            "dtype": str(session.model.embed.weight.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            **{name: getattr(options, name) for name in SETTINGS},
        },
    }


def show_now(text: str):
    """Print a piece of text where the reader can see it at once."""
    print(text, end="", flush=True)
