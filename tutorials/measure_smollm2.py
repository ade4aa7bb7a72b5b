"""A real model, SmolLM2-135M-Instruct: `make check-smollm2`, or this file with its FOLDER.

Held to transformers, on the same folder and the same text:
1. the logits, in float32, and in float64;
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
FLOAT64 = 1e-12
QUESTIONS = (
    "What is the capital of France, and what is it known for?",
    "Explain in two sentences why the sky is blue.",
)
SYSTEMS = (None, "You answer in one short sentence.", "")


def transformers_logits(folder: Path, tokens, dtype, attention: str) -> torch.Tensor:
    """LlamaForCausalLM's logits; in float64 without what it computes in float32 all the same,
    which is the angles and the norms."""
    model = transformers.LlamaForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=attention
    )
    if dtype == torch.float64:
        dim, theta = model.config.head_dim, model.config.rope_parameters["rope_theta"]
        turns = theta ** -(torch.arange(0, dim, 2, dtype=dtype) / dim)

        def angles(x, position_ids):
            both = (position_ids[..., None] * turns).repeat(1, 1, 2)
            return both.cos(), both.sin()

        model.model.rotary_emb.forward = angles
        for module in model.modules():
            if isinstance(module, transformers.models.llama.modeling_llama.LlamaRMSNorm):
                module.forward = lambda x, m=module: torch.rms_norm(
                    x, m.weight.shape, m.weight, m.variance_epsilon
                )
    with torch.no_grad():
        return model(tokens).logits


def check_logits(folder: Path, tokens: torch.Tensor) -> bool:
    """Print the largest differences on tokens (1, T); whether they are small enough."""

    def ours(dtype, path="chunked"):
        with torch.no_grad():
            return load_model(folder, dtype=dtype)(tokens, path=path)

    def difference(between: str, one, other) -> float:
        found = (one - other).abs().max().item()
        print(f"  {between:<52}{found:9.1e}")
        return found

    eager = transformers_logits(folder, tokens, torch.float32, "eager")
    sdpa = transformers_logits(folder, tokens, torch.float32, "sdpa")
    chunked, largest = ours(torch.float32), eager.abs().max().item()
    print(
        f"{tokens.shape[1]} tokens, logits up to {largest:.1f}; the largest difference between"
    )
    worst = difference("our chunked path and transformers, eager", chunked, eager)
    worst = max(worst, difference("our chunked path and transformers, sdpa", chunked, sdpa))
    reference = ours(torch.float32, "reference")
    worst = max(worst, difference("our reference path and transformers", reference, eager))
    difference("transformers, eager, and transformers, sdpa", eager, sdpa)
    exact = transformers_logits(folder, tokens, torch.float64, "sdpa")
    exactly = difference("ours and transformers, float64", ours(torch.float64), exact)
    return worst <= FLOAT32 * largest and exactly <= FLOAT64 * largest


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
