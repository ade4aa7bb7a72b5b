"""The rules of the house: what may import what, and what may stand where."""

import ast
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from minilm_inf import LMInfinite

PACKAGE = ROOT / "minilm_inf"
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").glob("*.py"))

READING_ORDER = [
    "terminal", "terminal.startup", "terminal.files", "terminal.json_parts", "config",
    "positions", "lambda_mask", "distance_ceiling", "top_k", "terminal.checks", "attention",
    "terminal.blocks", "fast", "fast.band", "fast.chunk", "fast.middle", "fast.triton_band",
    "fast.kernel", "fast.chunked",
    "fast.cache", "fast.reading", "transformer", "fast.compiled", "models.raw_config",
    "models.llama_config", "models.mpt_config", "models.gptj_config", "models.layers",
    "models.llama", "models.mpt", "models.gptj", "models.int8", "models", "checkpoint.shards",
    "checkpoint.run_state", "checkpoint.checkpoint", "checkpoint",
    "text", "text.around", "text.merges", "text.byte_level", "text.named_tokens",
    "text.sentence_pieces", "text.tokenizer_json", "text.byte_pairs", "text.tokenizer",
    "text.chat_template", "text.chat",
    "terminal.ending", "terminal.options", "terminal.progress", "terminal.tables",
    "conformance.questions", "conformance.asking", "conformance", "conformance.__main__",
    "writing", "writing.saved_cache", "writing.sampling", "writing.session", "writing.explain",
    "writing.plan", "writing.reply", "writing.conversation", "generate",
    "corpus", "train", "train.practice", "evaluate", "evaluate.intervals",
    "evaluate.compare", "evaluate.documents", "evaluate.qa_data", "evaluate.shares",
    "evaluate.resume", "evaluate.perplexity", "evaluate.streaming_llm", "evaluate.methods",
    "evaluate.trials", "evaluate.table", "evaluate.figure", "evaluate.retrieval",
    "evaluate.comparison", "evaluate.qa", "evaluate.ruler", "evaluate.__main__", "card",
    "diagnose", "diagnose.recorder", "diagnose.measure", "diagnose.factors", "diagnose.figures",
    "diagnose.schemes", "diagnose.__main__", "train.recipes", "train.__main__", "inspect",
    "inspect.probe", "inspect.folder_facts", "inspect.__main__",
    "convert", "convert.pickles", "convert.gguf_tokenizer", "convert.gguf_file",
    "convert.int8_folder", "convert.__main__", "benchmark", "benchmark.race",
    "benchmark.attention", "benchmark.models", "benchmark.__main__",
]  # fmt: skip
LOAD_STANDS_AFTER = "text.tokenizer"  # load, in __init__.py, joins checkpoint and tokenizer

DEPENDENCIES = {"torch", "safetensors", "sentencepiece", "tiktoken", "numpy"}
ASKED_FOR = {  # room -> imported where it is needed
    "convert.gguf_file": {"gguf"},
    "benchmark.models": {"transformers", "llama_cpp"},
    "evaluate.figure": {"matplotlib"},
    "fast.triton_band": {"triton"},
}

TOP_LEVEL = {
    "minilm_inf", "weights", "tests", "tutorials", ".ci", ".git", ".gitignore", "Makefile",
    "pyproject.toml", "requirements.txt", "README.md", "LICENSE",
}  # fmt: skip

ROOMS = {
    "__init__.py", "config.py", "positions.py", "lambda_mask.py", "distance_ceiling.py",
    "top_k.py", "attention.py", "conformance", "fast", "transformer.py", "models", "checkpoint",
    "text", "writing", "terminal", "generate.py", "corpus.py", "card.py", "evaluate",
    "diagnose", "train", "inspect", "convert", "benchmark",
}  # fmt: skip


def name_of(module) -> str:
    """A module as the reading order spells it, models.llama; "" for the package itself."""
    parts = module.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


NAMES = {name_of(module) for module in MODULES}


