"""The task `evaluate qa`: questions about long texts, answered in words.

    python -m minilm_inf.evaluate qa --data questions.jsonl --n-local 1024
    python -m minilm_inf.evaluate qa -m FOLDER --chat --data FILE --methods lambda,truncate

    full           vanilla, on the whole prompt
    truncate       the vanilla model on the prompt without its middle, as LongBench cuts it
    truncate-head  the vanilla model on a prompt with the beginning of the text
    lambda, topk   LM-Infinite, without and with the top-k middle tokens, on the whole prompt

All have the same number of visible keys, except the first, which sees all. A cut prompt and its
answer have no more tokens than that, nor than the trained length. Answers are greedy.
"""

from __future__ import annotations

import math
from argparse import Namespace
from os.path import commonprefix
from pathlib import Path

import numpy as np
import torch

from ..terminal import options as flags
from ..text.chat import Chat
from ..writing.reply import Plain, Reply, replies
from ..writing.saved_cache import restore, state_of
from ..writing.session import Session
from . import resume
from .intervals import interval
from .methods import LABELS, methods
from .qa_data import PROMPTS, Example, scores
from .table import grid

METHODS = {
    "full": LABELS["full"], "truncate": "truncation, both ends", "truncate-head":
    "truncation, beginning", "lambda": LABELS["lambda"], "topk": LABELS["topk"],
}  # fmt: skip
UNKNOWN, NOTHING = -2, -1  # in the place of an answer's ids: not asked yet, and after its end


class Run(resume.Run):
    """All questions, text by text, answered by each method.

    methods: by name; prompts: the ids of each question's, by method; most: how many tokens its
    answer may have; written: (methods, questions, tokens), the ids of the answers.
    """

    def __init__(self, model, turns, examples: list[Example], methods, prompts, most, chunk):
        self.model, self.turns, self.examples, self.chunk = model, turns, examples, chunk
        self.methods, self.prompts, self.most = methods, prompts, most
        self.written = np.full((len(methods), len(examples), max(most)), UNKNOWN)
        self.arrays, self.divided = {"written": self.written}, [(self.written, NOTHING)]
        self.lengths = np.array([[len(ids) for ids in prompts[name]] for name in methods])
        self.total = int(self.lengths.sum())

    @property
    def done(self) -> int:
        return int(self.lengths[self.written[:, :, 0] > UNKNOWN].sum())

    @torch.inference_mode()
    def step(self):
        """Have the questions about one text answered by one method. What their prompts begin
        with is read once, and nothing of it reaches back to the middle."""
        first, which = np.argwhere(self.written[:, :, 0].T == UNKNOWN)[0].tolist()
        name, method = list(self.methods.items())[which]
        context, device = self.examples[first].context, self.model.embed.weight.device
        left = np.flatnonzero(self.written[which, :, 0] == UNKNOWN).tolist()
        here = [at for at in left if self.examples[at].context == context]
        prompts = [self.prompts[name][at] for at in here]
        shared = min(len(commonprefix(prompts)), *(len(ids) - 1 for ids in prompts))
        cache = self.model.new_cache(1, method.lm, middle=method.middle)
        tokens = torch.tensor([prompts[0][:shared]], device=device)
        for piece in tokens.split(self.chunk, 1) if shared else ():
            self.model.read(piece, method.lm, cache, n_reaching=0)
        for at, ids in zip(here, prompts):
            session = Session(self.model, method.lm, self.chunk, middle=method.middle)
            restore(session.cache, state_of(cache))
            reply = written(session, self.turns, ids[shared:], self.most[at])
            self.written[which, at] = NOTHING
            self.written[which, at, : len(reply.ids)] = reply.ids


def written(session: Session, turns, ids: list[int], most: int) -> Reply:
    """What greedy decoding writes after some ids, at most so many tokens; turns made them."""
    how = Namespace(temperature=0.0, top_k=0, top_p=1.0, ignore_eos=False, quiet=True)
    how.max_new_tokens = most
    return replies(session, turns, [ids], how, [None], lambda text: None)[0]


