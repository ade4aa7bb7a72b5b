"""The whole idea in one file computes what the package does, on its own."""

import ast
import importlib.util
import json
import re
import sys

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file

from minilm_inf import LMInfinite, generate, load

PATH = ROOT / "tutorials" / "lm_infinite_in_one_file.py"
FOLDERS = [ROOT / "weights" / name for name in ("tiny-llama", "nano-llama")]
TEXT = (ROOT / "tutorials" / "text.txt").read_text(encoding="utf-8")[:1800]
spec = importlib.util.spec_from_file_location(PATH.stem, PATH)
one = importlib.util.module_from_spec(spec)
spec.loader.exec_module(one)


def read(model, ids, cache, size=256) -> torch.Tensor:
    """The one file's logits (T, V) of a text that is read in chunks."""
    return torch.cat([model.read(chunk, cache) for chunk in torch.tensor(ids).split(size)])


def both(folder):
    """A folder's model in one file, in the package, and the ids of a text beyond L + G."""
    model, tokenizer = load(folder)
    ids = tokenizer.encode(TEXT)
    assert len(ids) > 2 * model.config.context_length + 10
    return one.Llama(folder), model, ids


@pytest.mark.parametrize("path", ["chunked", "reference"])
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
@torch.inference_mode()
def test_its_logits_are_the_package_s(folder, path):
    """Catches any step of the one file, from mask to head, that is not the package's; a ceiling
    that is one off fails, from the first row that reaches it on."""
    plain, model, ids = both(folder)
    expected = model(torch.tensor([ids]), LMInfinite.for_model(model.config, 10), path=path)[0]
    torch.testing.assert_close(
        read(plain, ids, one.Cache(plain)), expected, atol=1e-4, rtol=1e-5
    )
    for wrong in (-1, 1):
        cache = one.Cache(plain)
        cache.ceiling += wrong
        off = (read(plain, ids, cache) - expected).abs().amax(-1)
        assert off[256:].min() > 1e-3 and off[:256].max() < 1e-4  # row L reaches key 0 at C


@pytest.mark.parametrize("n_local, n_global, size", [(16, 3, 16), (16, 3, 5), (7, 12, 7),
                                                     (7, 0, 3), (1, 1, 1)])  # fmt: skip
@torch.inference_mode()
def test_every_window_and_chunk(n_local, n_global, size):
    """Catches a ring that overwrites what a chunk still sees, starting tokens that are lost
    between chunks, and a cache that grows."""
    plain, model, ids = both(FOLDERS[1])
    ids, lm = ids[:60], LMInfinite(n_local, n_global, n_local)
    expected = model(torch.tensor([ids]), lm, path="reference")[0]
    cache = one.Cache(plain, n_local, n_global)
    before = sum(x.nbytes for x in vars(cache).values() if isinstance(x, torch.Tensor))
    torch.testing.assert_close(read(plain, ids, cache, size), expected, atol=1e-4, rtol=1e-5)
    after = sum(x.nbytes for x in vars(cache).values() if isinstance(x, torch.Tensor))
    assert after == before == 3 * 2 * 32 * (n_local + n_global) * 4 + n_local * 8


def test_far_positions_are_as_exact():
    """Catches float32 angles: they are off by radians at a position such as this one."""
    plain = one.Llama(FOLDERS[1])
    near, far = (one.Cache(plain, 16, 0) for _ in range(2))
    far.length = 200_000_000
    got, expected = (read(plain, list(range(40)), cache, 8) for cache in (far, near))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)


def test_the_mask_is_the_one_drawn():
    """Catches a drawing that shows another mask than the code computes."""
    rows = re.findall(r"^ {8}((?:[#C.] ){7}[#.])", one.lambda_mask.__doc__, re.MULTILINE)
    rows = [row.split() for row in rows]
    mask = one.lambda_mask(torch.arange(8), torch.arange(8), 3, 2).tolist()
    drawn = [[cell == "#" for cell in row] + [cell == "C" for cell in row[:2]] for row in rows]
    assert drawn == mask


