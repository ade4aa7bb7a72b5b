"""What LM-Infinite costs on a GPU: `make gpu` measures it, and writes weights/gpu.json and the
table of README.

First whether the numbers are right, the tests of tests/test_cuda.py and the conformance suite;
then attention alone, reading and decoding, in bfloat16 and in float32. A Llama-2-7B has its
shape here and random weights, since times do not depend on them. Where there is no GPU the same
is done on the CPU in small shapes, and nothing is written: a rehearsal.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from minilm_inf import load_model
from minilm_inf.benchmark.__main__ import FULL, QUICK, device_name
from minilm_inf.benchmark.attention import attention_rows
from minilm_inf.benchmark.models import Ours, decoding_rows, prefill, random_ids
from minilm_inf.benchmark.race import Row, race
from minilm_inf.config import LMInfinite
from minilm_inf.models.llama import build
from minilm_inf.models.llama_config import LlamaConfig
from minilm_inf.terminal.files import write_beside
from minilm_inf.terminal.tables import as_json, markdown

ROOT = Path(__file__).resolve().parents[2]
MARKS = "<!-- make gpu -->\n", "<!-- end of make gpu -->\n"
SEVEN_B = dict(vocab_size=32_000, n_layer=32, n_head=32, n_kv_head=32, n_embd=4096,
               head_dim=128, n_inner=11_008, context_length=4096)  # fmt: skip
SMALL = dict(vocab_size=320, n_layer=2, n_head=4, n_kv_head=4, n_embd=64, head_dim=16,
             n_inner=96, context_length=64)  # fmt: skip
report = partial(print, file=sys.stderr, flush=True)


def are_right(device: str) -> bool:
    """Whether the tests of the GPU's paths pass, and the kernel answers as the definition."""
    tests = [[sys.executable, "-m", "pytest", "-q", "tests/test_cuda.py"]]
    if device == "cuda":
        kernel = [sys.executable, "-m", "minilm_inf.conformance", "--device", device]
        kernel.append("minilm_inf.fast.kernel:kernel_attend")
        tests += [[*kernel, "--dtype", dtype] for dtype in ("float32", "bfloat16", "float16")]
    return all([subprocess.run(test, cwd=ROOT).returncode == 0 for test in tests])


def seven_b(facts: dict, device: str, dtype: torch.dtype) -> torch.nn.Module:
    """A Llama of these sizes with random numbers."""
    config = LlamaConfig("llama", norm_eps=1e-5, tied=False, **facts)
    with torch.device("meta"):
        model = build(config)
    model = model.to(dtype).to_empty(device=device).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model


def large_rows(model, n: int, steps: int) -> list[Row]:
    """Reading n tokens, vanilla and not; and decoding after them, beside the time that reading
    the weights once takes, which is the least that a token can take."""
    device, lm = model.embed.weight.device, LMInfinite.for_model(model.config)
    ids, weights = random_ids(model, n), list(model.parameters())

    def read_weights():
        return lambda: torch.stack([weight.sum() for weight in weights])

    reading = [(Row(f"7B prefill: {name}", n, n), partial(prefill, model, ids, setting))
               for name, setting in (("vanilla", None), ("LM-Infinite", lm))]  # fmt: skip
    ours, is_gpu = partial(Ours, model, ids, steps), device.type == "cuda"
    decoding = [
        (Row("7B: the weights read once", n, 1), read_weights),
        (Row("7B decoding: LM-Infinite", n, steps, steps=steps), ours),
        (Row("7B decoding: LM-Infinite, compiled", n, steps, steps=steps),
         partial(ours, compile=is_gpu)),
    ]  # fmt: skip
    return [*race(reading, 5, device), *race(decoding, 5, device)]


def measured(device: str) -> dict[str, list[Row]]:
    """dtype -> rows."""
    is_gpu, found = device == "cuda", {}
    sizes = FULL if is_gpu else replace(QUICK, lengths=(256,), n_local=64, tokens=(300,))
    sizes = sizes if is_gpu else replace(sizes, contexts=(64,), positions=(90, 900), steps=2)
    for dtype in (torch.bfloat16, torch.float32):
        rows = attention_rows(sizes, torch.device(device), dtype)
        with torch.no_grad():
            tiny = load_model(ROOT / "weights" / "tiny-llama", device, dtype)
            rows += decoding_rows(tiny, ROOT / "weights" / "tiny-llama", sizes)
            if is_gpu and dtype == torch.float32:  # 27 GB, and no faster
                found["float32"] = rows
                continue
            model = seven_b(SEVEN_B if is_gpu else SMALL, device, dtype)
            rows += large_rows(model, 16_384 if is_gpu else 200, sizes.steps)
        found[str(dtype).removeprefix("torch.")] = rows
    return found


def table(found: dict[str, list[Row]]) -> str:
    lines = []
    for dtype, rows in found.items():
        for row in rows:
            if not row.seconds:
                lines.append([f"{row.name}: {row.note}", dtype, f"{row.n:,}", "-", "-", "-"])
                continue
            rate = (
                f"{row.rate / 1e12:.1f} TFLOP/s" if row.unit == "FLOP" else f"{row.rate:,.0f}/s"
            )
            base, one = row.base, row.median / row.steps
            ratio = f"{one / base.median * base.steps:.2f}" if base.seconds else "-"
            time = f"{one * 1e3:.2f} ms"
            lines.append([row.name, dtype, f"{row.n:,}", time, rate, ratio])
    return markdown(["", "dtype", "n", "time", "rate", "time / base"], lines)


def main() -> int:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        report("there is no GPU here: a rehearsal in small shapes, and nothing is written")
    if not are_right(device):
        return 1
    found = measured(device)
    text = (
        f"{device_name(torch.device(device))}, PyTorch {torch.__version__}:\n\n{table(found)}\n"
    )
    print(text)
    if device == "cuda":
        rows = {dtype: [{**vars(row), "base": row.base and row.base.name} for row in rows]
                for dtype, rows in found.items()}  # fmt: skip
        facts = {"device": device_name(torch.device(device)), "torch": torch.__version__}
        write_beside(ROOT / "weights" / "gpu.json", (as_json(facts | rows) + "\n").encode())
        readme = ROOT / "README.md"
        before, _, rest = readme.read_text(encoding="utf-8").partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        write_beside(readme, (before + MARKS[0] + text + MARKS[1] + after).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
