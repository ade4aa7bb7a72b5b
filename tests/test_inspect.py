"""inspect/: what it tells of a folder is so, and takes no weights."""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path

import pytest
import torch
from conftest import ROOT, change_config, change_tensors, tiny_model, write_sparse
from safetensors.torch import load_file

from minilm_inf import load
from minilm_inf.checkpoint import checkpoint, load_model, save, shards
from minilm_inf.inspect import folder_facts, probe
from minilm_inf.inspect.__main__ import main, ranges
from minilm_inf.inspect.folder_facts import look
from minilm_inf.models import llama
from minilm_inf.positions import Alibi, Rotary
from minilm_inf.terminal import progress

SHIPPED = ROOT / "weights" / "tiny-llama"
FAMILIES = ("llama", "mpt", "gptj")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A whole checkpoint of two layers, without a tokenizer."""
    save(tiny_model("llama", dtype=torch.float32), tmp_path)
    return tmp_path


def run(capsys, *arguments) -> tuple[int, str, str]:
    """The program's exit code, stdout and stderr."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        code = stopped.code
    return code, *capsys.readouterr()


def line_of(text: str, label: str) -> str:
    """What stands after a label of the report."""
    found = re.findall(rf"^  {label} +(.*)$", text, re.MULTILINE)
    assert len(found) == 1, f"{label} occurs {len(found)} times"
    return found[0]


# A large folder, of which only the headers are read

LLAMA_7B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
    "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32,
    "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    "torch_dtype": "float16", "tie_word_embeddings": False,
}  # fmt: skip


BUFFER = "model.layers.{}.self_attn.rotary_emb.inv_freq"


def write_sparse_7b(folder: Path):
    """LLaMA-7B as it is published: 291 tensors in float16, 32 ignored ones, two shards.

    The shards are headers and nothing after them but length.
    """
    (folder / "config.json").write_text(json.dumps(LLAMA_7B))
    with torch.device("meta"):
        model = llama.build(checkpoint.read_config(folder))
    tensors = {n: (list(p.shape), "F16") for n, p in checkpoint.named_pieces(model).items()}
    for layer in range(32):
        tensors[BUFFER.format(layer)] = ([64], "F32")
    weight_map = {}
    for number in (1, 2):
        file, held = f"model-0000{number}-of-00002.safetensors", {}
        for name, facts in tensors.items():
            layer = re.search(r"\.(\d+)\.", name)
            if (2 if layer is None or int(layer[1]) >= 24 else 1) == number:
                held[name], weight_map[name] = facts, file
        write_sparse(folder / file, held)
    (folder / shards.INDEX).write_text(json.dumps({"weight_map": weight_map}))


def bytes_read() -> int:
    """What this process has read from files so far; 0 where the system does not tell."""
    try:
        text = Path("/proc/self/io").read_text()
    except OSError:
        return 0
    return int(re.search(r"rchar: (\d+)", text)[1])


