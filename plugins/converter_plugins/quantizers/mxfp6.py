"""mxfp6: 6-bit floats, a power of two per 32 columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from converter_core.api import QuantFormat, Quantizer, hookimpl

from . import _e8m0, _loops
from ._bits import absmax, admit, by_pieces
from ._fp4 import as_kernel_reads
from ._reference import Numerics, Reference

if TYPE_CHECKING:
    from converter_core.api import Parts

WIDTH = 32
E3M2_MAX = 28.0
VALUES = tuple(m / 16 if e == 0 else (4 + m) * 2.0 ** (e - 5) for e in range(8) for m in range(4))
"""Of the codes 0...31; 32...63 are their negatives."""
STEPS = tuple(2.0 ** (max(e, 1) - 5) for e in range(8) for _ in range(4))


@dataclass(frozen=True)
class Mxfp6(Reference, Quantizer):
    """6-bit floats (E3M2) with a power of two (E8M0) per 32 columns: 6.25 bits per weight, no other scale.

    Parts: ``weight`` uint8 [O, 3 I / 4], codes a, b, c, d of four columns as ``a | b << 6``, ``b >> 2 | c << 4``,
    ``c >> 4 | d << 2``; ``scale`` uint8 [O, I / 32]. A weight is ``e3m2 * 2^(scale - 127)``. The scale is the smallest
    power of two with which nothing saturates, as in LightX2V's kernel.

    numerics: ``exact``, or ``lightx2v`` for the bytes of LightX2V's kernel, which rounds the weight to bf16 first
        (except in blocks of zeros, where the kernel's codes are the largest number, times 2^-127).
    """

    name: ClassVar[str] = "mxfp6"
    row_block: ClassVar[int | None] = 1

    numerics: Numerics = "exact"

    def __post_init__(self) -> None:
        self.check_choices()

    @property
    def format(self) -> QuantFormat:
        return QuantFormat(self.name, "e3m2", 6, "group", WIDTH, "F8_E8M0", packing="four_in_three_bytes")

    def quantize(self, weight: Tensor, /) -> Parts:
        weight = admit(weight, WIDTH)
        if self.is_reference:
            weight = as_kernel_reads(weight)
        amax = absmax(weight, WIDTH)
        scale = _e8m0.smallest_power(amax / torch.full_like(amax, E3M2_MAX))
        packed = _packed(weight.view(-1, WIDTH), _e8m0.inverse_power(scale).view(-1, 1))
        rows = weight.shape[0]
        return {"weight": packed.view(rows, -1), "scale": scale.to(torch.uint8).view(rows, -1)}

    def dequantize(self, parts: Parts, /) -> Tensor:
        return _unpacked(parts, VALUES + tuple(-value for value in VALUES))

    def quantization_step(self, parts: Parts, /) -> Tensor:
        # what is smaller is nothing: no smaller step is worth telling apart
        return _unpacked(parts, STEPS + STEPS).clamp_(min=2.0**-126)


def _packed(blocks: Tensor, inv_scale: Tensor) -> Tensor:
    """Codes of blocks [n, 32] times ``inv_scale`` [n, 1], rounded to nearest even: uint8 [n, 24]."""
    if _loops.suit(blocks):
        return _loops.e3m2_codes(blocks, inv_scale)

    def packed(rows: Tensor, inv_scale: Tensor) -> Tensor:
        exact = rows.to(torch.float32, copy=True).mul_(inv_scale)
        size = exact.abs().clamp_(max=E3M2_MAX)
        bits = size.view(torch.int32)
        # half a step less one bit, and one more where the code is odd; the exponents differ by 127 - 3
        normal = ((bits + 0xFFFFF + (bits >> 21 & 1)) >> 21) - (124 << 2)
        # below 2^-2 the step is 2^-4, that of float32 numbers from 2^19 on
        subnormal = (size + 2.0**19).view(torch.int32) - (146 << 23)
        codes = torch.where(size < 0.25, subnormal, normal) | (exact.view(torch.int32) >> 26 & 32)
        a, b, c, d = codes.view(len(rows), -1, 4).unbind(-1)
        return torch.stack([a | b << 6, b >> 2 | c << 4, c >> 4 | d << 2], -1).to(torch.uint8).view(len(rows), -1)

    return by_pieces(packed, blocks, inv_scale)


def _unpacked(parts: Parts, of_code: tuple[float, ...]) -> Tensor:
    """What the codes stand for by a table of 64, times their scales, float32 [O, I]."""
    packed, scale = parts["weight"], parts["scale"]
    table = torch.tensor(of_code, device=packed.device)

    def unpacked(rows: Tensor, scale: Tensor) -> Tensor:
        one, two, three = rows.reshape(rows.shape[0], -1, 3).to(torch.int32).unbind(-1)
        codes = torch.stack([one, one >> 6 | two << 2, two >> 4 | three << 4, three >> 2], -1).bitwise_and_(63)
        values = table.index_select(0, codes.view(-1)).view(*scale.shape, WIDTH)
        return values.mul_(_e8m0.power(scale).unsqueeze(-1)).view(rows.shape[0], -1)

    return by_pieces(unpacked, packed, scale)


@hookimpl
def converter_quantizers() -> Sequence[type[Quantizer]]:
    return [Mxfp6]
