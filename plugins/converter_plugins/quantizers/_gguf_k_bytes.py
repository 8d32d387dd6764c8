"""Bits of K-quants, as ggml lays them out. Blocks of 256 columns are rows of tensors here; all are uint8."""

from __future__ import annotations

import torch
from torch import Tensor


def pack_low_nibbles(codes: Tensor, apart: int) -> Tensor:
    """[B, 256] -> [B, 128]: of each run of 2 ``apart`` columns the first half low, the second high."""
    runs = codes.view(codes.shape[0], -1, 2, apart) & 15
    return (runs[:, :, 0] | runs[:, :, 1] << 4).flatten(1)


def from_low_nibbles(packed: Tensor, apart: int) -> Tensor:
    runs = packed.reshape(packed.shape[0], -1, 1, apart)
    return torch.cat([runs & 15, runs >> 4], 2).flatten(1)


def pack_pairs_of_bits(codes: Tensor) -> Tensor:
    """The low two bits, [B, 256] -> [B, 64]: of each run of 128 columns those 32 apart in one byte."""
    runs = codes.view(codes.shape[0], 2, 4, 32) & 3
    return (runs[:, :, 0] | runs[:, :, 1] << 2 | runs[:, :, 2] << 4 | runs[:, :, 3] << 6).flatten(1)


def from_pairs_of_bits(packed: Tensor) -> Tensor:
    runs = packed.reshape(packed.shape[0], 2, 1, 32)
    return torch.cat([runs >> shift & 3 for shift in (0, 2, 4, 6)], 2).flatten(1)


def pack_bit(codes: Tensor, place: int) -> Tensor:
    """One bit of each code, [B, 256] -> [B, 32]: bit r of a byte is that of run r of 32 columns."""
    bits = (codes >> place & 1).view(codes.shape[0], 8, 32)
    return (bits << _places(codes, 8)).sum(1, dtype=torch.uint8)


def from_bit(packed: Tensor) -> Tensor:
    return (packed.unsqueeze(1) >> _places(packed, 8) & 1).flatten(1)


def _places(like: Tensor, count: int) -> Tensor:
    return torch.arange(count, dtype=torch.uint8, device=like.device).view(count, 1)


def pack_scales(scale: Tensor, low: Tensor) -> Tensor:
    """6-bit scales and minima [B, 8] -> [B, 12]: the high bits of the last four stand above the first four."""
    first, last = scale.chunk(2, 1)
    low_first, low_last = low.chunk(2, 1)
    return torch.cat([first | last >> 4 << 6, low_first | low_last >> 4 << 6, (last & 15) | (low_last & 15) << 4], 1)


def from_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    first, low_first, last = packed.chunk(3, 1)
    scale = torch.cat([first & 63, (last & 15) | first >> 6 << 4], 1)
    return scale, torch.cat([low_first & 63, last >> 4 | low_first >> 6 << 4], 1)


def pack_signed_scales(scale: Tensor) -> Tensor:
    """6-bit scales [B, 16], 32 added -> [B, 12]."""
    low, high = scale & 15, (scale >> 4).view(-1, 4, 4)
    return torch.cat(
        [low[:, :8] | low[:, 8:] << 4, high[:, 0] | high[:, 1] << 2 | high[:, 2] << 4 | high[:, 3] << 6], 1
    )


def from_signed_scales(packed: Tensor) -> Tensor:
    low, high = packed[:, :8], packed[:, 8:]
    above = torch.cat([high >> shift & 3 for shift in (0, 2, 4, 6)], 1)
    return torch.cat([low & 15, low >> 4], 1) | above << 4
