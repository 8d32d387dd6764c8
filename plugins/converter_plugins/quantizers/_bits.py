"""Arithmetic whose bytes do not depend on device, memory layout or slab height.

Maxima are taken over bit patterns, sums that decide anything add halves in a written order, divisors are tensors
(CUDA multiplies by the reciprocal of a Python scalar).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from converter_core.api import Refused

from . import _loops

PIECE = 1 << 18
"""Elements that torch works on at a time on a CPU: 1 MiB of float32."""

SOURCE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SMALLEST_NORMAL = 2.0**-126


def admit(weight: Tensor, multiple: int = 1) -> Tensor:
    """The weight as a contiguous bf16, fp16 or fp32 matrix, or ``Refused``.

    fp64 is rounded to fp32; fp8 without scales holds ordinary values, which bf16 holds exactly.

    multiple: what the number of columns must be a multiple of.
    """
    if weight.dim() != 2:
        raise Refused(f"has {weight.dim()} dimensions; needs 2")
    if not weight.numel():
        raise Refused(f"has no elements (shape {list(weight.shape)}); needs at least one row and one column")
    if weight.dtype is torch.float64:
        weight = weight.float()
    if weight.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        weight = weight.to(torch.bfloat16)
    if weight.dtype not in SOURCE_DTYPES:
        name = str(weight.dtype).removeprefix("torch.")
        raise Refused(f"is {name}; needs bfloat16, float16, float32, float64 or float8")
    if weight.shape[1] % multiple:
        raise Refused(f"has {weight.shape[1]} columns; needs a multiple of {multiple}")
    return weight.contiguous()


def magnitudes(weight: Tensor) -> Tensor:
    """|weight| as integers of the same width, which order as the values do; NaN is above infinity."""
    if weight.dtype is torch.float32:
        return weight.view(torch.int32) & 0x7FFFFFFF
    return weight.view(torch.int16) & 0x7FFF


def absmax(weight: Tensor, width: int) -> Tensor:
    """The largest magnitude of each run of ``width`` elements, float32, flat."""
    if _loops.suit(weight):
        return _loops.absmax(weight, width)
    return magnitudes(weight).view(-1, width).amax(1).view(weight.dtype).float()


def absmax_of_rows(weight: Tensor) -> Tensor:
    """[O, 1] float32."""
    return absmax(weight, weight.shape[1]).view(-1, 1)


def absmax_of_all(weight: Tensor) -> Tensor:
    """0-d float32."""
    return absmax(weight, weight.numel()).view(())


def by_pieces(function: Callable[..., Tensor], weight: Tensor, *per_row: Tensor) -> Tensor:
    """``function(rows, ...)`` of runs of rows, joined. On a CPU so few at a time that float32 copies stay in its cache.

    per_row: what else the function takes, with as many rows as the weight each.
    """
    height = max(1, PIECE // weight.shape[1]) if weight.device.type == "cpu" else weight.shape[0]
    if height >= weight.shape[0]:
        return function(weight, *per_row)
    pieces = zip(*(torch.split(rows, height) for rows in (weight, *per_row)), strict=True)
    return torch.cat([function(*piece) for piece in pieces])


def as_bf16(value: Tensor) -> Tensor:
    """float32 rounded to the nearest value that bf16 can hold, ties to even."""
    return value.to(torch.bfloat16).float()


def halving_sum(terms: Tensor, dim: int) -> Tensor:
    """Sum along ``dim`` (kept with length 1), always in this order: the second half is added to the first, again and
    again; of an odd count the middle one waits. Overwrites ``terms``.
    """
    while (count := terms.shape[dim]) > 1:
        half = (count + 1) // 2
        terms.narrow(dim, 0, count - half).add_(terms.narrow(dim, half, count - half))
        terms = terms.narrow(dim, 0, half)
    return terms


def decode_e4m3(codes: Tensor) -> Tensor:
    """float8_e4m3fn -> float32, exactly; an order of magnitude faster than torch's cast on a CPU."""
    table = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().to(codes.device)
    return table.index_select(0, codes.reshape(-1).view(torch.uint8).int()).view(codes.shape)
