"""E8M0: a byte that is a power of two, ``2^(byte - 127)``; the scales of all microscaling formats."""

from __future__ import annotations

import torch
from torch import Tensor


def smallest_power(needed: Tensor) -> Tensor:
    """The smallest power of two that is not below float32 numbers, as int32; 0 up to 2^-127 (bits 0x400000)."""
    bits = needed.view(torch.int32)
    return ((bits + 0x7FFFFF) >> 23) * (bits > 0x400000)


def power(scale: Tensor) -> Tensor:
    """What bytes stand for, float32; 2^-127 is subnormal."""
    return (scale.to(torch.int32) << 23).clamp_(min=0x400000).view(torch.float32)


def inverse_power(scale: Tensor) -> Tensor:
    """2^(127 - byte) of int32, exactly; 2^-127 is subnormal."""
    return ((254 - scale) << 23).clamp_(min=0x400000).view(torch.float32)
