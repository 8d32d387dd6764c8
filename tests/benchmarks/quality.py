"""How close quantized weights are to the original, by scheme and scale rule: what docs/numerics.md quotes.

    python tests/benchmarks/quality.py                          four distributions, 2048 x 5120, bf16
    python tests/benchmarks/quality.py --weights model.safetensors   its linear weights

error: Frobenius norm of the difference over that of the weight. The second figure of a cell is the change of the mean
squared error against the scheme's kernel rule (absmax; rceil for mxfp4). ns: of one thread for an element, the whole
quantization, against bf16.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from safetensors import safe_open
from torch import Tensor

from converter_core.api.quantizers import Quantizer
from converter_plugins.quantizers.fp8 import Fp8
from converter_plugins.quantizers.int8 import Int8
from converter_plugins.quantizers.mxfp4 import Mxfp4
from converter_plugins.quantizers.nvfp4 import Nvfp4

RULES: tuple[tuple[str, tuple[tuple[str, Quantizer], ...]], ...] = (
    (
        "int8",
        (
            ("absmax", Int8()),
            ("mse", Int8(scale_rule="mse")),
            ("lightx2v", Int8(numerics="lightx2v")),
            ("asymmetric", Int8(symmetric=False)),
        ),
    ),
    (
        "fp8",
        (("absmax", Fp8(scale_rule="absmax")), ("mse", Fp8(scale_rule="mse")), ("lightx2v", Fp8(numerics="lightx2v"))),
    ),
    (
        "mxfp4",
        (
            ("rceil", Mxfp4(scale_rule="rceil")),
            ("floor", Mxfp4(scale_rule="floor")),
            ("even", Mxfp4(scale_rule="even")),
            ("mse", Mxfp4(scale_rule="mse")),
            ("lightx2v", Mxfp4(numerics="lightx2v")),
        ),
    ),
    (
        "nvfp4",
        (
            ("absmax", Nvfp4(scale_rule="absmax")),
            ("four_over_six", Nvfp4(scale_rule="four_over_six")),
            ("mse", Nvfp4(scale_rule="mse")),
            ("lightx2v", Nvfp4(numerics="lightx2v")),
        ),
    ),
)
DEVIATION = 0.02
"""About that of a trained linear weight. Only mxfp4 minds: how often its power of two is a good one depends on it."""

SLAB = 64
"""Rows at a time."""


@dataclass
class Tally:
    """Of one scheme and rule: relative squared errors by column of the table, and the time it took."""

    errors: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = math.inf


def samples(rows: int, columns: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    torch.manual_seed(seed)
    shape = (rows, columns)
    by_row, by_column = torch.randn(rows, 1).mul_(0.5).exp_(), torch.randn(1, columns).mul_(0.5).exp_()
    for name, weight in (
        ("gaussian", torch.randn(shape)),
        ("laplace", torch.distributions.Laplace(0.0, 1.0).sample(shape)),  # type: ignore[no-untyped-call]
        ("student-t5", torch.distributions.StudentT(5.0).sample(shape)),  # type: ignore[no-untyped-call]
        ("row/col lognormal", torch.randn(shape) * by_row * by_column),
    ):
        yield name, (weight * DEVIATION).bfloat16()


def linear_weights(path: str) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118  (it is no mapping)
            shape = file.get_slice(key).get_shape()
            if key.endswith(".weight") and len(shape) == 2 and not shape[1] % 32:
                weight = file.get_tensor(key)
                if weight.dtype in (torch.bfloat16, torch.float16, torch.float32):
                    yield f"{path} (all linear weights)", weight


def squared_error(quantizer: Quantizer, weight: Tensor) -> tuple[float, float]:
    """(squared error over squared weight, best seconds per element of a slab)"""
    statistic = dict(quantizer.observe(weight))
    error = norm = 0.0
    fastest = math.inf
    for rows in weight.split(SLAB):  # type: ignore[no-untyped-call]
        start = time.thread_time()
        parts = quantizer.quantize(rows, **statistic)
        if len(rows) == SLAB:
            fastest = min(fastest, (time.thread_time() - start) / rows.numel())
        error += (quantizer.dequantize(parts).double() - rows.double()).square_().sum().item()
        norm += rows.double().square_().sum().item()
    return error / norm if norm else 0.0, fastest


def measure(weights: Iterable[tuple[str, Tensor]]) -> dict[tuple[str, str], Tally]:
    tallies = {(scheme, rule): Tally() for scheme, rules in RULES for rule, _ in rules}
    for column, weight in weights:
        for scheme, rules in RULES:
            for rule, quantizer in rules:
                error, seconds = squared_error(quantizer, weight)
                tally = tallies[scheme, rule]
                tally.errors.setdefault(column, []).append(error)
                tally.seconds = min(tally.seconds, seconds)
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return tallies


def table(tallies: dict[tuple[str, str], Tally]) -> Iterator[str]:
    columns = list(next(iter(tallies.values())).errors)
    yield "| scheme | rule | " + " | ".join(columns) + " | ns |"
    yield "|---|---|" + "---|" * (len(columns) + 1)
    for scheme, rules in RULES:
        base = tallies[scheme, rules[0][0]]
        for rule, _ in rules:
            tally = tallies[scheme, rule]
            cells = []
            for column in columns:
                now, was = sum(tally.errors[column]), sum(base.errors[column])
                error = 100 * math.sqrt(now / len(tally.errors[column]))
                cells.append(f"{error:.3f} %" + ("" if tally is base else f", {100 * (now / was - 1):+.1f} %"))
            yield f"| {scheme} | {rule} | " + " | ".join(cells) + f" | {1e9 * tally.seconds:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--weights", metavar="PATH", help="a safetensors file; without it, four distributions")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--columns", type=int, default=5120)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    # keep freed heap, as the engine does: glibc would give it back and fault it in again (M_MMAP_, M_TRIM_THRESHOLD)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 32 << 20)
        mallopt(-1, 256 << 20)
    weights = linear_weights(chosen.weights) if chosen.weights else samples(chosen.rows, chosen.columns, chosen.seed)
    tallies = measure(weights)
    if not next(iter(tallies.values())).errors:
        sys.exit(f"{chosen.weights} holds no linear weight whose width is a multiple of 32")
    print("\n".join(table(tallies)))


if __name__ == "__main__":
    main()