def imports(module) -> tuple[set[str], set[str]]:
    """What a module imports, also inside functions: our own rooms, and the roots of others."""
    rooms, others = set(), set()
    folder = ["minilm_inf", *module.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else []
            stem = base + [node.module] * bool(node.module)
            found = [".".join([*stem, alias.name]) for alias in node.names]
        else:
            continue
        for name in found:
            root, _, rest = name.partition(".")
            if root != "minilm_inf":
                others.add(root)
                continue
            while rest and rest not in NAMES:  # a name inside a room
                rest = rest.rpartition(".")[0]
            rooms.add(rest)
    return rooms, others


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_imports_point_upward(module):
    """Catches a room that needs a later one, so that nobody could read them in order."""
    room = name_of(module)
    if room == "":
        return  # the package itself gathers the public names of all rooms
    assert room in READING_ORDER, f"{room} has no place in the reading order"
    place = READING_ORDER.index(room)
    for needed in imports(module)[0]:
        assert READING_ORDER.index(needed or LOAD_STANDS_AFTER) < place, (
            f"{room} needs {needed}"
        )


def test_families_have_one_skeleton():
    """Catches a family of 90 lines or more, or laid out in a way of its own, so that a diff of
    two of them shows more than facts."""
    skeletons = set()
    for family in ("llama", "mpt", "gptj"):
        text = (PACKAGE / "models" / f"{family}.py").read_text(encoding="utf-8")
        assert text.count("\n") < 90, family
        body = [node for node in ast.parse(text).body if not isinstance(node, ast.ImportFrom)]
        skeletons.add(tuple(re.split(r"[ (:]", ast.unparse(node))[1] for node in body[1:]))
    assert skeletons == {("torch.nn.functional", "=", "MLP", "Block", "build")}


def test_this_file_sees_imports():
    """Catches a walk over imports that finds none, and would let every rule pass."""
    rooms, others = imports(PACKAGE / "transformer.py")
    assert {"attention", "fast.cache", "fast.chunked", "config"} <= rooms and "torch" in others
    assert {"positions", "transformer"} <= imports(PACKAGE / "models" / "llama.py")[0]
    assert {"attention", "fast.chunked"} <= imports(PACKAGE / "__init__.py")[0]


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_few_dependencies(module):
    """Catches a runtime that needs transformers, or anything beyond requirements.txt."""
    asked_for = ASKED_FOR.get(name_of(module), set())
    assert imports(module)[1] <= DEPENDENCIES | asked_for | set(sys.stdlib_module_names)
    for name in asked_for - {"triton"}:  # never at the top of the file
        assert not re.search(rf"^(import|from) {name}\b", module.read_text(), re.MULTILINE)


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_every_module_says_what_it_is(module):
    """Catches a room without a sign on its door; an empty file is a wall, not a room."""
    text = module.read_text(encoding="utf-8")
    assert not text or ast.get_docstring(ast.parse(text))


def ignored() -> set[str]:
    """The names that .gitignore keeps out of the repository's top level."""
    lines = (ROOT / ".gitignore").read_text().split()
    return {line.strip("/") for line in lines}


def text_files():
    """Every text of the repository; weights, figures and what git ignores are left out."""
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        kept = parts[0] in TOP_LEVEL - {".git"} and not ignored() & set(parts)
        kinds = {".py", ".md", ".json", ".txt", ".toml", ".yml", ".yaml", ".sh", ""}
        if kept and path.is_file() and path.suffix in kinds:
            yield path


def test_no_path_of_one_machine():
    """Catches a path that exists on the machine it was written on, and nowhere else."""
    roots = "home|root|Users|work|workspace|mnt|tmp|private|scratch"
    absolute = re.compile(rf"(?<![\w./~$}}>-])/(?:{roots})/[\w.-]+")
    assert absolute.search('open("/' + 'home/somebody/x.py")'), (
        "the pattern finds what it should"
    )
    texts, found = 0, []
    for path in text_files():
        texts += 1
        for match in absolute.findall(path.read_text(encoding="utf-8", errors="ignore")):
            found.append(f"{path.relative_to(ROOT)}: {match}")
    assert texts > 20 and not found


def test_nothing_else_stands_at_the_top():
    """Catches scratch files, and a second place for what has one."""
    entries = {path.name for path in ROOT.iterdir()} - ignored()
    assert entries <= TOP_LEVEL


def test_a_room_for_each_purpose():
    """Catches a top of the package in which nobody finds the method any more."""
    rooms = (path for path in PACKAGE.iterdir() if path.is_file() or any(path.glob("*.py")))
    assert {path.name for path in rooms} - ignored() == ROOMS and len(ROOMS) <= 24


def test_the_house_does_not_grow():
    """Catches a feature that brings more lines than it takes away. What is for those who write
    kernels is counted apart: the conformance suite, and the kernel for a GPU. Beyond the first
    limits: saved contexts, 111 lines of package and 188 of tests; the compiled step for any
    number of columns, its CUDA graph, and llama.cpp in the benchmark, 70 and 60; questions
    about texts, 318 and 216; int8 weights, 245 and 170; one text for many processes, 181 and
    210; RULER's tasks, 188 and 108; xPos and other positions of experiments, 101 and 127; what
    n_global and n_local buy, 0 and 40."""
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in (*MODULES, *TESTS)}
    of_kernels = {PACKAGE / "fast" / "kernel.py", PACKAGE / "fast" / "triton_band.py"}
    of_kernels |= {path for path in MODULES if path.parent.name == "conformance"}
    of_kernels |= {path for path in TESTS if path.stem in ("test_conformance", "check_kernel")}
    package = sum(lines[path] for path in MODULES if path not in of_kernels)
    tests = sum(lines[path] for path in TESTS if path not in of_kernels)
    assert package <= 11_241 + 111 + 70 + 318 + 245 + 181 + 188 + 101, package
    assert tests <= 11_973 + 188 + 60 + 216 + 170 + 210 + 108 + 127 + 40 + 58, tests
    assert sum(lines[path] for path in of_kernels) <= 1000


