"""Make a folder that loads here of weights that come in another format.

    python -m minilm_inf.convert FOLDER        pytorch_model.bin -> model.safetensors, beside it
    python -m minilm_inf.convert MODEL.gguf    a Llama of llama.cpp -> the folder MODEL, float16

Names, dtypes and numbers of a .bin stay as they are, and of a pickle only the tensors are read.
No file is overwritten, and none is there before it is whole: what was interrupted can be run
again, and goes on with the next file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path

from ..checkpoint import shards
from ..checkpoint.checkpoint import FAMILIES, read_config
from ..checkpoint.tensor_file import new_file, pending, write_safetensors
from ..models import llama
from ..terminal.ending import guarded
from ..terminal.files import beside, named, reason
from ..terminal.options import Parser
from .gguf_file import GGUF
from .gguf_tokenizer import tokenizer_files
from .pickles import find_pickles, read_pickle, same_memory


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m minilm_inf.convert", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "source",
        type=Path,
        metavar="FOLDER|MODEL.gguf",
        help="a folder with pytorch_model.bin, whole or in shards; or a GGUF",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where a GGUF's model goes (beside it, under its name)",
    )
    options = parser.parse_args(arguments)
    is_gguf = options.source.suffix == ".gguf" and not options.source.is_dir()
    if options.out is not None and not is_gguf:
        parser.error("--out has no meaning for a folder: its files are written beside the .bin")
    if is_gguf:
        return guarded(lambda: convert_gguf(options.source, options.out))
    return guarded(lambda: convert_folder(options.source))


def convert_folder(folder: Path) -> int:
    """Write a folder's .bin files as safetensors; the index, or the only file, comes last."""
    if not folder.is_dir():
        raise ValueError(
            f"{named(folder)} is neither a folder with a .bin nor a file that ends in .gguf"
        )
    if finished(folder):
        return 0
    sources = find_pickles(folder)
    files = convert_pickles(folder, sources)
    if list(sources.values()) != [None]:
        write_index(folder, files)
    return tell(folder)


def convert_pickles(folder: Path, sources: dict[Path, set[str] | None]) -> dict[Path, dict]:
    """Each .bin as a safetensors file, with its header; what is there already is kept."""
    tied, files = tied_names(folder), {}
    for number, (source, promised) in enumerate(sources.items(), 1):
        name = f"model-{number:05}-of-{len(sources):05}.safetensors"
        target = folder / (shards.WEIGHTS if promised is None else name)
        if not target.exists():
            convert_pickle(source, target, promised, tied)
            files[target] = shards.read_header(target)
            continue
        files[target] = shards.read_header(target)
        if not files[target].keys() <= promised:
            raise ValueError(
                f"{target} holds other tensors than {source.name}: remove it, and convert again"
            )
        print(f"{target.name} is there already", file=sys.stderr)
    return files


def convert_pickle(source: Path, target: Path, promised: set[str] | None, tied: tuple | None):
    """Write the tensors of one .bin, but not a tied head that is the embedding's own memory.

    promised: the names that the index has for this file, None without one. tied: tied_names().
    Other tensors that share memory are each written in full, as the model has both.
    """
    tensors = read_pickle(source)
    if promised is not None and promised != tensors.keys():
        odd = sorted(promised ^ tensors.keys())[0]
        raise ValueError(
            f"{source.name} and its index disagree about the tensor {named(odd)}: fetch both "
            "again"
        )
    head, embedding = (tensors.get(name) for name in tied or (None, None))
    if head is not None and embedding is not None and same_memory(head, embedding):
        del tensors[tied[0]]
    write_safetensors(target, pending(tensors), Progress(f"{source.name} -> {target.name}"))


def tied_names(folder: Path) -> tuple[str, str] | None:
    """The names of a head and the embedding that it is; None where config.json does not say."""
    try:
        config = read_config(folder)
    except ValueError:
        return None  # whatever is wrong there is told when the folder is loaded
    keys = FAMILIES[config.family].KEYS
    if not config.tied or "head.weight" not in keys:
        return None
    return keys["head.weight"], keys["embed.weight"]


def write_index(folder: Path, files: dict[Path, dict]):
    """Write model.safetensors.index.json, which makes shards a checkpoint."""
    tensors = [(name, stored) for header in files.values() for name, stored in header.items()]
    index = {
        "metadata": {"total_size": sum(stored.nbytes for _, stored in tensors)},
        "weight_map": {name: stored.path.name for name, stored in sorted(tensors)},
    }
    with beside(folder / shards.INDEX, replace=False) as part:
        part.write_bytes((json.dumps(index, indent=2) + "\n").encode())


def convert_gguf(source: Path, out: Path | None) -> int:
    """Write the folder of a GGUF: config, tokenizer, and the weights in float16 last."""
    folder = source.with_suffix("") if out is None else out
    if folder.is_dir() and finished(folder):
        return 0
    model = GGUF(source)
    config = model.config()
    tensors = model.pending(config)
    files = tokenizer_files(source, model.fields, config.context_length)
    raw = {**llama.config_to_hf(config), "torch_dtype": "float16"}
    files["config.json"] = (json.dumps(raw, indent=2) + "\n").encode()
    progress = Progress(f"{source.name} -> {folder / shards.WEIGHTS}")
    with whole_folder(folder) as made:
        for name, content in files.items():
            path = folder / name
            if path.exists() and path.read_bytes() == content:
                continue  # of an earlier run
            with new_file(path) as file:
                file.write(content)
            made.append(path)
        write_safetensors(folder / shards.WEIGHTS, tensors, progress)
    return tell(folder)


@contextlib.contextmanager
def whole_folder(folder: Path):
    """A list: files of the folder named in it go again where the block fails.

    So does the folder, if it was made here. Raises ValueError where it cannot be made.
    """
    existed, made = folder.exists(), []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{named(folder)} cannot be made a folder: {reason(error)}") from error
    try:
        yield made
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        if not existed:
            with contextlib.suppress(OSError):  # somebody else put something there
                folder.rmdir()
        raise


def finished(folder: Path) -> bool:
    """Whether a folder has its safetensors; says so."""
    for name in (shards.WEIGHTS, shards.INDEX):
        if (folder / name).exists():
            print(f"{folder} holds {name} already: nothing was converted")
            return True
    return False


def tell(folder: Path) -> int:
    """Print what the folder holds now. Returns the exit code."""
    tensors = shards.find_tensors(folder).values()
    size = sum(stored.nbytes for stored in tensors)
    files = len({stored.path for stored in tensors})
    plural = "s" * (files > 1)
    print(f"{folder} holds {len(tensors)} tensors in {files} file{plural}, {size / 1e9:.2f} GB")
    return 0


class Progress:
    """A line on stderr: rewritten as it grows on a terminal, elsewhere written once."""

    def __init__(self, what: str):
        self.what, self.percent = what, -1

    def __call__(self, done: int, all: int):
        percent = 100 * done // max(all, 1)
        if percent == self.percent:
            return
        self.percent = percent
        line = f"{self.what}: {percent}% of {all / 1e9:.2f} GB"
        if sys.stderr.isatty():
            print(f"\r{line}", end="" if percent < 100 else "\n", file=sys.stderr, flush=True)
        elif percent == 100:
            print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
