"""Replies to prompts, shown as they are written.

Here the ids of session.py meet a tokenizer and a reader.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field

from ..checkpoint.checkpoint import dtype_name
from ..terminal.ending import say
from ..terminal.progress import Progress
from .session import Session, Step, write_all


@dataclass
class Reply:
    """What became of one prompt: its ids, the tokens that were drawn after it, their text; the
    seconds that all texts beside it took together; and how many tokens were there before."""

    prompt_ids: list[int]
    steps: list[Step] = field(default_factory=list)
    text: str = ""
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    had: int = 0

    @property
    def ids(self) -> list[int]:
        """The ids of what was written."""
        return [step.id for step in self.steps if not step.ends]


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
    session: Session, turns, prompts: list[list[int]], options, generators, show, before="",
    enough=lambda: False, is_read=lambda: None,
) -> list[Reply]:  # fmt: skip
    """Read the ids of each prompt, with progress on stderr, write on, and hand each piece of
    text to `show` as it becomes certain.

    turns: the Plain or chat.Chat that made the ids. before: what is shown before the first
    piece. `enough()` is asked after every token, and ends the replies where it is true;
    `is_read()` is called between reading and writing.
    """
    tokenizer, eos = turns.tokenizer, turns.tokenizer.eos_id
    found = [Reply(ids, had=had) for ids, had in zip(prompts, session.lengths)]
    streams = [tokenizer.stream(turns.begun) for _ in prompts]
    ends = (*session.model.config.eos_ids, *turns.stop_ids, *(() if eos is None else (eos,)))

    def emit(reply: Reply, piece: str):
        reply.text += piece
        show(piece)

    began, had = time.perf_counter(), session.cache.length
    progress = Progress(had + max(map(len, prompts)), had)
    logits = session.read_all(prompts, (lambda _: None) if options.quiet else progress.show)
    progress.end()
    is_read()
    show(before)
    read = time.perf_counter()
    for number, step in write_all(
        session, logits, options.max_new_tokens, options.temperature, options.top_k,
        options.top_p, generators, () if options.ignore_eos else ends, tokenizer.vocab_size,
    ):  # fmt: skip
        found[number].steps.append(step)
        emit(found[number], "" if step.ends else streams[number].push(step.id))
        if enough():
            break
    for reply, stream in zip(found, streams):
        emit(reply, stream.flush())
        reply.prefill_seconds, reply.decode_seconds = read - began, time.perf_counter() - read
    return found


def save(session: Session, path, is_told=True):
    """Save what a session has read, if there is a path, and tell its size."""
    if path is None:
        return
    n_bytes, past = session.save(path)
    of_it = f", {past:,} of them the past that --top-k-middle needs" if past else ""
    if is_told:
        say(f"saved {max(session.lengths):,} tokens as {n_bytes:,} bytes{of_it}: {path}")


def statistics(session: Session, results: list[Reply]) -> list[str]:
    """The lines that follow what was written: counts and speeds of all texts together; of one
    text, cache and sight as well."""
    first, cache, lines = results[0], session.cache, []
    for name, seconds, counts in (
        ("prompt", first.prefill_seconds, [len(reply.prompt_ids) for reply in results]),
        ("new", first.decode_seconds, [len(reply.ids) for reply in results]),
    ):
        speed = sum(counts) / max(seconds, 1e-9)
        lines.append(f"{name} {sum(counts)} tokens ({speed:,.0f} tokens/s)")
    if len(results) > 1:
        return [f"{len(results)} prompts, {', '.join(lines)}"]
    seen = f"the last query sees {cache.lm.visible(cache.length):,} of {cache.length:,} tokens"
    return [", ".join(lines), f"cache {cache.nbytes:,} bytes; {seen}"]


def tell_cut(results: list[Reply], options):
    """Say so where a text ends because -n did, and not because the model ended it."""
    cut = any(len(reply.ids) == options.max_new_tokens > 0 for reply in results)
    if cut and not options.ignore_eos and not options.quiet:
        say(f"note: cut at -n {options.max_new_tokens}; with a larger -n the text goes on")


def as_json(session: Session, options, prompt: str, reply: Reply) -> dict:
    """Everything about a text and how it was written, in one object.

    Its ids are all that were drawn, the one that ended the text included. settings: the flags,
    and what the model sees, null for the vanilla model.
    """
    lm, weight = session.lm, session.model.embed.weight
    before = reply.had + len(reply.prompt_ids)
    read = before + max(0, len(reply.steps) - 1)  # what was drawn last was not
    device, dtype = str(weight.device), dtype_name(session.model)
    flags = {name: value for name, value in vars(options).items() if name != "prompt"}
    return {
        "prompt": prompt,
        "text": reply.text,
        "prompt_ids": reply.prompt_ids,
        "ids": [step.id for step in reply.steps],
        "logprobs": [step.logprob for step in reply.steps],
        "timings": {"prefill_s": reply.prefill_seconds, "decode_s": reply.decode_seconds},
        "cache_bytes": session.cache.nbytes,
        "tokens": before + len(reply.ids),
        "visible": session.cache.lm.visible(read),
        "settings": flags | {"device": device, "dtype": dtype, "sees": lm and asdict(lm)},
    }


def show_now(text: str):
    """Print a piece of text where the reader can see it at once."""
    print(text, end="", flush=True)
