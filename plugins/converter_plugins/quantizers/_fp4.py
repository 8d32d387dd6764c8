"""E2M1, the 4-bit float of both 4-bit schemes: 0, 0.5, 1, 1.5, 2, 3, 4, 6 (codes 0...7) and negatives (8...15)."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ._bits import magnitudes

VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
STEPS = (0.5, 0.5, 0.5, 0.5, 1.0, 1.0, 2.0, 2.0)
"""From each magnitude to the next larger one; 6 is the largest, and its step the one below it."""

SIXTH = 1 / 6
"""Multiplied as the float32 nearest to it, 0x3E2AAAAB, where LightX2V's kernels do so."""

BF16_MAX = torch.finfo(torch.bfloat16).max

MAGIC = 1.5 * 2.0**23
"""Added to a small float32 it leaves the nearest integer, ties to even, in the low bits."""


def blocks(weight: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(|weight| as float32 [O, I / width, width], new; the largest of each block [O, I / width])."""
    bits = magnitudes(weight).view(weight.shape[0], -1, width)
    values = bits.view(weight.dtype).float()
    most = values.view(torch.int32).amax(-1).view(torch.float32)
    return values, most


def as_kernel_reads(weight: Tensor) -> Tensor:
    """The weight in bf16, as LightX2V hands it to its 4-bit kernels; what would become infinite stays finite."""
    if weight.dtype is torch.float32:
        weight = weight.clamp(-BF16_MAX, BF16_MAX)
    return weight.to(torch.bfloat16)


def encode(scaled: Tensor, weight: Tensor) -> Tensor:
    """Codes of ``scaled`` with the signs of ``weight`` [O, I], packed [O, I / 2] uint8: even column in the low nibble.

    scaled: |weight| in units of the block's scale, float32; overwritten. Rounded to nearest even, saturated at 6.
    """
    return _pack(_codes(scaled.view(-1)).bitwise_or_(_signs(weight)), weight.shape[0])


def encode_as_kernel(scaled: Tensor, weight: Tensor) -> Tensor:
    """As ``encode``, but NaN (zero times an infinite reciprocal) becomes +6, as ``cvt.rn.satfinite.e2m1x2`` has it."""
    scaled = scaled.view(-1)
    positive = scaled.isnan()
    signs = _signs(weight).masked_fill_(positive, 0)
    return _pack(_codes(scaled.masked_fill_(positive, 6.0)).bitwise_or_(signs), weight.shape[0])


def _codes(scaled: Tensor) -> Tensor:
    # The code of x is round(min(2x, x + 2, x/2 + 4)), at most 7. Each sum below rounds once, at the step of its own
    # segment (0.5, 1, 2), and the segments' minimum is the right one after rounding too, as rounding is monotone.
    low = torch.add(scaled.new_full((), MAGIC), scaled, alpha=2)
    high = torch.add(scaled.new_full((), MAGIC + 4), scaled, alpha=0.5)
    code = torch.minimum(low, high, out=low)
    torch.minimum(code, scaled.add_(MAGIC + 2), out=code)
    return code.clamp_(max=MAGIC + 7).view(torch.int32).to(torch.uint8)


def _signs(weight: Tensor) -> Tensor:
    """Bit 3 of each code."""
    flat = weight.view(-1)
    bits = flat.view(torch.int32) >> 28 if weight.dtype is torch.float32 else flat.view(torch.int16) >> 12
    return bits.to(torch.uint8).bitwise_and_(8)


def _pack(codes: Tensor, rows: int) -> Tensor:
    pairs = codes.view(torch.int16)
    return (pairs >> 4).bitwise_or_(pairs).to(torch.uint8).view(rows, -1)


def decode(packed: Tensor) -> Tensor:
    """Packed codes [O, I / 2] -> the numbers they stand for, float32 [O, I]."""
    return _unpack(packed, VALUES + tuple(-value for value in VALUES))


def steps(packed: Tensor) -> Tensor:
    """Packed codes [O, I / 2] -> the distance to the next number, float32 [O, I]."""
    return _unpack(packed, STEPS + STEPS)


def _unpack(packed: Tensor, of_code: tuple[float, ...]) -> Tensor:
    pairs = _pairs(of_code, packed.device).index_select(0, packed.reshape(-1).int())
    return pairs.view(torch.float32).view(packed.shape[0], -1)


@cache
def _pairs(of_code: tuple[float, ...], device: torch.device) -> Tensor:
    """What each byte stands for: two float32, held as one number of 8 bytes so that they move together. [256]"""
    table = torch.tensor([(of_code[byte & 15], of_code[byte >> 4]) for byte in range(256)])
    return table.view(torch.float64).view(-1).to(device)
