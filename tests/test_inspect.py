"""inspect/: what it tells of a folder is so, and takes no weights."""

from __future__ import annotations

import functools
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, ROOT, change_config, change_tensors, tiny_model
from safetensors.torch import load_file

from minilm_inf import load
from minilm_inf.checkpoint import load_model, save, shards
from minilm_inf.inspect import __main__ as program_of
from minilm_inf.inspect import folder_facts, probe
from minilm_inf.positions import Rotary

SHIPPED = ROOT / "weights" / "tiny-llama"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A whole checkpoint of two layers, without a tokenizer."""
    save(tiny_model("llama", dtype=torch.float32), tmp_path)
    return tmp_path


@pytest.fixture
def run(program):
    """A call of the program: arguments -> (exit code, stdout, stderr)."""
    return functools.partial(program, program_of.main)


def line_of(text: str, label: str) -> str:
    """What stands after the one label of this name in a report."""
    (found,) = re.findall(rf"^  {label} +(.*)$", text, re.MULTILINE)
    return found


def rows_of(text: str) -> list[list[str]]:
    """The cells of the table of tensors."""
    lines = text.partition("\ntensors\n")[2].split("\n\n")[0].splitlines()
    return [[cell for cell in re.split(r"  +", line) if cell] for line in lines]


def parameter_of(model, words: str) -> torch.Tensor:
    """The part of a model that a report's "blocks.0.qkv.weight[32:48]" names."""
    name, _, rows = words.partition("[")
    first, last = rows.rstrip("]").split(":") if rows else (0, 10**9)
    return model.get_parameter(name)[int(first) : int(last)]


BUFFER = "model.rotary_emb.inv_freq"  # which a network computes itself


@pytest.mark.parametrize("family", FAMILIES)
def test_each_tensor_goes_where_it_is_said_to(family, tmp_path, run, monkeypatch):
    """Catches a map of names, rows or shapes that is not the one by which load_model loads; a
    tied head counted twice; minutes of reading gigabytes for what the headers say."""
    save(tiny_model(family, n_layer=3, dtype=torch.float32), tmp_path)
    change_tensors(tmp_path, lambda tensors: tensors.update({BUFFER: torch.ones(4)}))
    model, stored = load_model(tmp_path), load_file(tmp_path / "model.safetensors")
    del stored[BUFFER]
    monkeypatch.setattr(shards.Stored, "read_into", lambda *_: pytest.fail("a tensor is read"))
    out, told = run(tmp_path)[1], set()
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert line_of(out, "parameters").startswith(f"{expected:,}")
    size = f"{sum(x.nbytes for x in stored.values()) / 1e3:.2f} kB"
    words = f"{size} in 1 file, tensors: {len(stored)} F32, 1 ignored"
    assert line_of(out, "stored") == words
    *rows, last = rows_of(out)
    assert last == [BUFFER, "ignored", "4", "F32"]
    for name, *layers, goes, shape, dtype in rows:
        assert layers == (["0-2"] if "{}" in name else []) and dtype == "F32"
        for layer in range(3) if layers else [0]:
            tensor = stored[name.format(layer)]
            assert torch.equal(parameter_of(model, goes.format(layer)), tensor)
            assert shape == " x ".join(map(str, tensor.shape))
            told.add(name.format(layer))
    assert told == stored.keys()


def test_a_folder_needs_no_tokenizer(folder, run):
    """Catches a report that ends where the tokenizer is missing or damaged, or is silent."""
    code, out, _ = run(folder)
    assert code == 0 and line_of(out, "tokenizer").startswith("not loaded: ")
    code, out, err = run(folder, "--probe", "--device", "cpu")
    assert code == 1 and not out and "tokenizer" in err.splitlines()[-1]
    shutil.copy(SHIPPED / "tokenizer.model", folder)
    words = line_of(run(folder)[1], "tokenizer")
    assert words.startswith("not loaded: ") and "2048 ids, but the model only 31" in words
    assert "2,048 ids, BOS 1, EOS 2" in run(SHIPPED)[1]
    config, texts = load_model(SHIPPED).config, ROOT / "tests" / "fixtures" / "tokenizers"
    assert "BOS none (its files put none before" in folder_facts.tokenizer_words(texts, config)