@pytest.fixture(scope="module")
def sparse_7b(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama-7b")
    write_sparse_7b(folder)
    return folder


def no_weights(monkeypatch):
    """Make every way to a tensor's numbers an error."""

    def refuse(*arguments, **options):
        raise AssertionError("a tensor is read")

    monkeypatch.setattr(shards.Stored, "read_into", refuse)
    monkeypatch.setattr(shards.Stored, "equals", refuse)


def test_a_7b_folder_is_told_from_its_headers(sparse_7b, capsys, monkeypatch):
    """Catches minutes of reading 13 GB for what the headers say, and a wrong count of them."""
    files = list(sparse_7b.glob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) > 13e9
    assert sum(file.stat().st_blocks * 512 for file in files) < 1e6
    no_weights(monkeypatch)
    before = bytes_read()
    code, out, err = run(capsys, sparse_7b)
    assert bytes_read() - before < 2e6
    assert (code, err) == (0, "")
    assert line_of(out, "parameters") == "6,738,415,616"
    assert line_of(out, "stored") == "13.48 GB in 2 files, tensors: 291 F16, 32 ignored"
    assert line_of(out, "in float32") == "26.95 GB"
    assert line_of(out, "positions") == (
        "rotary in halves, rotary_dim 128, theta 10,000, no scaling"
    )
    rows = [line.split("  ") for line in out.partition("\ntensors\n")[2].splitlines()]
    rows = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert len(rows) == 13
    assert rows[2] == [
        "model.layers.{}.self_attn.q_proj.weight", "0-31", "blocks.{}.qkv.weight[0:4096]",
        "4096 x 4096", "F16", "model-00001-of-00002.safetensors and 1 more",
    ]  # fmt: skip
    assert rows[-1][:4] == [BUFFER, "0-31", "ignored", "64"]


def test_memory_of_a_7b_folder(sparse_7b, capsys, monkeypatch):
    """Catches a verdict that forgets the weights, the cache or the dtype they are loaded in."""
    monkeypatch.setattr(folder_facts, "available_memory", lambda: 31 * 10**9)

    def cells(*flags):
        memory = json.loads(run(capsys, sparse_7b, "--json", *flags)[1])["memory"]
        assert memory["weights_bytes"] == 6_738_415_616 * (2 if flags else 4)
        found = {(cell["reading"], cell["tokens"]): cell for cell in memory["cache"]}
        return [(found[key]["bytes"], found[key]["fits"]) for key in sorted(found)]

    row = 32 * 2 * 4096 * 4  # bytes of one token's keys and values in float32
    bounded = [(row * (2048 + 2 * 10), True)] * 3
    assert cells() == [
        *bounded,
        (row * 4096, False),
        (row * 2**15, False),
        (row * 2**20, False),
    ]
    halved = [(size // 2, True) for size, _ in bounded]
    assert cells("--dtype", "bfloat16") == [
        *halved, (row * 2048, True), (row * 2**14, True), (row * 2**19, False),
    ]  # fmt: skip
    monkeypatch.setattr(folder_facts, "available_memory", lambda: None)
    assert {fits for _, fits in cells()} == {None}
    out = run(capsys, sparse_7b)[1]
    assert "unknown memory available" in out and out.count("unknown") == 7


def test_available_memory(monkeypatch):
    """Catches kilobytes taken for bytes, and a crash on a system without /proc."""
    text = "MemTotal:       9000 kB\nMemFree:  7 kB\nMemAvailable:    5000 kB\n"
    monkeypatch.setattr(Path, "read_text", lambda path, **options: text)
    assert progress.available_memory() == 5_120_000

    def no_proc(path, **options):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", no_proc)
    assert progress.available_memory() is None


# Formulas against the real thing


@pytest.mark.parametrize("family, changes", [
    ("llama", {"tied": True, "n_layer": 1}), ("mpt", {}), ("gptj", {"n_layer": 5}),
])  # fmt: skip
def test_parameters_are_counted(family, changes):
    """Catches a tied head counted twice, and layers counted once."""
    model = tiny_model(family, **{"n_layer": 3} | changes)
    layer = folder_facts.one_layer(model.config)
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert folder_facts.count_parameters(model.config, layer) == expected


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
def test_each_tensor_goes_where_it_is_said_to(family, tmp_path, capsys):
    """Catches a map of names, rows or shapes that is not the one by which load_model loads."""
    layers = 12 if family == "llama" else 2
    save(tiny_model(family, n_layer=layers, dtype=torch.float32), tmp_path)
    model, stored = load_model(tmp_path), load_file(tmp_path / "model.safetensors")
    places = look(tmp_path, torch.float32)["tensors"]
    assert sorted(place["name"] for place in places) == sorted(stored)
    for place in places:
        assert torch.equal(parameter_of(model, place["parameter"]), stored[place["name"]])
        assert place["shape"] == stored[place["name"]].shape and place["dtype"] == "F32"
        assert place["file"] == "model.safetensors"

    rows = run(capsys, tmp_path, "--all")[1].partition("\ntensors\n")[2].splitlines()
    assert [row.split()[:2] for row in rows] == [[p["name"], p["parameter"]] for p in places]
    folded = run(capsys, tmp_path)[1].partition("\ntensors\n")[2].splitlines()
    kinds = {re.sub(r"\.\d+\.", ".{}.", name) for name in stored}
    assert {row.split()[0] for row in folded} == kinds and len(folded) == len(kinds)
    assert all((f"  0-{layers - 1}  " in row) == ("{}" in row) for row in folded)


@pytest.mark.parametrize("name", ["\ud800", "\x1b[31m", "a\nb", "x" * 10**5])
def test_names_that_no_terminal_should_see(name, folder, capsys):
    """Catches a crash for half a surrogate pair, and a stranger's control codes obeyed."""
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length]) | {
        name: {"dtype": "F4", "shape": [0], "data_offsets": [0, 0]}
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
    code, out, err = run(capsys, folder, "--all")
    assert code == 1 and ("has no place" in err or "hex escape" in err)
    assert max(map(len, out.splitlines())) < 900
    assert all(line.isprintable() for line in (out + err).splitlines())


def test_ranges():
    """Catches a missing layer that a range passes over."""
    assert ranges([]) == "" and ranges([4]) == "4"
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"


# Positions and tokenizers


def test_positions_in_words(tmp_path):
    """Catches another family's positions, and a scaling that is not told."""

    def words(family, **facts):
        save(tiny_model(family, **facts), tmp_path)
        return look(tmp_path, torch.float32)["positions"]["words"]

    llama3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
    pairs = (("rope_type", "llama3"), *llama3.items(), ("original_max_position_embeddings", 64))
    assert words("llama", rope_theta=500000.0, rope_scaling=pairs) == (
        "rotary in halves, rotary_dim 8, theta 500,000, llama3 scaling (factor 8, "
        "low_freq_factor 1, high_freq_factor 4, original_max_position_embeddings 64)"
    )
    assert words("gptj") == "rotary in pairs, rotary_dim 6, theta 10,000, no scaling"
    assert words("mpt", alibi_bias_max=16) == "ALiBi, bias_max 16"


def test_a_folder_needs_no_tokenizer(folder, capsys):
    """Catches a report that ends where the tokenizer is missing or damaged, or is silent."""
    code, out, _ = run(capsys, folder)
    assert code == 0 and line_of(out, "tokenizer").startswith("not loaded: ")
    (folder / "tokenizer.model").write_bytes(b"\x0a\x05nonsense")
    code, out, _ = run(capsys, folder)
    assert code == 0 and "tokenizer.model" in line_of(out, "tokenizer")
    shutil.copy(SHIPPED / "tokenizer.model", folder)
    code, out, _ = run(capsys, folder)
    words = line_of(out, "tokenizer")
    assert code == 0 and "2,048 ids, BOS 1, EOS 2" in words and "model's 31" in words
    assert line_of(run(capsys, SHIPPED)[1], "tokenizer").endswith("2,048 ids, BOS 1, EOS 2")


# Folders that load_model refuses

UP, DOWN = (f"model.layers.1.mlp.{part}_proj.weight" for part in ("up", "down"))


def tensors(change):
    """A damage to a folder's tensors."""
    return lambda folder: change_tensors(folder, change)


def keys(**changes):
    """A damage to a folder's config.json."""
    return lambda folder: change_config(folder, **changes)


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


HUGE = dict.fromkeys(
    "hidden_size num_attention_heads num_key_value_heads head_dim".split(), 2**20
)
HEAD = tensors(lambda t: t.update({"lm_head.weight": torch.zeros(30, 32)}))
DAMAGES = {  # what is done to a folder -> its parts, and which lines can be told nonetheless
    "missing": ([tensors(lambda t: t.pop(UP))], "family parameters stored tensors"),
    "surplus": (
        [tensors(lambda t: t.update({UP[:-6] + "bias": torch.zeros(48)}))],
        "family parameters stored tensors no-place",
    ),
    "misshapen": (
        [tensors(lambda t: t.update({DOWN: t[DOWN].T.contiguous()}))],
        "family parameters stored tensors",
    ),
    "quantised": (
        [tensors(lambda t: t.update({DOWN: t[DOWN].to(torch.int8)}))],
        "family parameters stored tensors I8",
    ),
    "fewer layers": ([keys(num_hidden_layers=1)], "family parameters stored tensors no-place"),
    "unknown key": ([keys(colour="red")], "stored tensors not-known"),
    "no model": ([keys(**dict.fromkeys(HUGE, 2**20))], "family stored tensors not-known"),
    "another tied head": (
        [keys(tie_word_embeddings=True), HEAD], "family parameters stored tensors",
    ),
    "cut short": ([cut_short], "family parameters tokenizer"),
    "no weights": (
        [lambda folder: (folder / "model.safetensors").unlink()], "family parameters tokenizer",
    ),
    "neither": ([cut_short, keys(colour="red")], "tokenizer"),
    "nothing": ([shutil.rmtree], ""),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_load_model_refuses(damage, folder, capsys):
    """Catches a folder that is said to be in order, and will not load; or the other way."""
    damages, told = DAMAGES[damage]
    for each in damages:
        each(folder)
    with pytest.raises(ValueError) as refused:
        load_model(folder)
    sentence = " ".join(str(refused.value).split())
    code, out, err = run(capsys, folder)
    assert (code, err) == (1, f"error: {sentence}\n")
    for words in told.split():
        assert re.search(rf"\b{words.replace('-', ' ')}\b", out), words
    assert ("family" in out) == ("family" in told)
    code, out, err = run(capsys, folder, "--json")
    assert (code, err) == (1, f"error: {sentence}\n")
    assert json.loads(out)["refused"] == sentence


def test_a_missing_layer_is_seen(folder, capsys):
    """Catches a fold that says 0-1 whatever is there."""
    change_tensors(folder, lambda t: t.pop(UP))
    rows = run(capsys, folder)[1].splitlines()
    assert [row.split()[1] for row in rows if "up_proj" in row] == ["0"]
    assert [row.split()[1] for row in rows if "down_proj" in row] == ["0-1"]


def test_a_stored_tied_head(tmp_path, capsys, monkeypatch):
    """Catches a refusal, or 200 MB of reading, where a tied head is stored as well."""
    save(tiny_model("mpt", dtype=torch.float32), tmp_path)
    name = "transformer.wte.weight"
    change_tensors(tmp_path, lambda t: t.update({"lm_head.weight": t[name].clone()}))
    no_weights(monkeypatch)
    code, out, err = run(capsys, tmp_path)
    assert (code, err) == (0, "")
    assert "embed.weight, compared on loading" in out
    assert "the head being the embedding" in line_of(out, "parameters")


@pytest.mark.parametrize(
    "flags",
    [
        [], ["--device", "cpu"], ["--threads", "2"], ["--dtype", "int8"], ["--threads", "0"],
        ["other"], ["--colour"],
    ],
)  # fmt: skip
def test_bad_flags(flags, folder, capsys):
    """Catches a flag without effect, and a usage error that looks like a failed run."""
    arguments = [folder, *flags] if flags else []
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == "" and "usage:" in err


def test_json_is_the_whole_report(sparse_7b, capsys):
    """Catches an object that lacks what the text shows, or that is not the only output."""
    code, out, err = run(capsys, sparse_7b, "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "") and facts["refused"] is None
    assert facts["sizes"] == {
        "n_layer": 32, "n_embd": 4096, "n_head": 32, "n_kv_head": 32, "head_dim": 128,
        "n_inner": 11008, "vocab_size": 32000, "context_length": 2048,
    }  # fmt: skip
    assert facts["stored"]["bytes"] == 13_476_831_232 and facts["stored"]["ignored"] == 32
    assert facts["positions"]["layout"] == "halves" and facts["positions"]["theta"] == 10000
    assert len(facts["tensors"]) == 323
    assert "problem" in facts["tokenizer"] and facts["family"] == "llama"


# The probe


@pytest.fixture(scope="module")
def readings():
    """The probe of weights/tiny-llama: what was read -> its nll, the layout as read first."""
    model, tokenizer = load(SHIPPED)
    scheme, calls = model.scheme, []
    hook = model.embed.register_forward_hook(lambda _, given, out: calls.append(given[0]))
    found = probe.probe(model, tokenizer)
    hook.remove()
    assert model.scheme is scheme
    return found, calls


def test_the_shipped_model_is_read_as_it_was_meant(readings):
    """Catches positions or a BOS that differ from those of the training, and a blunt probe."""
    as_read, *others = readings[0]
    assert as_read.what.startswith("as read: rotary in halves") and "with BOS" in as_read.what
    assert [other.what for other in others] == [
        "rotary in pairs", "theta 500,000", "theta 1,000,000", "without BOS",
    ]  # fmt: skip
    assert all(other.nll > as_read.nll + probe.MARGIN for other in others)
    assert others[0].nll > as_read.nll + 3
    assert probe.suspicion(readings[0]) is None


def test_every_reading_scores_the_same_tokens_within_the_context(readings):
    """Catches a text longer than the trained length, and means over different tokens."""
    lengths = [given.shape[1] for given in readings[1]]
    assert lengths == [255, 255, 255, 255, 254]  # the last token is scored, not read
    model, tokenizer = load(SHIPPED)
    ids = tokenizer.encode(probe.TEXT)[:256]
    logits = model(torch.tensor([ids[:-1]]), path="reference")[0].log_softmax(-1)
    nll = -logits.gather(1, torch.tensor(ids[1:])[:, None])[1:].mean()
    assert readings[0][0].nll == pytest.approx(float(nll), abs=1e-4)
    assert 200 <= len(probe.TEXT.split()) <= 250


def interleave(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of halves, (H * D, E), in the order of pairs: m and m + D/2 become 2m and 2m + 1."""
    heads = weight.unflatten(0, (-1, 2, head_dim // 2))
    return heads.transpose(1, 2).flatten(0, 2).contiguous()


def permuted(tmp_path) -> Path:
    """weights/tiny-llama with the rows of q and k as GPT-J and Meta's own files have them."""
    folder = tmp_path / "permuted"
    shutil.copytree(SHIPPED, folder)

    def permute(tensors):
        for name in tensors:
            if re.search("[qk]_proj", name):
                tensors[name] = interleave(tensors[name], 32)

    change_tensors(folder, permute)
    return folder


def test_permuted_weights_are_noticed(tmp_path, capsys, readings):
    """Catches the commonest mistake of a conversion, which loads without a word."""
    code, out, err = run(capsys, permuted(tmp_path), "--probe", "--device", "cpu")
    assert code == 0
    warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and "rotary in pairs scores" in warnings[0]
    assert "permute" in warnings[0]
    best = readings[0][0].nll
    row = next(line for line in out.splitlines() if line.startswith("  rotary in pairs"))
    assert float(row.split()[3]) == pytest.approx(best, abs=0.006)
    assert float(row.split()[4]) < -3


def test_the_probe_as_json(capsys, readings):
    """Catches a table printed into the JSON, and a warning about a folder that is in order."""
    code, out, err = run(capsys, SHIPPED, "--probe", "--json", "--device", "cpu")
    found = json.loads(out)["probe"]
    assert code == 0 and "warning" not in err and found["warning"] is None
    expected = {reading.what: pytest.approx(reading.nll, abs=1e-4) for reading in readings[0]}
    assert {row["reading"]: row["nll"] for row in found["readings"]} == expected


def test_the_mistakes_of_each_family():
    """Catches a mistake that equals the layout as read, or that a family is not asked about."""

    def asked(family, **facts):
        model = tiny_model(family, **facts)
        return {what: scheme for what, scheme, _ in probe.mistakes(model.config, model.scheme)}

    scaled = asked(
        "llama", rope_theta=500000.0, rope_scaling=(("rope_type", "linear"), ("factor", 4.0))
    )
    assert list(scaled) == ["rotary in pairs", "theta 10,000", "no rope scaling"]
    plain = Rotary(8, 500000.0)
    assert torch.equal(scaled["no rope scaling"].frequencies, plain.frequencies)
    assert torch.equal(scaled["rotary in pairs"].frequencies, plain.frequencies / 4)
    assert scaled["rotary in pairs"].layout == "pairs"
    assert torch.equal(scaled["theta 10,000"].frequencies, Rotary(8).frequencies / 4)

    partial = asked("gptj")
    assert list(partial) == [
        "rotary in halves", "theta 500,000", "theta 1,000,000", "rotary on the whole head of 8",
    ]  # fmt: skip
    assert [scheme.rotary_dim for scheme in partial.values()] == [6, 6, 6, 8]
    assert [scheme.layout for scheme in partial.values()] == [
        "halves",
        "pairs",
        "pairs",
        "pairs",
    ]
    assert torch.equal(partial["theta 500,000"].frequencies, Rotary(6, 500000.0).frequencies)

    ((name, scheme),) = asked("mpt").items()
    assert name == "alibi_bias_max 16"
    assert torch.equal(scheme.slopes, Alibi(6, 16.0).slopes)
    assert list(asked("mpt", alibi_bias_max=16)) == ["alibi_bias_max 8"]
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


def test_the_scheme_is_put_back_after_an_error(shipped):
    """Catches a model that keeps a mistaken scheme when a probe is interrupted."""
    model, scheme = shipped[0], shipped[0].scheme
    with pytest.raises(ValueError):
        probe.nll_under(model, [1], Rotary(32, layout="pairs"))
    assert model.scheme is scheme


def test_suspicion():
    """Catches a warning about noise, about nothing, or about the wrong mistake."""
    as_read = probe.Reading("as read", 3.0)

    def warned(*nll):
        others = [probe.Reading(f"mistake {i}", x, "do so") for i, x in enumerate(nll)]
        return probe.suspicion([as_read, *others])

    assert warned() is None and warned(3.5, 3.0, 2.96, float("nan")) is None
    assert "mistake 2 scores 2.00" in warned(float("nan"), 2.9, 2.0, 2.5)
    assert warned(2.0).endswith(": do so")
    broken = [probe.Reading("as read", float("nan")), as_read]
    assert "float32" in probe.suspicion(broken)


def test_a_probe_that_cannot_be(folder, capsys, monkeypatch):
    """Catches a traceback, a report lost, or a machine that runs out of memory."""
    code, out, err = run(capsys, folder, "--probe", "--device", "cpu")
    assert code == 1 and "parameters" in out and "tokenizer" in err.splitlines()[-1]
    monkeypatch.setattr(folder_facts, "available_memory", lambda: 10**6)
    code, out, err = run(capsys, SHIPPED, "--probe", "--json", "--device", "cpu")
    assert code == 1 and json.loads(out)["parameters"] == 1_672_896
    assert "6.69 MB" in err and "1.00 MB" in err and "--dtype" in err and "loading" not in err
    short = tiny_model("llama", context_length=3)
    with pytest.raises(ValueError, match="too short"):
        probe.probe(short, None)


def test_what_stdout_cannot_encode_ends_no_report(folder, capsys):
    """Catches an error of the codec in the place of the report, for half a character that a
    config.json holds."""
    change_config(folder, vocab_size="\ud800")
    code, out, err = run(capsys, folder)
    assert code == 1 and "vocab_size" in out + err and "codec" not in err
