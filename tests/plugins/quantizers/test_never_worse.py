"""``scale_rule: mse`` is never worse than ``absmax``, row by row, in exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from converter_core.api.quantizers import Quantizer
from converter_plugins.quantizers.fp8 import Fp8
from converter_plugins.quantizers.int8 import Int8


def exact_errors(quantizer: Quantizer, weight: torch.Tensor) -> list[Fraction]:
    """Squared error of each row, without rounding."""
    restored = quantizer.dequantize(quantizer.quantize(weight))
    return [
        sum(((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(*rows, strict=True)), Fraction(0))
        for rows in zip(restored.tolist(), weight.tolist(), strict=True)
    ]


def noise(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def nearly_equal(rows: int, columns: int, most: float, seed: int) -> torch.Tensor:
    """Rows whose errors at two neighbouring scales differ by little: on the grid of one but for a few odd values."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(-int(most), int(most) + 1, (rows, columns), generator=generator).float()
    steps[:, 0] = most
    steps[:, 1:3] += torch.rand(rows, 2, generator=generator) - 0.5
    return steps * 0.01 * (1 + torch.rand(rows, 1, generator=generator))


@pytest.mark.parametrize("columns", [3, 32, 200])
@pytest.mark.parametrize(
    ("scheme", "options", "most"),
    [(Int8, {}, 127.0), (Int8, {"symmetric": False}, 127.0), (Fp8, {}, 448.0)],
    ids=["int8", "int8 asymmetric", "fp8"],
)
def test_no_row_is_worse_than_with_absmax(scheme, options, most, columns, dtype) -> None:
    parts = [noise(60, columns, 1), noise(60, columns, 2) ** 3 * 1e-3, nearly_equal(60, columns, most, 3)]
    weight = torch.cat([*parts, parts[0] * 2.0**-122]).to(dtype)
    before = exact_errors(scheme(**options, scale_rule="absmax"), weight)
    after = exact_errors(scheme(**options, scale_rule="mse"), weight)
    assert [row for row, (a, b) in enumerate(zip(after, before, strict=True)) if a > b] == []
    if columns == 200:
        assert sum(after) < sum(before)