def test_the_smallest_import_pulls_in_no_tools():
    """Catches a comparison or a plot, needed by tests and lessons alone, in everybody's way."""
    program = (
        "import sys, torch, minilm_inf as m\n"
        "x, n = torch.randn(3, 1, 2, 20, 8), torch.arange(20)\n"
        "lm = m.LMInfinite(4, 2, 4)\n"
        "a, b = (f(*x, n, n, m.Rotary(8), lm) for f in (m.attend, m.chunked_attend))\n"
        "assert (a - b).abs().max() < 1e-5\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    loaded = set(run.stdout.split())
    assert "minilm_inf" in loaded and "torch" in loaded
    assert not loaded & {"transformers", "matplotlib", "pytest", "tokenizers", "triton"}


def test_the_way_to_the_logits_is_short(shipped):
    """Catches a core that grows: whoever follows a prompt of 1,000 tokens and one decode step
    opens at most 9 rooms of 1,500 lines, and the fast path is 900 lines in all."""
    model, entered = shipped[0], set()
    lm = LMInfinite.for_model(model.config)
    tokens, cache = torch.ones(1, 1001, dtype=torch.long), model.new_cache(1, lm)

    def note(frame, event, argument):
        entered.add(frame.f_code.co_filename)

    sys.settrace(note)
    try:
        model.prefill(tokens[:, :1000], lm, cache, 512)
        model(tokens[:, 1000:], lm, cache)
    finally:
        sys.settrace(None)
    rooms = {module: module.read_text().count("\n") for module in MODULES}
    opened = [rooms[module] for module in MODULES if str(module) in entered]
    assert len(opened) <= 9 and sum(opened) <= 1500, (len(opened), sum(opened))
    fast = [n for room, n in rooms.items() if room.parent.name == "fast"]
    others = ("compiled.py", "kernel.py", "triton_band.py")  # for a GPU, and what is compiled
    assert sum(fast) - sum(rooms[PACKAGE / "fast" / name] for name in others) <= 900
    assert rooms[PACKAGE / "fast" / "triton_band.py"] <= 150
    assert rooms[PACKAGE / "transformer.py"] <= 150
