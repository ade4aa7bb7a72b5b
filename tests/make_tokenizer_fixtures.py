"""Small tokenizers of each byte-level kind, and what the tokenizers library makes of texts.

    python tests/make_tokenizer_fixtures.py

learns merges from fuzzed texts, and writes tests/fixtures/tokenizers/: vocab.json and
merges.txt, from which tokenizer_json.py makes every byte-level kind (those with byte fallback
are made of weights/tiny-llama's pieces); and expected.json, for each kind a checksum of the ids
of each text, and of the text that they decode to. test_tokenizer_json.py compares our own with
these, without that library.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from fuzzed_texts import fuzzed_texts  # noqa: E402
from tokenizer_json import FOLDER, piece_kinds, small_kinds  # noqa: E402

from minilm_inf.text.byte_pairs import learn_merges, tokenizer_json  # noqa: E402

MERGES, TEXTS, SEED = 500, 300, 5


def checksums(texts: list[str], encode, decode) -> dict[str, int]:
    """A checksum of all texts' ids, of what these decode to, and of what every second of them
    does, in which characters are torn."""
    ids = [list(encode(text)) for text in texts]
    return {
        "ids": zlib.crc32(repr(ids).encode()),
        "text": zlib.crc32(repr([decode(row) for row in ids]).encode()),
        "torn": zlib.crc32(repr([decode(row[::2]) for row in ids]).encode()),
    }


def main():
    import tokenizers

    merges = learn_merges(fuzzed_texts(4000, seed=1), MERGES)
    model = json.loads(tokenizer_json(merges))["model"]
    FOLDER.mkdir(parents=True, exist_ok=True)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (FOLDER / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = json.dumps(model["vocab"], ensure_ascii=False)
    (FOLDER / "vocab.json").write_text(text + "\n", encoding="utf-8")

    texts, expected = fuzzed_texts(TEXTS, SEED), {}
    files = str(FOLDER / "vocab.json"), str(FOLDER / "merges.txt")
    two_files = tokenizers.ByteLevelBPETokenizer(*files)
    two_files.add_special_tokens(["<|endoftext|>"])
    made = {"two files": two_files}
    for kind, raw in {**small_kinds(), **piece_kinds()}.items():
        made[kind] = tokenizers.Tokenizer.from_str(json.dumps(raw))
    for kind, tokenizer in made.items():
        expected[kind] = checksums(
            texts, lambda t, k=tokenizer: k.encode(t).ids, tokenizer.decode
        )
    for kind in piece_kinds():  # where sentencepiece shows more of torn bytes
        del expected[kind]["torn"]
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    print(f"{len(expected)} kinds, {len(texts)} texts, by tokenizers {tokenizers.__version__}")


if __name__ == "__main__":
    main()
