"""ternary: every weight is -1, 0 or 1 times the scale of its row (Li and Liu, "Ternary Weight Networks", 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from converter_core.api import Parts, Quantizer, Refused, hookimpl


@dataclass(frozen=True)
class Ternary(Quantizer):
    """Minus, zero or plus one, times a scale per row: an eighth of bf16, for models trained to bear it.

    Parts: ``weight`` uint8 [O, I/4], four codes (value + 1) to a byte, lowest bits first; ``scale`` float32 [O, 1].

    threshold: what is smaller than this part of its row's mean magnitude becomes zero.
    """

    name: ClassVar[str] = "ternary"
    row_block: ClassVar[int | None] = 1  # rows know nothing of each other

    threshold: float = 0.7

    def quantize(self, weight: Tensor, /) -> Parts:
        if weight.dim() != 2 or not weight.numel() or weight.shape[1] % 4:
            raise Refused("needs two dimensions and a multiple of 4 columns")
        size = weight.float().abs()
        kept = size > self.threshold * mean(size, torch.ones_like(size, dtype=torch.bool))
        codes = torch.where(kept, weight.float().sign(), 0).add(1).to(torch.uint8).reshape(weight.shape[0], -1, 4)
        packed = codes[..., 0] | codes[..., 1] << 2 | codes[..., 2] << 4 | codes[..., 3] << 6
        return {"weight": packed, "scale": mean(size, kept)}

    def dequantize(self, parts: Parts, /) -> Tensor:
        codes = torch.stack([parts["weight"] >> shift & 3 for shift in (0, 2, 4, 6)], -1).flatten(1)
        return (codes.float() - 1) * parts["scale"]


def mean(size: Tensor, kept: Tensor) -> Tensor:
    """Of the kept ones in each row. Added up as whole numbers: floats give other bytes in another order."""
    unit = size.amax(1, keepdim=True).double().clamp(min=2.0**-140) * 2.0**-24
    total = ((size.double() / unit).round().long() * kept).sum(1, keepdim=True)
    return (total.double() * unit / kept.sum(1, keepdim=True).clamp(min=1)).float()


@hookimpl
def converter_quantizers() -> list[type[Quantizer]]:
    return [Ternary]