DAMAGES = {  # what is done to a folder
    "surplus": lambda folder: change_tensors(folder, lambda t: t.update(colour=torch.zeros(4))),
    "unknown key": lambda folder: change_config(folder, colour="red"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "nothing": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_load_model_refuses(damage, folder, run):
    """Catches a folder that is said to be in order, and will not load; or the other way."""
    DAMAGES[damage](folder)
    with pytest.raises(ValueError) as refused:
        load_model(folder)
    assert run(folder) == (1, "", f"error: {refused.value}\n")


# The probe


def test_the_shipped_model_is_read_as_it_was_meant():
    """Catches positions or a BOS that differ from those of the training, a blunt probe, a text
    longer than the trained length, and means over different tokens."""
    model, tokenizer = load(SHIPPED)
    scheme, lengths = model.scheme, []
    model.embed.register_forward_hook(lambda _, given, out: lengths.append(given[0].shape[1]))
    as_read, *others = found = probe.probe(model, tokenizer)
    assert model.scheme is scheme
    assert lengths == [255, 255, 255, 255, 254]  # the last token is scored, not read
    assert as_read.what.startswith("as read: rotary in halves") and "with BOS" in as_read.what
    assert [other.what for other in others] == [
        "rotary in pairs", "theta 500,000", "theta 1,000,000", "without BOS",
    ]  # fmt: skip
    assert all(other.nll > as_read.nll + probe.MARGIN for other in others)
    assert probe.suspicion(found) is None
    ids = tokenizer.encode(probe.TEXT)[:256]
    logits = model(torch.tensor([ids[:-1]]), path="reference")[0].log_softmax(-1)
    nll = -logits.gather(1, torch.tensor(ids[1:])[:, None])[1:].mean()
    assert as_read.nll == pytest.approx(float(nll), abs=1e-4)


def test_permuted_weights_are_noticed(tmp_path, run):
    """Catches the commonest mistake of a conversion, which loads without a word: the rows of q
    and k as GPT-J and Meta's own files have them."""
    folder = shutil.copytree(SHIPPED, tmp_path / "permuted")

    def permute(tensors):
        for name in tensors:
            if re.search("[qk]_proj", name):  # m and m + D/2 become 2m and 2m + 1
                heads = tensors[name].unflatten(0, (-1, 2, 16))
                tensors[name] = heads.transpose(1, 2).flatten(0, 2).contiguous()

    change_tensors(folder, permute)
    code, out, err = run(folder, "--probe", "--device", "cpu")
    assert "tensors" not in out, "what inspect says without --probe"
    assert code == 0 and err.count("warning: rotary in pairs scores 3.60, better than") == 1
    row = next(line for line in out.splitlines() if line.startswith("  rotary in pairs"))
    assert row.split()[3:] == ["3.60", "-4.37"]
    noise = [probe.Reading("read", 3.0), probe.Reading("another", 2.96)]
    assert probe.suspicion(noise) is None, "another text would turn it"


LINEAR = (("rope_type", "linear"), ("factor", 4.0))
LLAMA3 = (
    ("rope_type", "llama3"), ("factor", 8.0), ("low_freq_factor", 1.0),
    ("high_freq_factor", 4.0), ("original_max_position_embeddings", 64),
)  # fmt: skip


@pytest.mark.parametrize(
    "family, facts, words, mistakes",
    [
        ("llama", dict(rope_theta=5e5, rope_scaling=LLAMA3),
         "rotary in halves, rotary_dim 8, theta 500,000, llama3 scaling (factor 8, "
         "low_freq_factor 1, high_freq_factor 4, original_max_position_embeddings 64)",
         ["rotary in pairs", "theta 10,000", "no rope scaling"]),
        ("gptj", {}, "rotary in pairs, rotary_dim 6, theta 10,000, no scaling",
         ["rotary in halves", "theta 500,000", "theta 1,000,000",
          "rotary on the whole head of 8"]),
        ("mpt", {}, "ALiBi, bias_max 8", ["alibi_bias_max 16"]),
        ("mpt", dict(alibi_bias_max=4), "ALiBi, bias_max 4",
         ["alibi_bias_max 8", "alibi_bias_max 16"]),
    ],
)  # fmt: skip
def test_the_positions_and_mistakes_of_each_family(family, facts, words, mistakes):
    """Catches another family's positions, and a mistake that a family is not asked about."""
    model = tiny_model(family, **facts)
    assert probe.described(model.config, model.scheme) == words
    assert [what for what, _ in probe.mistakes(model.config, model.scheme)] == mistakes


def test_a_mistake_changes_one_thing():
    """Catches a mistake that equals the layout as read, or that forgets its scaling."""
    model = tiny_model("llama", rope_theta=5e5, rope_scaling=LINEAR)
    scaled, plain = dict(probe.mistakes(model.config, model.scheme)), Rotary(8, 5e5)
    assert torch.equal(scaled["no rope scaling"].frequencies, plain.frequencies)
    assert torch.equal(scaled["rotary in pairs"].frequencies, plain.frequencies / 4)
    assert torch.equal(scaled["theta 10,000"].frequencies, Rotary(8).frequencies / 4)


class Letters:
    """A tokenizer of letters, which puts its BOS, if any, before a text."""

    def __init__(self, bos_id):
        self.bos_id = bos_id

    def encode(self, text, bos):
        return [self.bos_id] * bos + [1 + ord(letter) % 30 for letter in text]


def test_the_probe_asks_about_bos():
    """Catches an invented BOS, one that is put twice, or nowhere; and a table of nan."""
    model = tiny_model("llama", context_length=20)
    without = probe.probe(model, Letters(None))
    assert not any("BOS" in reading.what for reading in without)
    puts = probe.probe(model, Letters(0))
    assert puts[0].what.endswith(", with BOS") and puts[-1].what == "without BOS"
    assert puts[-1].nll == pytest.approx(without[0].nll) != pytest.approx(puts[0].nll)
    model.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match="not numbers"):
        probe.probe(model, Letters(0))