def test_it_writes_what_generate_writes(tmp_path, python):
    """Catches text other than that of `python -m minilm_inf.generate -t 0`, on a prompt beyond
    the trained length, and a file that runs in one place only."""
    ran = python([PATH, FOLDERS[1], TEXT], tmp_path)
    model, tokenizer = load(FOLDERS[1])
    lm = LMInfinite.for_model(model.config, 10)
    stream = tokenizer.stream(begun=True)
    ids = generate(model, tokenizer.encode(TEXT), lm, one.NEW_TOKENS, temperature=0)
    expected = "".join([stream.push(id) for id in ids]) + stream.flush()
    assert ran.returncode == 0 and ran.stderr == "" and len(expected) > 1000
    assert ran.stdout == expected + "\n"


def test_characters_wait_for_their_bytes():
    """Catches a character that is shown as its bytes, and a space that is lost."""
    file = str(FOLDERS[0] / "tokenizer.model")
    tokenizer = one.sentencepiece.SentencePieceProcessor(model_file=file)
    text = "a sea of 5 € and 日本, and"
    pieces = list(one.characters([1, *tokenizer.EncodeAsIds(text), 2], tokenizer))
    assert "".join(pieces) == " " + text and {"€", "日", "本"} <= set(pieces)


def copy_of(folder, target, **changed):
    """A folder in two shards, with other values in its config.json."""
    config = json.loads((folder / "config.json").read_text()) | changed
    (target / "config.json").write_text(json.dumps(config))
    names = list(enumerate(weights := load_file(folder / "model.safetensors")))
    where = {name: f"model-{1 + number % 2}.safetensors" for number, name in names}
    for shard in set(where.values()):
        own = {name: weights[name] for name in weights if where[name] == shard}
        save_file(own, target / shard)
    index = {"weight_map": where}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    return target


def test_shards_and_newer_configs_are_read(tmp_path):
    """Catches shards that are left out, and a theta that is looked for in one place only."""
    rope = {"rope_type": "default", "rope_theta": 500.0}
    newer = one.Llama(copy_of(FOLDERS[1], tmp_path, rope_parameters=rope))
    older = one.Llama(FOLDERS[1])
    older.theta = 500.0
    ids = list(range(30))
    got, expected = (read(model, ids, one.Cache(model)) for model in (newer, older))
    assert torch.equal(got, expected)


REFUSED = {
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "rope_parameters": {"rope_type": "llama3", "factor": 8.0},
    "attention_bias": True,
    "mlp_bias": True,
    "model_type": "mpt",
    "tie_word_embeddings": False,  # without a head
}


@pytest.mark.parametrize("key", [*REFUSED, None])
def test_what_it_does_not_support_ends_in_one_sentence(key, tmp_path, monkeypatch, capsys):
    """Catches a model that is computed wrongly, in silence, and a traceback."""
    target = copy_of(FOLDERS[1], tmp_path, **({key: REFUSED[key]} if key else {}))
    (target / "tokenizer.model").write_bytes((FOLDERS[1] / "tokenizer.model").read_bytes())
    monkeypatch.setattr(one, "NEW_TOKENS", 3)
    monkeypatch.setattr(sys, "argv", [PATH.name, str(target), "It was"])
    if key is None:  # and the folder is read, where nothing is wrong with it
        one.main()
        assert capsys.readouterr().out.strip()
        return
    with pytest.raises(SystemExit) as raised:
        one.main()
    word = {"rope_parameters": "rope_type", "tie_word_embeddings": "lm_head"}.get(key, key)
    assert word in raised.value.code and "\n" not in raised.value.code


def test_it_stands_alone_and_is_short():
    """Catches an import of the package, and a file that is no longer read in one go."""
    source = PATH.read_text(encoding="utf-8")
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module)
    roots = {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names)
    assert roots == {"torch", "safetensors", "sentencepiece"}
    assert len(source.splitlines()) <= 200
