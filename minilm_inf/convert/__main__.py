"""Turn weights in another format into a folder that loads here.

    python -m minilm_inf.convert FOLDER        pytorch_model.bin -> model.safetensors, beside it
    python -m minilm_inf.convert MODEL.gguf    a Llama of llama.cpp -> the folder MODEL, float16
    python -m minilm_inf.convert --int8 FOLDER --out FOLDER2    safetensors -> int8 weights

Names, dtypes and numbers of a .bin stay as they are, and only the tensors of a pickle are read.
No file is overwritten, and none appears before it is whole: an interrupted run can be started
again, and continues with the next file.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from pathlib import Path

from ..checkpoint import shards
from ..terminal.ending import guarded
from ..terminal.files import named, reason, write_beside
from ..terminal.options import Parser
from ..terminal.progress import Progress
from . import pickles
from .gguf_file import GGUF
from .int8_folder import Int8

PYTORCH = {"format": "pt"}  # transformers reads no file that does not say so


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m minilm_inf.convert", description=__doc__)
    parser.add_argument("source", type=Path, metavar="FOLDER|MODEL.gguf",
                        help="with pytorch_model.bin, or its shards; or a GGUF")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FOLDER",
                        help="for a GGUF (default: beside it), or --int8")  # fmt: skip
    parser.add_argument("--int8", action="store_true", help="round a folder's weights to eight "
                        "bits, as --dtype int8 does on loading")  # fmt: skip
    options = parser.parse_args(arguments)
    source = folder = options.source
    if options.int8:
        folder = options.out or parser.error("--int8 needs --out, the folder to be written")
    elif source.suffix == ".gguf" and not source.is_dir():
        folder = options.out or source.with_suffix("")
    elif options.out is not None:
        parser.error("--out has no meaning for a folder: its files are written beside the .bin")
    return guarded(lambda: convert(source, folder, Int8 if options.int8 else GGUF))


def convert(source: Path, folder: Path, kind) -> int:
    """Let the folder hold safetensors, if it does not yet, and print what it holds then. kind:
    makes the content of another folder than the source, a GGUF or an Int8."""
    for name in (shards.WEIGHTS, shards.INDEX):
        if (folder / name).exists():
            print(f"{folder} holds {name} already: nothing was converted")
            return 0
    if source is folder:
        convert_folder(folder)
    else:
        convert_into(source, folder, kind)
    tensors = shards.find_tensors(folder).values()
    size, n = sum(x.nbytes for x in tensors), len({x.path for x in tensors})
    print(f"{folder} holds {len(tensors)} tensors in {n} file{'s' * (n > 1)}, "
          f"{size / 1e9:.2f} GB")  # fmt: skip
    return 0


def convert_folder(folder: Path):
    """Write a folder's .bin files as safetensors; the index, or the only file, comes last."""
    if not folder.is_dir():
        raise ValueError(
            f"{named(folder)} is neither a folder with a .bin nor a file that ends in .gguf"
        )
    sources, held = pickles.find_pickles(folder), {}
    in_shards = sources != [folder / pickles.WEIGHTS]
    for number, source in enumerate(sources, 1):
        name = f"model-{number:05}-of-{len(sources):05}.safetensors"
        target = folder / (name if in_shards else shards.WEIGHTS)
        there = target.exists()  # of an interrupted run
        words = f"{source.name} -> {target.name}" + ", there already" * there
        print(words, file=sys.stderr, flush=True)
        if not there:
            shards.write_tensors(target, pickles.read_pickle(source), PYTORCH)
        held |= shards.read_header(target)
    if in_shards:
        index = {
            "metadata": {"total_size": sum(stored.nbytes for stored in held.values())},
            "weight_map": {name: stored.path.name for name, stored in sorted(held.items())},
        }
        write_beside(folder / shards.INDEX, (json.dumps(index, indent=2) + "\n").encode())


def convert_into(source: Path, folder: Path, kind):
    """Write a folder, which appears when it is whole."""
    if folder.exists():
        raise ValueError(f"{named(folder)} is there already: name another folder with --out")
    model, part = kind(source), folder.with_name(f".{folder.name}.converted")
    print(f"{source.name} -> {folder}", file=sys.stderr, flush=True)
    progress, done = Progress(len(model.shapes), unit="tensors"), itertools.count()

    def blocks(name: str):
        progress.show(next(done))
        yield from model.blocks(name)

    shutil.rmtree(part, ignore_errors=True)  # of a killed run
    try:
        part.mkdir(parents=True)
        for name, content in model.files.items():
            (part / name).write_bytes(content)
        shards.write_tensors(part / shards.WEIGHTS, model.shapes, PYTORCH, blocks)
        part.rename(folder)
    except OSError as error:
        raise ValueError(f"{named(folder)} cannot be written: {reason(error)}") from error
    finally:
        progress.end()
        shutil.rmtree(part, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
