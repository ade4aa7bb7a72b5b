"""inspect/: what it tells of a folder is so, and takes no weights."""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, change_config, change_tensors, tiny_model, write_sparse
from safetensors.torch import load_file

from minilm_inf import load
from minilm_inf.checkpoint import checkpoint, load_model, save, shards
from minilm_inf.inspect import __main__ as program_of
from minilm_inf.inspect import folder_facts, probe
from minilm_inf.models import llama
from minilm_inf.positions import Rotary

SHIPPED = ROOT / "weights" / "tiny-llama"
FAMILIES = ("llama", "mpt", "gptj")


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
    """What stands after a label of the report."""
    found = re.findall(rf"^  {label} +(.*)$", text, re.MULTILINE)
    assert len(found) == 1, f"{label} occurs {len(found)} times"
    return found[0]


def rows_of(text: str) -> list[list[str]]:
    """The cells of the table of tensors."""
    lines = text.partition("\ntensors\n")[2].split("\n\n")[0].splitlines()
    return [[cell for cell in re.split(r"  +", line) if cell] for line in lines]


# A large folder, of which only the headers are read

LLAMA_7B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
    "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32,
    "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    "torch_dtype": "float16", "tie_word_embeddings": False,
}  # fmt: skip
BUFFER = "model.layers.{}.self_attn.rotary_emb.inv_freq"


