"""What int8 and fp8 share: one scale per row, chosen among candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from converter_core.api import QuantFormat

from ._bits import SMALLEST_NORMAL, as_bf16, halving_sum

ROUNDING = 2.0**-14
"""What float32 may change of an error's square root, per square root of the columns. A quotient of at most 512 steps is
rounded by at most 2^-16; by the triangle inequality both roots are wrong by no more, and their sums by much less."""

SUM_ROUNDING = 2.0**-40
"""More than float64 rounds a sum of 2^20 squares, relative to it."""

Cost = Callable[..., Tensor]
"""(rows of the weight, their scales [rows, 1], ...) -> squared error of each row in steps of the scale, [rows, 1]."""

Decoded = Callable[..., Tensor]
"""(rows of the weight, their scales, ...) -> the rows as they come back after quantization, float32."""

Stages = Sequence[Sequence[int]]


ScaleDtype = Literal["bfloat16", "float32"]


def scale_for(amax: Tensor, top: float, precision: ScaleDtype = "bfloat16") -> Tensor:
    """The float32 scale that maps ``amax`` to ``top``: never subnormal, and 1 where the amax is zero.

    precision: ``bfloat16`` rounds it to what bf16 holds, for runtimes that cast scales at load.
    """
    scale = amax / torch.full_like(amax, top)
    scale = (as_bf16(scale) if precision == "bfloat16" else scale).clamp_(min=SMALLEST_NORMAL)
    return torch.where(amax == 0, torch.ones_like(scale), scale)


def scale_facts(per_channel: bool, precision: ScaleDtype) -> dict[str, Any]:
    """What a ``QuantFormat`` says of such scales."""
    granularity = "row" if per_channel else "tensor"
    needed = "F32" if precision == "float32" else ""
    return {"granularity": granularity, "scale_dtype": "F32", "scale_precision": needed}


def options_for(wanted: QuantFormat) -> Mapping[str, Any]:
    """``per_channel`` and ``scale_dtype`` of a format."""
    return {
        "per_channel": wanted.granularity != "tensor",
        "scale_dtype": "float32" if wanted.scale_precision == "F32" else "bfloat16",
    }


def best_scale(
    weight: Tensor,
    first: Tensor,
    stages: Stages,
    cost: Cost,
    decoded: Decoded,
    *per_row: Tensor,
    shares: Tensor | None = None,
) -> Tensor:
    """Row by row the scale with the least squared error, the earliest of equals. [O, 1]. No row is worse than with
    ``first``, not even by what float32 rounds.

    first: bf16-representable scales. stages: which other bf16 numbers to try, as steps from ``first``, then as steps
    from the best so far, within the range of the first stage. per_row: what else ``cost`` and ``decoded`` take, [O, 1]
    each. shares: how much the squared error of each column counts, float32 [I] with mean 1; None: all alike.
    """
    lowest, highest = min(0, *stages[0]), max(0, *stages[0])
    least = of_first = cost(weight, first, *per_row, shares=shares)
    best = torch.zeros_like(first, dtype=torch.int32)
    for steps in stages:
        centre = best
        for step in steps:
            offset = (centre + step).clamp_(lowest, highest)
            scale = moved(first, offset)
            relative = scale / first
            squares = cost(weight, scale, *per_row, shares=shares).mul_(relative).mul_(relative)
            best = torch.where(squares < least, offset, best)
            least = torch.minimum(squares, least)
    return moved(first, kept_where_better(weight, first, best, of_first, least, decoded, *per_row, shares=shares))


def kept_where_better(
    weight: Tensor,
    first: Tensor,
    best: Tensor,
    of_first: Tensor,
    least: Tensor,
    decoded: Decoded,
    *per_row: Tensor,
    shares: Tensor | None = None,
) -> Tensor:
    """``best``, int32 [O, 1], or 0 in rows whose error is not really smaller than with ``first``.

    of_first, least: what float32 makes of both errors, in squared steps of ``first``, [O, 1].
    """
    if weight.is_meta:  # has no rows to look at
        return best
    slack = ROUNDING * weight.shape[1] ** 0.5
    close = (best != 0) & (least.sqrt() + slack >= of_first.sqrt())
    rows = close.flatten().nonzero().flatten()
    if rows.numel():
        near, start, *rest = (tensor.index_select(0, rows) for tensor in (weight, first, *per_row))
        chosen = best.index_select(0, rows)
        error = _real_error(near, decoded(near, moved(start, chosen), *rest), shares)
        of_start = _real_error(near, decoded(near, start, *rest), shares)
        best = best.index_copy(0, rows, torch.where(error < of_start * (1 - SUM_ROUNDING), chosen, 0))
    return best


def _real_error(weight: Tensor, decoded: Tensor, shares: Tensor | None) -> Tensor:
    """Squared error of each row as a reader of the file finds it, in float64, [rows, 1]."""
    return sum_of_squares(decoded.double().sub_(weight), shares)


def in_steps(weight: Tensor, scale: Tensor) -> Tensor:
    """weight / scale in float32; new."""
    return weight.to(torch.float32, copy=True).div_(scale)


def moved(scale: Tensor, steps: Tensor) -> Tensor:
    """That many bf16 numbers further."""
    return (scale.view(torch.int32) + (steps << 16)).view(torch.float32).clamp_(min=SMALLEST_NORMAL)


def sum_of_squares(error: Tensor, shares: Tensor | None = None) -> Tensor:
    """Of each row, [rows, 1], each column times its share; overwrites ``error``."""
    squares = error.mul_(error)
    return halving_sum(squares if shares is None else squares.mul_(shares), 1)


def reference_scale(weight: Tensor, amax: Tensor, top: float) -> Tensor:
    """The scale in the source's dtype, computed in it, with the floor of 1e-5 that LightX2V's converter has.

    fp16 rounds 1e-5 / 448 to zero: such scales are zero here too.
    """
    dtype = weight.dtype
    floor = torch.full_like(amax, 1e-5).to(dtype).float()
    return (torch.maximum(amax, floor) / torch.full_like(amax, top)).to(dtype)


def reference_quotient(weight: Tensor, scale: Tensor) -> Tensor:
    """weight / scale rounded to the source's dtype, as float32."""
    return (weight.float() / scale.float()).to(weight.dtype).float()
