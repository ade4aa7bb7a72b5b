"""LM-Infinite (NAACL 2024, arXiv 2308.16137) from scratch: to read, to test against, to run.

There are two ways to read it. The method: config, positions, lambda_mask, distance_ceiling,
top_k, attention (the definition), transformer, and one family of models/ (llama, mpt or gptj,
each with the reading of its config.json beside it, on raw_config and layers). Then the same
numbers in O(n), which is fast/: band, chunk, chunked; cache and reading, for texts that go on;
middle, for top_k; and kernel, for a GPU. conformance/ holds any kernel to the definition.

The rest, in reading order: checkpoint/ (a folder becomes a model), text/ (text becomes
ids, and a chat a text), writing/ (sampling, session, explain, plan, reply, conversation) and
generate; then corpus (what weights/ learned from), evaluate/ (perplexity, retrieval from
long texts, comparison of methods side by side) and card, which is what is measured; diagnose/
(why a plain model fails), train/ (how weights/ were made), inspect/ and convert/ (for folders
from elsewhere), and benchmark/ (what it all costs). A folder with a __main__.py is a program,
and holds what only it needs. terminal/ is what programs share: flags, progress, files, checks,
their end, and startup, which runs before any of this is imported.
"""

import warnings

from .terminal import startup

if startup.is_program():
    startup.begin()

# `python -m minilm_inf.generate` runs a module that is imported already; that is intended.
warnings.filterwarnings("ignore", message="'minilm_inf.generate' found in sys.modules")

from . import generate as _program  # noqa: E402, F401  (before the function of the same name)
from .attention import attend  # noqa: E402
from .checkpoint import load_model  # noqa: E402
from .config import LMInfinite, ModelConfig  # noqa: E402
from .fast.chunked import chunked_attend  # noqa: E402
from .positions import Alibi, Rotary  # noqa: E402
from .text.tokenizer import check_fits  # noqa: E402
from .text.tokenizer import load as load_tokenizer  # noqa: E402
from .writing.session import generate  # noqa: E402

__all__ = [
    "Alibi", "LMInfinite", "ModelConfig", "Rotary", "attend", "chunked_attend", "generate",
    "load", "load_model", "load_tokenizer",
]  # fmt: skip


def load(folder, device="cpu", dtype=None):
    """The model and the tokenizer of a checkpoint's folder; load_model and load_tokenizer in
    one.

    dtype None: as stored, but float32 on the CPU. Raises ValueError, in one sentence, for
    whatever is missing or does not fit.
    """
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, device, dtype)
    check_fits(tokenizer, model.config.vocab_size, folder)
    return model, tokenizer
