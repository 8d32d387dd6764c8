"""even_int8: one quantizer over another. Columns are evened out first, then ``int8`` does the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from converter_core.api import Parts, Quantizer, hookimpl
from converter_plugins.quantizers.int8 import Int8

INNER = Int8()


@dataclass(frozen=True)
class EvenInt8(Quantizer):
    """int8 over columns that have been evened out, for weights with columns of outliers.

    Parts: those of ``int8`` for the weight divided by ``column_factor``, float32 [I], powers of two.

    A column of outliers then costs the other columns of its row nothing. Whoever computes with it multiplies the
    columns of the activations by the factors.
    """

    name: ClassVar[str] = "even_int8"
    row_block: ClassVar[int | None] = INNER.row_block

    def observe(self, rows: Tensor, /) -> Parts:
        return {"reach": rows.float().abs().amax(0)}

    def quantize(self, weight: Tensor, /, *, reach: Tensor) -> Parts:
        factor = power_of_two(reach)
        return {**INNER.quantize(weight.float() / factor), "column_factor": factor}

    def dequantize(self, parts: Parts, /) -> Tensor:
        return INNER.dequantize(parts) * parts["column_factor"]

    def quantization_step(self, parts: Parts, /) -> Tensor:
        return INNER.quantization_step(parts) * parts["column_factor"]


def power_of_two(reach: Tensor) -> Tensor:
    """The largest one that is not above, 1 for zero: a float32 without its mantissa."""
    power = (reach.view(torch.int32) & 0x7F800000).view(torch.float32)
    return torch.where(power == 0, 1.0, power)


@hookimpl
def converter_quantizers() -> list[type[Quantizer]]:
    return [EvenInt8]
