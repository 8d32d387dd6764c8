"""Bytes of GGUF's blocks: fp16 numbers, nibbles, high bits. Blocks are rows of tensors here."""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from torch import Tensor

HALF_MAX = 65504.0
SMALLEST_HALF = 2.0**-24
"""The smallest step that an fp16 scale can stand for."""


def to_half(values: Tensor) -> Tensor:
    """float32 [B, n] -> the bytes of fp16, uint8 [B, 2 n]. Saturated: an infinite scale would make NaN of zeros."""
    return values.clamp(-HALF_MAX, HALF_MAX).half().view(torch.uint8)


def rounded_to_half(values: Tensor) -> Tensor:
    """float32 -> the nearest values of fp16, saturated, as float32."""
    return values.clamp(-HALF_MAX, HALF_MAX).half().float()


def from_half(packed: Tensor) -> Tensor:
    """uint8 [B, 2 n] -> float32 [B, n]."""
    return packed.contiguous().view(torch.float16).float()


def reciprocal(scale: Tensor) -> Tensor:
    """1 / scale, and 0 where that is no number: a block of zeros, or one that no fp16 scale can hold."""
    inverse = torch.ones_like(scale) / scale
    return inverse.masked_fill_(~inverse.isfinite(), 0)


def nibbles(codes: Tensor) -> Tensor:
    """The low nibbles of codes [B, n], two to a byte: code i beside code i + n / 2."""
    low, high = codes.chunk(2, 1)
    return (low & 15) | (high << 4)


def from_nibbles(packed: Tensor) -> Tensor:
    """uint8 [B, n / 2] -> uint8 [B, n]."""
    return torch.cat([packed & 15, packed >> 4], 1)


def high_bits(codes: Tensor) -> Tensor:
    """Bit 4 of codes [B, n], eight to a byte, the first lowest."""
    bits = (codes >> 4 & 1).view(codes.shape[0], -1, 8)
    return (bits << _places(codes)).sum(2, dtype=torch.uint8)


def from_high_bits(packed: Tensor) -> Tensor:
    """uint8 [B, n / 8] -> zeros and ones, uint8 [B, n]."""
    return (packed.unsqueeze(2) >> _places(packed) & 1).flatten(1)


def _places(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)


def join(*columns: Tensor) -> Tensor:
    return torch.cat(columns, 1)


def split(packed: Tensor, *widths: int) -> list[Tensor]:
    """Columns of these widths, and the rest."""
    ends = [0, *accumulate(widths), packed.shape[1]]
    return [packed[:, start:end] for start, end in pairwise(ends)]
