"""E2M1, the 4-bit float of both 4-bit schemes: 0, 0.5, 1, 1.5, 2, 3, 4, 6 (codes 0...7) and negatives (8...15)."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from . import _loops
from ._bits import by_pieces, magnitudes

VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
STEPS = (0.5, 0.5, 0.5, 0.5, 1.0, 1.0, 2.0, 2.0)
"""From each magnitude to the next larger one; 6 is the largest, and its step the one below it."""

SIXTH = 1 / 6
"""Multiplied as the float32 nearest to it, 0x3E2AAAAB, where LightX2V's kernels do so."""

BF16_MAX = torch.finfo(torch.bfloat16).max

MAGIC = 1.5 * 2.0**23
"""Added to a small float32 it leaves the nearest integer, ties to even, in the low bits."""


def as_kernel_reads(weight: Tensor) -> Tensor:
    """The weight in bf16, as LightX2V hands it to its 4-bit kernels; what would become infinite stays finite."""
    if weight.dtype is torch.float32:
        weight = weight.clamp(-BF16_MAX, BF16_MAX)
    return weight.to(torch.bfloat16)


def scaled(weight: Tensor, inv_scale: Tensor) -> Tensor:
    """|weight| * inv_scale, float32 [O, blocks, width]; new. inv_scale: of each block, [O, blocks]."""
    values = magnitudes(weight).view(weight.dtype).to(torch.float32)
    return values.view(*inv_scale.shape, -1).mul_(inv_scale.unsqueeze(-1))


def nearest(values: Tensor, unit: Tensor) -> Tensor:
    """The nearest E2M1 numbers times ``unit``, float32; 0 where the unit is 0."""
    steps = (values / unit).clamp_(-6, 6).nan_to_num_(0)
    size = steps.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return steps.div_(step).round_().mul_(step).mul_(unit)


def encode(weight: Tensor, inv_scale: Tensor) -> Tensor:
    """Codes of weight * inv_scale, packed [O, I / 2] uint8: even column in the low nibble.

    inv_scale: float32 [O, blocks]. Rounded to nearest even, saturated at 6; zeros keep their sign.
    """
    if _loops.suit(weight):
        return _loops.e2m1_codes(weight, inv_scale)

    def codes(rows: Tensor, inv_scale: Tensor) -> Tensor:
        return _pack(_codes(scaled(rows, inv_scale).view(-1)).bitwise_or_(_signs(rows)), rows.shape[0])

    return by_pieces(codes, weight, inv_scale)


def encode_as_kernel(weight: Tensor, inv_scale: Tensor) -> Tensor:
    """As ``encode``, but NaN (zero times an infinite reciprocal) becomes +6, as ``cvt.rn.satfinite.e2m1x2`` has it."""

    def codes(rows: Tensor, inv_scale: Tensor) -> Tensor:
        steps = scaled(rows, inv_scale).view(-1)
        positive = steps.isnan()
        signs = _signs(rows).masked_fill_(positive, 0)
        return _pack(_codes(steps.masked_fill_(positive, 6.0)).bitwise_or_(signs), rows.shape[0])

    return by_pieces(codes, weight, inv_scale)


def _codes(steps: Tensor) -> Tensor:
    """Of magnitudes in steps, flat; overwrites them."""
    # The code of x is round(min(2x, x + 2, x/2 + 4)), at most 7. Each sum below rounds once, at the step of its own
    # segment (0.5, 1, 2), and the segments' minimum is the right one after rounding too, as rounding is monotone.
    low = torch.add(steps.new_full((), MAGIC), steps, alpha=2)
    high = torch.add(steps.new_full((), MAGIC + 4), steps, alpha=0.5)
    code = torch.minimum(low, high, out=low)
    torch.minimum(code, steps.add_(MAGIC + 2), out=code)
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