@pytest.fixture(scope="module")
def sparse_7b(tmp_path_factory) -> Path:
    """LLaMA-7B as it is published: 291 tensors in float16, 32 ignored ones, two shards, which
    are headers and nothing after them but length."""
    folder = tmp_path_factory.mktemp("llama-7b")
    (folder / "config.json").write_text(json.dumps(LLAMA_7B))
    with torch.device("meta"):
        model = llama.build(checkpoint.read_config(folder))
    tensors = {n: (list(p.shape), "F16") for n, p in checkpoint.named_pieces(model).items()}
    tensors |= {BUFFER.format(layer): ([64], "F32") for layer in range(32)}
    weight_map, names = {}, sorted(tensors)
    for number in (1, 2):
        file, held = f"model-0000{number}-of-00002.safetensors", names[number - 1 :: 2]
        write_sparse(folder / file, {name: tensors[name] for name in held})
        weight_map |= dict.fromkeys(held, file)
    (folder / shards.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def bytes_read() -> int:
    """What this process has read from files so far; 0 where the system does not tell."""
    try:
        text = Path("/proc/self/io").read_text()
    except OSError:
        return 0
    return int(re.search(r"rchar: (\d+)", text)[1])


@pytest.fixture
def no_weights(monkeypatch):
    """Make every way to a tensor's numbers an error."""
    for name in ("read_into", "equals"):
        monkeypatch.setattr(shards.Stored, name, lambda *_: pytest.fail("a tensor is read"))


def test_a_7b_folder_is_told_from_its_headers(sparse_7b, run, no_weights):
    """Catches minutes of reading 13 GB for what the headers say, and a wrong count of them."""
    assert sum(file.stat().st_size for file in sparse_7b.iterdir()) > 13e9
    before = bytes_read()
    code, out, err = run(sparse_7b)
    assert bytes_read() - before < 2e6
    assert (code, err) == (0, "")
    assert line_of(out, "parameters") == "6,738,415,616"
    assert line_of(out, "stored") == "13.48 GB in 2 files, tensors: 291 F16, 32 ignored"
    assert line_of(out, "in float32") == "26.95 GB"
    assert line_of(out, "positions") == (
        "rotary in halves, rotary_dim 128, theta 10,000, no scaling"
    )
    rows = rows_of(out)
    assert len(rows) == 13
    assert rows[2] == [
        "model.layers.{}.self_attn.q_proj.weight", "0-31", "blocks.{}.qkv.weight[0:4096]",
        "4096 x 4096", "F16",
    ]  # fmt: skip
    assert rows[-1] == [BUFFER, "0-31", "ignored", "64", "F32"]


def test_memory_of_a_7b_folder(sparse_7b, run, monkeypatch):
    """Catches a verdict that forgets the weights, the cache or the dtype they are loaded in."""
    for room in (program_of, folder_facts):
        monkeypatch.setattr(room, "available_memory", lambda: 31 * 10**9)
    out = run(sparse_7b)[1]
    assert "beside 26.95 GB of weights; 31.00 GB of memory available here" in out
    cells = "4.29 GB, too large", "34.36 GB, too large", "1.10 TB, too large"
    assert re.split(r"  +", line_of(out, "vanilla")) == list(cells)
    row = 32 * 2 * 4096 * 4 / 1e9  # of one token's keys and values in float32
    assert (
        line_of(out, r"LM-Infinite, 2,048 \+ 10").count(f"{row * (2048 + 2 * 10):.2f} GB") == 3
    )
    out = run(sparse_7b, "--dtype", "bfloat16")[1]
    assert "beside 13.48 GB" in out and line_of(out, "vanilla").count("too large") == 1


# Where each tensor goes


def parameter_of(model, words: str) -> torch.Tensor:
    """The part of a model that a report's "blocks.0.qkv.weight[32:48]" names."""
    name, _, rows = words.partition("[")
    whole = model.get_parameter(name)
    if not rows:
        return whole
    first, last = rows.rstrip("]").split(":")
    return whole[int(first) : int(last)]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_tensor_goes_where_it_is_said_to(family, tmp_path, run):
    """Catches a map of names, rows or shapes that is not the one by which load_model loads; and
    a tied head counted twice."""
    save(tiny_model(family, n_layer=3, dtype=torch.float32), tmp_path)
    model, stored = load_model(tmp_path), load_file(tmp_path / "model.safetensors")
    out = run(tmp_path)[1]
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert line_of(out, "parameters").startswith(f"{expected:,}")
    told = set()
    for name, *layers, goes, shape, dtype in rows_of(out):
        assert layers == (["0-2"] if "{}" in name else []) and dtype == "F32"
        for layer in range(3) if layers else [0]:
            tensor = stored[name.format(layer)]
            assert torch.equal(parameter_of(model, goes.format(layer)), tensor)
            assert shape == " x ".join(map(str, tensor.shape))
            told.add(name.format(layer))
    assert told == stored.keys()


# Positions and tokenizers


def test_positions_in_words():
    """Catches another family's positions, and a scaling that is not told."""

    def words(family, **facts):
        model = tiny_model(family, **facts)
        return probe.described(model.config, model.scheme)

    llama3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
    pairs = (("rope_type", "llama3"), *llama3.items(), ("original_max_position_embeddings", 64))
    assert words("llama", rope_theta=500000.0, rope_scaling=pairs) == (
        "rotary in halves, rotary_dim 8, theta 500,000, llama3 scaling (factor 8, "
        "low_freq_factor 1, high_freq_factor 4, original_max_position_embeddings 64)"
    )
    assert words("gptj") == "rotary in pairs, rotary_dim 6, theta 10,000, no scaling"
    assert words("mpt", alibi_bias_max=16) == "ALiBi, bias_max 16"


def test_a_folder_needs_no_tokenizer(folder, run):
    """Catches a report that ends where the tokenizer is missing or damaged, or is silent."""
    code, out, _ = run(folder)
    assert code == 0 and line_of(out, "tokenizer").startswith("not loaded: ")
    shutil.copy(SHIPPED / "tokenizer.model", folder)
    code, out, _ = run(folder)
    words = line_of(out, "tokenizer")
    assert code == 0 and "2,048 ids, BOS 1, EOS 2: it has more ids than the model's 31" in words
    assert line_of(run(SHIPPED)[1], "tokenizer").endswith("2,048 ids, BOS 1, EOS 2")


# Folders that load_model refuses

UP, DOWN = (f"model.layers.1.mlp.{part}_proj.weight" for part in ("up", "down"))


def tensors(change):
    """A damage to a folder's tensors."""
    return lambda folder: change_tensors(folder, change)


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES = {  # what is done to a folder -> how, and what can be told nonetheless
    "missing": (tensors(lambda t: t.pop(UP)), "family parameters stored tensors"),
    "surplus": (
        tensors(lambda t: t.update({UP[:-6] + "bias": torch.zeros(48)})),
        "family parameters stored tensors no-place",
    ),
    "misshapen": (
        tensors(lambda t: t.update({DOWN: t[DOWN].T.contiguous()})), "parameters tensors",
    ),
    "quantised": (
        tensors(lambda t: t.update({DOWN: t[DOWN].to(torch.int8)})), "parameters tensors I8",
    ),
    "fewer layers": (
        lambda folder: change_config(folder, num_hidden_layers=1), "parameters no-place",
    ),
    "unknown key": (
        lambda folder: change_config(folder, colour="red"), "stored tensors not-known",
    ),
    "cut short": (cut_short, "family tokenizer"),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(), "family tokenizer",
    ),
    "nothing": (shutil.rmtree, ""),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_load_model_refuses(damage, folder, run):
    """Catches a folder that is said to be in order, and will not load; or the other way."""
    change, told = DAMAGES[damage]
    change(folder)
    with pytest.raises(ValueError) as refused:
        load_model(folder)
    sentence = " ".join(str(refused.value).split())
    code, out, err = run(folder)
    assert (code, err) == (1, f"error: {sentence}\n")
    for words in told.split():
        assert re.search(rf"\b{words.replace('-', ' ')}\b", out), words


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
    assert others[0].nll > as_read.nll + 3 and probe.suspicion(found) is None
    ids = tokenizer.encode(probe.TEXT)[:256]
    logits = model(torch.tensor([ids[:-1]]), path="reference")[0].log_softmax(-1)
    nll = -logits.gather(1, torch.tensor(ids[1:])[:, None])[1:].mean()
    assert as_read.nll == pytest.approx(float(nll), abs=1e-4)


def interleave(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of halves, (H * D, E), in the order of pairs: m and m + D/2 become 2m and 2m + 1."""
    heads = weight.unflatten(0, (-1, 2, head_dim // 2))
    return heads.transpose(1, 2).flatten(0, 2).contiguous()


def test_permuted_weights_are_noticed(tmp_path, run):
    """Catches the commonest mistake of a conversion, which loads without a word: the rows of q
    and k as GPT-J and Meta's own files have them."""
    folder = tmp_path / "permuted"
    shutil.copytree(SHIPPED, folder)

    def permute(tensors):
        for name in tensors:
            if re.search("[qk]_proj", name):
                tensors[name] = interleave(tensors[name], 32)

    change_tensors(folder, permute)
    code, out, err = run(folder, "--probe", "--device", "cpu")
    assert code == 0 and err.count("warning: rotary in pairs scores 3.60, better than") == 1
    row = next(line for line in out.splitlines() if line.startswith("  rotary in pairs"))
    assert row.split()[3:] == ["3.60", "-4.37"]


def test_the_mistakes_of_each_family():
    """Catches a mistake that equals the layout as read, or that a family is not asked about."""

    def asked(family, **facts):
        model = tiny_model(family, **facts)
        return dict(probe.mistakes(model.config, model.scheme))

    linear = (("rope_type", "linear"), ("factor", 4.0))
    scaled, plain = asked("llama", rope_theta=5e5, rope_scaling=linear), Rotary(8, 5e5)
    assert list(scaled) == ["rotary in pairs", "theta 10,000", "no rope scaling"]
    assert torch.equal(scaled["no rope scaling"].frequencies, plain.frequencies)
    assert torch.equal(scaled["rotary in pairs"].frequencies, plain.frequencies / 4)
    assert torch.equal(scaled["theta 10,000"].frequencies, Rotary(8).frequencies / 4)
    partial = asked("gptj")
    assert list(partial) == [
        "rotary in halves", "theta 500,000", "theta 1,000,000", "rotary on the whole head of 8",
    ]  # fmt: skip
    made = [(scheme.rotary_dim, scheme.layout) for scheme in partial.values()]
    assert made == [(6, "halves"), (6, "pairs"), (6, "pairs"), (8, "pairs")]
    assert list(asked("mpt")) == ["alibi_bias_max 16"]
    assert list(asked("mpt", alibi_bias_max=4)) == ["alibi_bias_max 8", "alibi_bias_max 16"]


class Letters:
    """A tokenizer of letters; `puts` says whether it puts its BOS, if any, before a text."""

    def __init__(self, bos_id, puts=True):
        self.bos_id, self.puts = bos_id, puts

    def encode(self, text, bos=True):
        ids = [1 + ord(letter) % 30 for letter in text]
        return [self.bos_id, *ids] if bos and self.puts and self.bos_id is not None else ids


@pytest.mark.parametrize("family", FAMILIES)
def test_the_probe_asks_about_bos(family):
    """Catches an invented BOS, and one that is put where the tokenizer puts none, or twice."""
    model = tiny_model(family, context_length=20)
    without = probe.probe(model, Letters(None))
    assert not any("BOS" in reading.what for reading in without)
    puts, holds_back = (probe.probe(model, Letters(0, puts)) for puts in (True, False))
    assert puts[0].what.endswith(", with BOS") and puts[-1].what == "without BOS"
    assert holds_back[0].what.endswith(", without BOS") and holds_back[-1].what == "with BOS"
    assert puts[0].nll == pytest.approx(holds_back[-1].nll)
    assert puts[-1].nll == pytest.approx(holds_back[0].nll) == pytest.approx(without[0].nll)
    assert len({round(reading.nll, 6) for reading in puts}) == len(puts)


def test_suspicion():
    """Catches a warning about noise, about nothing, or about the wrong mistake."""

    def warned(*nll):
        return probe.suspicion([probe.Reading(f"reading {i}", x) for i, x in enumerate(nll)])

    assert warned(3.0) is None and warned(3.0, 3.5, 3.0, 2.96, float("nan")) is None
    assert "reading 3 scores 2.00" in warned(3.0, float("nan"), 2.9, 2.0, 2.5)
    assert "float32" in warned(float("nan"), 3.0)


def test_a_probe_that_cannot_be(folder, run):
    """Catches a traceback, or a report that is lost with it."""
    code, out, err = run(folder, "--probe", "--device", "cpu")
    assert code == 1 and "parameters" in out and "tokenizer" in err.splitlines()[-1]
    with pytest.raises(ValueError, match="too short"):
        probe.probe(tiny_model("llama", context_length=3), None)