def prepared(options, examples: list[Example], model, tokenizer) -> Run:
    """The run that the flags ask for."""
    lm = flags.attention(options, model.config)
    turns = Chat(options.model, tokenizer) if options.chat else Plain(tokenizer)
    names = ["full", "truncate", "lambda", "topk"]
    known = methods(names, lm, model.config, middle=options.middle)
    most = [options.max_new_tokens or PROMPTS[x.dataset]["tokens"] for x in examples]
    prompts, chosen = {"full": [prompt(options, turns, x) for x in examples]}, {}
    for name in options.methods:
        is_cut = name.startswith("truncate")
        chosen[name] = known["full" if is_cut else name]
        rooms = [known["truncate"].length - n if is_cut else math.inf for n in most]
        each = zip(examples, rooms)
        prompts[name] = [prompt(options, turns, x, room, name) for x, room in each]
    run = Run(model, turns, examples, chosen, prompts, most, options.chunk)
    run.settings = {"lm_infinite": dict(vars(lm))}
    return run


def prompt(options, turns, example: Example, room=math.inf, name="") -> list[int]:
    """The ids of a question's prompt, cut to `room` as a method's name says. Raises ValueError
    where there is none for the question."""
    template, tokenizer = options.template or example.dataset, turns.tokenizer
    template = PROMPTS[template]["prompt"] if template in PROMPTS else template
    text, is_head = example.asked(template, example.context), name == "truncate-head"
    ids = tokenizer.encode(example.context if is_head else text, bos=False)
    n = len(ids)
    while len(found := turns.prompt(text, first=True)) > room:
        n -= len(found) - room
        if n < 2:
            raise ValueError(f"question {example.id} takes more than the {room} tokens that "
                             "there are: give a larger --n-local")  # fmt: skip
        text = tokenizer.decode(ids[:n] if is_head else ids[: n // 2])
        if is_head:
            text = example.asked(template, text)
        else:
            text += tokenizer.decode(ids[-(n // 2) :])
    return found


def result(run: Run) -> dict:
    """The scores of each method, and what was written to each question."""
    texts, examples = list(dict.fromkeys(x.context for x in run.examples)), []
    for at, (x, ids) in enumerate(zip(run.examples, run.prompts["full"])):
        told = {"id": x.id, "question": x.question, "answers": x.answers, "written": {}}
        examples.append(told | {"text": texts.index(x.context), "tokens": len(ids)})
        for name, new in zip(run.methods, run.written[:, at]):
            text = run.turns.tokenizer.decode(new[new > NOTHING].tolist()).strip()
            told["written"][name] = {"text": text} | scores(text, x.answers)
    found = {
        name: {score: mean(examples, name, score) for score in ("f1", "exact match")}
        for name in run.methods
    }
    return {"results": {"texts": len(texts), "methods": found, "examples": examples}}


def mean(examples: list[dict], name: str, score: str) -> dict:
    """The mean of a method's score, and its interval over the texts of the questions."""
    texts = np.array([x["text"] for x in examples])
    values = np.array([x["written"][name][score] for x in examples])
    counts, sums = np.bincount(texts), np.bincount(texts, values)
    found = interval(sums[counts > 0], counts[counts > 0], [0])
    return {"mean": float(values.mean()), "questions": len(examples), "interval": found}


def words(result: dict) -> str:
    """The same for a reader."""
    found, name = result["results"], Path(result["settings"]["model"]).name
    rows = [
        row | {"method": METHODS[method], "score": score, "accuracy": row["mean"]}
        for method, by_score in found["methods"].items()
        for score, row in by_score.items()
    ]
    told = f"{name}, {len(found['examples'])} questions about "
    told += f"{found['texts']} texts; in brackets 95% intervals over texts"
    return f"{told}\n\n{grid(rows, 'method', 'score')}"
