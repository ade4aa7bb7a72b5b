"""A real model, SmolLM2-135M-Instruct: `make check-smollm2`, or this file with its FOLDER.

Held to transformers, on the same folder and the same text:
1. the logits, in float32;
2. the ids of texts, and of conversations (apply_chat_template, which runs the template).
Then, by ourselves: replies to questions, and a conversation of two turns.

The exit code is 1 where ids differ, or logits by more than is allowed.
"""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
import transformers
from fuzzed_texts import fuzzed_texts

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from minilm_inf import LMInfinite, generate, load, load_model
from minilm_inf.text.chat import Chat

ROOT = Path(__file__).resolve().parent.parent
FLOAT32 = 1e-5  # the largest difference that is allowed, as a share of the largest logit
QUESTIONS = (
    "What is the capital of France, and what is it known for?",
    "Explain in two sentences why the sky is blue.",
)
SYSTEMS = (None, "You answer in one short sentence.", "")


@torch.no_grad()
def check_logits(folder: Path, tokens: torch.Tensor) -> bool:
    """Print the largest differences on tokens (1, T); whether they are small enough."""
    model = load_model(folder, dtype=torch.float32)
    ours = {path: model(tokens, path=path) for path in ("chunked", "reference")}
    theirs, worst = {}, 0.0
    for kind in ("eager", "sdpa"):
        theirs[kind] = transformers.LlamaForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=kind
        )(tokens).logits
        for path, logits in ours.items():
            found = (logits - theirs[kind]).abs().max().item()
            print(f"  our {path} path and transformers, {kind:<12}{found:9.1e}")
            worst = max(worst, found)
    found = (theirs["eager"] - theirs["sdpa"]).abs().max().item()
    largest = theirs["eager"].abs().max().item()
    print(f"  transformers, eager, and transformers, sdpa {found:9.1e}")
    print(f"{tokens.shape[1]} tokens, logits up to {largest:.1f}")
    return worst <= FLOAT32 * largest


def check_ids(folder: Path, tokenizer, texts: list[str]) -> bool:
    """Print for how many texts, and turns of conversations, the ids are transformers' own."""
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    same = sum(tokenizer.encode(text) == theirs(text)["input_ids"] for text in texts)
    print(f"{same} of {len(texts)} texts have the same ids")
    count = same_turns = 0
    for system in SYSTEMS:
        chat = Chat(folder, tokenizer, system)
        for turns in zip(texts[::3], texts[1::3], texts[2::3]):
            if any(mark in "".join(turns) for mark in theirs.all_special_tokens):
                continue  # there we differ on purpose: see chat.py
            messages = [] if system is None else [{"role": "system", "content": system}]
            ids = []
            for text in turns:
                ids += chat.prompt(text, first=not ids)
                messages.append({"role": "user", "content": text})
                expected = theirs.apply_chat_template(
                    messages, add_generation_prompt=True, return_dict=False
                )
                count, same_turns = count + 1, same_turns + (ids == expected)
                ids += tokenizer.encode("Yes, of course.", bos=False)
                messages.append({"role": "assistant", "content": "Yes, of course."})
    print(f"{same_turns} of {count} turns have the ids that the chat template gives")
    return same == len(texts) and same_turns == count > 0


def converse(folder: Path, model, tokenizer):
    """Print greedy replies: to each question, and to a second one after the first."""
    chat, lm = Chat(folder, tokenizer), LMInfinite.for_model(model.config)

    def reply(question: str, ids: list[int], n: int) -> list[int]:
        new = list(generate(model, ids, lm, n, temperature=0.0, stop_ids=chat.stop_ids))
        print(question)
        print(textwrap.indent(textwrap.fill(tokenizer.decode(new), 88), "    "))
        return ids + new

    for question in reversed(QUESTIONS):
        ids = reply(question, chat.prompt(question, first=True), 120)
    question = "And which river flows through it?"
    reply(question, ids + chat.prompt(question, first=False), 60)


def main() -> int:
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "weights" / "smollm2-135m")
    model, tokenizer = load(folder)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    ids = tokenizer.encode(text)
    good = check_logits(folder, torch.tensor([ids[:600]]))
    good &= check_ids(folder, tokenizer, [text, *fuzzed_texts(1500)])
    converse(folder, model, tokenizer)
    print("as it should be" if good else "NOT as it should be")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
