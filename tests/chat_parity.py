"""Our ids of conversations against transformers' apply_chat_template, live.

    python tests/chat_parity.py

reads every template of test_chat.py beside a tokenizer of its own: byte-level, or a Llama's
tokenizer.json with a space before every piece or before the first one only. It prints for each
how many turns have other ids. The exit code is 1 if one has.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
import transformers  # noqa: E402
from fuzzed_texts import fuzzed_texts  # noqa: E402
from test_chat import KNOWN, NO_SYSTEM, byte_level_folder  # noqa: E402
from tokenizer_json import piece_kinds  # noqa: E402

from minilm_inf.text.chat import Chat  # noqa: E402
from minilm_inf.text.tokenizer import load  # noqa: E402

SPACED = {"every piece": "Llama 2", "the first": "Llama, first"}


def llama_folder(folder: Path, template: str, kind: str):
    """A Llama's tokenizer.json, of tiny-llama's pieces, and a chat template."""
    raw = piece_kinds()[kind]
    raw["added_tokens"] = raw["added_tokens"][:3]  # <unk>, <s> and </s>
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": template, "tokenizer_class": "LlamaTokenizer"} | marks)
    )


def differing(folder: Path, name: str, texts: list[str]) -> tuple[int, int]:
    """How many turns there are, and in how many the ids are not transformers'."""
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    ours, count, wrong = load(folder), 0, 0
    for system in (None, "Be brief.", " Be \n brief. \n")[: 1 if name in NO_SYSTEM else 3]:
        chat = Chat(folder, ours, system)
        for first, second in zip(texts[::2], texts[1::2]):
            messages = [] if system is None else [{"role": "system", "content": system}]
            for turn, text in enumerate((first, second)):
                if turn and not chat.goes_on:
                    break
                messages.append({"role": "user", "content": text})
                try:
                    ids = chat.prompt(text, first=not turn)
                except ValueError:  # a mark that could not be told from the template's
                    break
                right = theirs.apply_chat_template(
                    messages, add_generation_prompt=True, return_dict=False
                )
                count, wrong = count + 1, wrong + (right[-len(ids) :] != ids)
                wrong += not turn and len(right) > len(ids)
                messages.append({"role": "assistant", "content": "Very well."})
    return count, wrong


def main() -> int:
    texts = [text for text in fuzzed_texts(400) if not any(m in text for m in ("<", "|", "["))]
    random.Random(0).shuffle(texts)
    transformers.logging.set_verbosity_error()
    total = 0
    for name, (template, marks) in KNOWN.items():
        for spaced, kind in SPACED.items() if marks is None else [("", "")]:
            with tempfile.TemporaryDirectory() as place:
                if marks is None:
                    llama_folder(Path(place), template, kind)
                else:
                    byte_level_folder(Path(place), marks, template)
                count, wrong = differing(Path(place), name, texts)
            title = f"{name}{f', a space before {spaced}' if spaced else ''}"
            print(f"{title:<50} {count:>6} turns, {wrong} with other ids")
            total += wrong
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
