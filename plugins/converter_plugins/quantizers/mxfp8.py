"""mxfp8: 8-bit floats, a power of two per 32 columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from converter_core.api import QuantFormat, Quantizer, hookimpl

from . import _e8m0, _loops
from ._bits import absmax, admit, by_pieces, decode_e4m3
from ._fp4 import as_kernel_reads
from ._reference import Numerics, Reference

if TYPE_CHECKING:
    from converter_core.api import Parts

WIDTH = 32
E4M3_MAX = 448.0


@dataclass(frozen=True)
class Mxfp8(Reference, Quantizer):
    """8-bit floats (E4M3) with a power of two (E8M0) per 32 columns: 8.25 bits per weight, no other scale.

    Parts: ``weight`` float8_e4m3fn [O, I], ``scale`` uint8 [O, I / 32]. A weight is ``e4m3 * 2^(scale - 127)``. The
    scale is the smallest power of two with which nothing saturates, as in LightX2V's kernel and in comfy-kitchen.

    numerics: ``exact``, or ``lightx2v`` for the bytes of LightX2V's kernel, which rounds the weight to bf16 first
        (except in blocks of zeros, where the kernel writes NaN).
    """

    name: ClassVar[str] = "mxfp8"
    row_block: ClassVar[int | None] = 1

    numerics: Numerics = "exact"

    def __post_init__(self) -> None:
        self.check_choices()

    @property
    def format(self) -> QuantFormat:
        return QuantFormat(self.name, "e4m3", 8, "group", WIDTH, "F8_E8M0")

    def quantize(self, weight: Tensor, /) -> Parts:
        weight = admit(weight, WIDTH)
        if self.is_reference:
            weight = as_kernel_reads(weight)
        amax = absmax(weight, WIDTH)
        scale = _e8m0.smallest_power(amax / torch.full_like(amax, E4M3_MAX))
        codes = _codes(weight.view(-1, WIDTH), _e8m0.inverse_power(scale).view(-1, 1))
        return {"weight": codes.view(weight.shape), "scale": scale.to(torch.uint8).view(weight.shape[0], -1)}

    def dequantize(self, parts: Parts, /) -> Tensor:
        blocks, scale = _blocks(parts)
        if _loops.suit(blocks):
            return _loops.e4m3_values(blocks, scale).view(parts["weight"].shape)
        return decode_e4m3(blocks).mul_(scale).view(parts["weight"].shape)

    def quantization_step(self, parts: Parts, /) -> Tensor:
        blocks, scale = _blocks(parts)
        exponent = (blocks.view(torch.uint8).to(torch.int32) >> 3 & 15).clamp_(min=1)
        steps = (exponent.add_(127 - 7 - 3) << 23).view(torch.float32).mul_(scale)
        # what is smaller is nothing: no smaller step is worth telling apart
        return steps.clamp_(min=2.0**-126).view(parts["weight"].shape)


def _blocks(parts: Parts) -> tuple[Tensor, Tensor]:
    """Codes [blocks, 32] and what their scales stand for, float32 [blocks, 1]."""
    return parts["weight"].contiguous().view(-1, WIDTH), _e8m0.power(parts["scale"]).view(-1, 1)


def _codes(blocks: Tensor, inv_scale: Tensor) -> Tensor:
    """inv_scale: float32 [blocks, 1], powers of two."""
    if _loops.suit(blocks):
        return _loops.e4m3_codes_of_blocks(blocks, inv_scale)

    def codes(rows: Tensor, inv_scale: Tensor) -> Tensor:
        exact = rows.to(torch.float32, copy=True).mul_(inv_scale)
        return exact.clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)

    return by_pieces(codes, blocks, inv_scale)


@hookimpl
def converter_quantizers() -> Sequence[type[Quantizer]]:
    return [Mxfp8]
