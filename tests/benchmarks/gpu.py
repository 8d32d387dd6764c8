"""All there is to ask of a card, in one call: bytes equal to the CPU's, kernels against a copy, conversions.

Exits with 1 where any byte differs. Prints tables, and JSON with --json FILE. ``--device cpu`` runs it without a card:
no figure then means anything, but everything here is gone through.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from checkpoints import build
from rich.console import Console
from rich.table import Table

from converter_core import convert
from converter_core.api.quantizers import Quantizer
from converter_core.api.tensors import raw
from converter_plugins.quantizers.fp8 import Fp8
from converter_plugins.quantizers.int8 import Int8
from converter_plugins.quantizers.mxfp4 import Mxfp4
from converter_plugins.quantizers.nvfp4 import Nvfp4

SOURCE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
QUANTIZERS: tuple[Quantizer, ...] = (
    Int8(),
    Int8(per_channel=False),
    Int8(symmetric=False),
    Int8(symmetric=False, per_channel=False),
    Int8(scale_rule="mse"),
    Int8(symmetric=False, scale_rule="mse"),
    Int8(numerics="lightx2v"),
    Fp8(),
    Fp8(per_channel=False),
    Fp8(scale_rule="absmax"),
    Fp8(numerics="lightx2v"),
    Mxfp4(scale_rule="rceil"),
    Mxfp4(scale_rule="floor"),
    Mxfp4(scale_rule="mse"),
    Mxfp4(),
    Mxfp4(numerics="lightx2v"),
    Nvfp4(scale_rule="absmax"),
    Nvfp4(scale_rule="four_over_six"),
    Nvfp4(),
    Nvfp4(numerics="lightx2v"),
)
CONVERSIONS = ("int8", "fp8", "mxfp4", "nvfp4")


def samples(dtype: torch.dtype, rows: int) -> torch.Tensor:
    """Gaussian rows, of very different and of tiny size, zeros, ties on every grid, and outliers."""
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, 5120, generator=generator) * 0.02
    weight[1] *= torch.exp2(torch.randint(-24, 12, (5120,), generator=generator).float())
    weight[2] *= 1e-6
    weight[3] = 0
    weight[4, ::7] = -0.0
    weight[5] = (torch.arange(5120) % 25 - 12) / 4
    weight[6, 17] = 40.0
    return weight.to(dtype)


def quantized(quantizer: Quantizer, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(quantizer.quantize(weight, **quantizer.observe(weight)))


def differences(device: torch.device) -> list[str]:
    """Parts that the card makes otherwise than the CPU, of every scheme, rule and dtype."""
    found = []
    for dtype in SOURCE_DTYPES:
        weight = samples(dtype, 512)
        for quantizer in QUANTIZERS:
            expected = quantized(quantizer, weight)
            for role, part in quantized(quantizer, weight.to(device)).items():
                got, wanted = (bytes(raw(tensor.contiguous().cpu())) for tensor in (part, expected[role]))
                if got != wanted:
                    count = sum(a != b for a, b in zip(got, wanted, strict=True))
                    found.append(f"{quantizer}, {dtype}: {count} of {len(wanted)} bytes of {role}")
    return found


def seconds(device: torch.device, function: Callable[[], object], rounds: int) -> float:
    """Median of one call, after two that do not count."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    measured = []
    for _ in range(rounds + 2):
        wait()
        started = time.perf_counter()
        function()
        wait()
        measured.append(time.perf_counter() - started)
    return statistics.median(measured[2:])


def kernels(device: torch.device, rows: int, rounds: int) -> list[dict[str, Any]]:
    """Of a bf16 weight on the device: GB/s of source, and how many device copies of the same bytes it takes."""
    weight = samples(torch.bfloat16, rows).to(device)
    into = torch.empty_like(weight)
    copy = seconds(device, lambda: into.copy_(weight), rounds)
    nbytes = weight.numel() * weight.element_size()
    rows_of = [{"kernel": "copy", "gb_per_s": nbytes / copy / 1e9, "copies": 1.0}]
    for quantizer in QUANTIZERS:
        took = seconds(device, lambda quantizer=quantizer: quantized(quantizer, weight), rounds)
        rows_of.append({"kernel": str(quantizer), "gb_per_s": nbytes / took / 1e9, "copies": took / copy})
    return rows_of


def conversions(device: str, folder: Path, blocks: int) -> tuple[list[dict[str, Any]], list[str]]:
    """A checkpoint of so many blocks, on the card and on the CPU; and the schemes whose files differ."""
    source = folder / "source"
    build(source, blocks)
    rows, differing = [], []
    for scheme in CONVERSIONS:
        took = []
        outputs = [folder / f"{scheme}-{number}" for number in range(2)]
        for output, where in zip(outputs, (device, "cpu"), strict=True):
            recipe = {
                "source": {"path": str(source)},
                "quantization": {"method": scheme},
                "output": {"path": str(output), "name": "model"},
                "performance": {"device": where},
            }
            took.append(convert(recipe).seconds)
        if not filecmp.cmp(*(output / "model.safetensors" for output in outputs), shallow=False):
            differing.append(scheme)
        for output in outputs:
            shutil.rmtree(output)
        rows.append({"scheme": scheme, "device_s": took[0], "cpu_s": took[1]})
    return rows, differing


def shown(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name)
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--rows", type=int, default=13824, help="of the weight that kernels are timed on, [rows, 5120]")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--folder", type=Path, help="where to make the checkpoint (default: a temporary folder here)")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    device = torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(f"error: torch {torch.__version__} finds no card", file=sys.stderr)
        return 1
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    different = differences(device)
    speeds = kernels(device, asked.rows, asked.rounds)
    with tempfile.TemporaryDirectory(dir=asked.folder or Path.cwd(), prefix="bench-") as folder:
        whole, differing = conversions(asked.device, Path(folder), asked.blocks)
    console = Console(width=160)
    console.print(shown(f"kernels on {name}, [{asked.rows}, 5120] bf16", speeds))
    console.print(shown(f"conversions of {asked.blocks} blocks", whole))
    for line in [*different, *(f"{scheme}: files differ" for scheme in differing)]:
        console.print(f"differs from the CPU: {line}")
    if asked.json:
        result = {"device": name, "torch": torch.__version__, "kernels": speeds, "conversions": whole}
        asked.json.write_text(json.dumps({**result, "differences": different + differing}, indent=1))
    return 1 if different or differing else 0


if __name__ == "__main__":
    sys.exit(main())
