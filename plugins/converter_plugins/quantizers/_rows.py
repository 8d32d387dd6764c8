"""What int8 and fp8 share: one scale per row, chosen among candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ._bits import SMALLEST_NORMAL, as_bf16, halving_sum

Cost = Callable[..., Tensor]
"""(rows of the weight, their scales [rows, 1], ...) -> squared error of each row in steps of the scale, [rows, 1]."""

Stages = Sequence[Sequence[int]]


def scale_for(reach: Tensor, top: float) -> Tensor:
    """The scale that maps ``reach`` to ``top``: bf16-representable (LightX2V casts scales to bf16 at load), never
    subnormal, and 1 where the reach is zero.
    """
    scale = as_bf16(reach / torch.full_like(reach, top)).clamp_(min=SMALLEST_NORMAL)
    return torch.where(reach == 0, torch.ones_like(scale), scale)


def best_scale(weight: Tensor, first: Tensor, stages: Stages, cost: Cost, *per_row: Tensor) -> Tensor:
    """Row by row the scale with the least squared error, the earliest of equals. [O, 1].

    first: bf16-representable scales. stages: which other bf16 numbers to try, as steps from ``first``, then as steps
    from the best so far, within the range of the first stage. per_row: what else ``cost`` takes, [O, 1] each.
    """
    lowest, highest = min(0, *stages[0]), max(0, *stages[0])
    least = cost(weight, first, *per_row)
    best = torch.zeros_like(first, dtype=torch.int32)
    for steps in stages:
        centre = best
        for step in steps:
            offset = (centre + step).clamp_(lowest, highest)
            scale = _moved(first, offset)
            relative = scale / first
            squares = cost(weight, scale, *per_row).mul_(relative).mul_(relative)
            best = torch.where(squares < least, offset, best)
            least = torch.minimum(squares, least)
    return _moved(first, best)


def in_steps(weight: Tensor, scale: Tensor) -> Tensor:
    """weight / scale in float32; new."""
    return weight.to(torch.float32, copy=True).div_(scale)


def _moved(scale: Tensor, steps: Tensor) -> Tensor:
    """That many bf16 numbers further."""
    return (scale.view(torch.int32) + (steps << 16)).view(torch.float32).clamp_(min=SMALLEST_NORMAL)


def sum_of_squares(error: Tensor) -> Tensor:
    """Of each row, [rows, 1]; overwrites ``error``."""
    return halving_sum(error.mul_(error), 1)


def legacy_scale(weight: Tensor, reach: Tensor, top: float) -> Tensor:
    """The scale in the source's dtype, computed in it, with the floor of 1e-5 that LightX2V's converter has.

    In fp16 the smallest scales would be rounded to zero and divide to NaN; here they stay at fp16's smallest value.
    """
    dtype = weight.dtype
    floor = torch.full_like(reach, 1e-5).to(dtype).float()
    scale = (torch.maximum(reach, floor) / torch.full_like(reach, top)).to(dtype)
    return scale.clamp_(min=2.0**-24) if dtype is torch.float16 else scale


def legacy_quotient(weight: Tensor, scale: Tensor) -> Tensor:
    """weight / scale rounded to the source's dtype, as float32."""
    return (weight.float() / scale.float()).to(weight.dtype).float()
