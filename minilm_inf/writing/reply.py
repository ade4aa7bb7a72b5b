"""One reply, shown as it is written, and replies to several prompts.

Here the ids of session.py and batch.py meet a tokenizer and somebody who reads along.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from ..text.tokenizer import StopAt
from .batch import Batch, write_all
from .session import Session, Step, write


class Reply(NamedTuple):
    """What one continuation gave."""

    text: str  # "" where it was only shown
    steps: list[Step]  # [] where it was only shown
    new_tokens: int
    prompt_tokens: int
    prefill_seconds: float
    decode_seconds: float
    ended: Step | None = None  # the token that ended it, if one did


class Plain:
    """Prompts as they stand, each on a line of its own behind all that was said.

    chat.Chat is the other kind: stop_ids are the ids that end a reply besides the model's own,
    and begun says whether a reply continues its prompt's text.
    """

    stop_ids, begun = (), True

    def __init__(self, tokenizer, bos: bool):
        self.tokenizer, self.bos = tokenizer, bos

    def prompt(self, text: str, first: bool) -> list[int]:
        """The ids to be read before the reply to a text. Raises ValueError for no Unicode."""
        return self.tokenizer.encode(text if first else "\n" + text, bos=first and self.bos)


def reply(session: Session, turns, ids: list[int], options, generator, show, enough) -> Reply:
    """Read ids, write on, and hand each piece of text to `show` as it becomes certain.

    turns: the Plain or chat.Chat that made the ids. `enough()` is asked after every token, and
    between two chunks of the prompt, and ends the reply where it is true. What is streamed is
    not kept, so that a reply of any length takes constant memory; but for its ids, where
    --explain will show them.
    """
    kept = options.json or options.no_stream
    began = time.perf_counter()
    logits = session.read(ids, enough)
    read = time.perf_counter()
    tokenizer, eos = turns.tokenizer, ends(session.model, turns)
    steps, text, new_tokens = [], [], 0
    stream, stop = tokenizer.stream(turns.begun), StopAt(options.stop)

    def emit(piece: str):
        if kept:
            text.append(piece)
        show(piece)

    for step in [] if logits is None else write(
        session, logits, options.max_new_tokens, options.temperature, options.top_k,
        options.top_p, options.min_p, options.repetition_penalty, generator,
        () if options.ignore_eos else eos, tokenizer.vocab_size,
    ):  # fmt: skip
        new_tokens += 1
        if kept or options.explain:
            steps.append(step)
        emit(stop.push(stream.push(step.id)))
        if stop.stopped or enough():
            break
    if not stop.stopped:
        emit(stop.push(stream.flush()))
        emit(stop.flush())
    done = time.perf_counter()
    return Reply(
        "".join(text), steps, new_tokens, len(ids), read - began, done - read, session.ended
    )


def ends(model, turns) -> tuple[int, ...]:
    """The ids that end a reply: the model's, the tokenizer's and the conversation's."""
    own = turns.tokenizer.eos_id
    return (*model.config.eos_ids, *turns.stop_ids, *(() if own is None else (own,)))


def replies(batch: Batch, turns, options, report) -> list[Reply]:
    """A reply to each of a batch's prompts, written side by side; the seconds are of them all.

    `report(written, growing)` is told, behind every token, how many there are so far, and how
    many of the texts still grow.
    """
    prompts = [len(ids) for ids in batch.texts]
    streams = [turns.tokenizer.stream(turns.begun) for _ in prompts]
    stops = [StopAt(options.stop) for _ in prompts]
    steps: list[list[Step]] = [[] for _ in prompts]
    texts = ["" for _ in prompts]
    began = time.perf_counter()
    read = began  # until the first token
    for number, step in write_all(
        batch, options.max_new_tokens, options.temperature, options.top_k, options.top_p,
        options.min_p, options.repetition_penalty, options.seed,
        () if options.ignore_eos else ends(batch.model, turns), turns.tokenizer.vocab_size,
    ):  # fmt: skip
        read = time.perf_counter() if read == began else read
        steps[number].append(step)
        texts[number] += stops[number].push(streams[number].push(step.id))
        if stops[number].stopped:
            batch.end(number)
        report(sum(map(len, steps)), len(batch.growing))
    decode = time.perf_counter() - read
    for number, stop in enumerate(stops):
        if not stop.stopped:
            texts[number] += stop.push(streams[number].flush()) + stop.flush()
    return [
        Reply(
            texts[n],
            steps[n],
            len(steps[n]),
            prompts[n],
            read - began,
            decode,
            batch.ended.get(n),
        )  # fmt: skip
        for n in range(len(prompts))
    ]


def statistics(session: Session, result: Reply) -> list[str]:
    """The lines that follow a text: counts, speeds, cache and sight."""
    new = result.new_tokens
    prefill = result.prompt_tokens / max(result.prefill_seconds, 1e-9)
    decode = new / max(result.decode_seconds, 1e-9)
    cache = f"cache {session.cache_bytes:,} bytes" if session.cache else "no cache"
    far = []
    if session.cache and session.cache.middle_bytes:
        far = [
            f"top-k: {session.cache.middle_bytes:,} of these bytes hold the whole text, and "
            "grow with it"
        ]
    return [
        f"prompt {result.prompt_tokens} tokens ({prefill:,.0f} tokens/s), "
        f"new {new} tokens ({decode:,.0f} tokens/s)",
        f"{cache}; the last query sees {session.visible:,} of {session.length:,} tokens",
        *far,
    ]


def as_json(
    session: Session | Batch, length: int, options, prompt: str, ids: list[int], result: Reply
) -> dict:
    """Everything about a text of `length` tokens and how it was written, in one object.

    Its ids are all that were drawn, the one that ended the text included.
    """
    lm, drawn = session.lm, [*result.steps, *filter(None, [result.ended])]
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
            "top_k_distance": lm.middle_distance if lm and lm.top_k else None,
            "top_k_from_layer": lm.top_k_from_layer if lm and lm.top_k else None,
            "top_k_queries": lm.top_k_queries if lm and lm.top_k else None,
            "path": options.path,
            "prefill_chunk": options.prefill_chunk,
            "max_new_tokens": options.max_new_tokens,
            "stop": options.stop,
            "chat": options.chat,
            "system": options.system,
            "bos": not options.no_bos,
            "ignore_eos": options.ignore_eos,
            "device": str(session.device),
            "dtype": str(session.model.embed.weight.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "temperature": options.temperature,
            "top_k": options.top_k,
            "top_p": options.top_p,
            "min_p": options.min_p,
            "repetition_penalty": options.repetition_penalty,
            "seed": options.seed,
        },
    }


def show_now(text: str):
    """Print a piece of text where the reader can see it at once."""
    print(text, end="", flush=True)
