"""The scales of K-quants: a search over each group of columns for the least squared error.

A block of 256 columns is cut into groups. A group has an integer scale, and in affine formats an integer minimum;
fp16 numbers of the block are their units. Each search has two steps:

1. Codes for eight scales around the one that fits the range, each with the scale (and minimum) that suits these codes
   best; in affine formats once more from the best of them (Lloyd's step).
2. Of the integers beside the exact scale, and beside the minimum that suits each, those whose codes have the least
   squared error. So what rounding a scale costs is made good where it can be.

llama.cpp's reference does the first step with weighted errors, and rounds where this searches.

Weights are first counted in 2^14 to 2^18 steps of their group. All sums are then of integers below 2^24, which float32
adds exactly in any order: the bytes depend on neither device nor order. The compiled loops (``_gguf_k.c``) do the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._gguf_bytes import rounded_to_half

CANDIDATES = tuple(number * 0.25 - 0.875 for number in range(8))
SMALLEST = 2.0**-40
"""Of a group's range. Below, fp16 scales hold nothing of it, and it counts as constant."""


@dataclass(frozen=True)
class Affine:
    """``scale * code - minimum``, both not negative. top: the largest code; scale_top: of scales and minima."""

    width: int
    top: int
    scale_top: int
    unit: float


@dataclass(frozen=True)
class Symmetric:
    """``scale * code``, codes -half...half - 1, scales least...most."""

    width: int
    half: int
    least: int
    most: int
    unit: float


def affine(blocks: Tensor, kind: Affine) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """float32 [B, groups, width] -> integer scales and minima [B, groups, 1], their fp16 units [B, 1, 1]; float32."""
    n = float(kind.width)
    low = blocks.amin(2, keepdim=True).clamp_(max=0)
    span = blocks.amax(2, keepdim=True) - low
    unit = torch.full_like(span, kind.unit)
    units = span / unit
    per_unit = torch.where((span >= SMALLEST) & span.isfinite(), unit / span, 0)
    most_base = -low * per_unit
    counted = ((blocks - low) * per_unit).round_()
    total = counted.sum(2, keepdim=True)

    scale, base, codes = (torch.zeros_like(low) for _ in range(3))
    best = torch.full_like(low, torch.inf)
    for number in range(len(CANDIDATES) + 1):
        if number < len(CANDIDATES):
            inv_scale = torch.full_like(low, (kind.top + CANDIDATES[number]) / kind.unit)
            s0, s1, s2 = _sums(counted, torch.zeros_like(low), inv_scale, 0, kind.top)
        else:
            s0, s1, s2 = _sums(counted, base, _inverse(scale), 0, kind.top)
        denominator = n * s1 - s0 * s0
        s = (n * s2 - total * s0) / denominator
        b = (total - s * s0) / n
        bound = b > most_base
        s = torch.where(bound, (s2 - most_base * s0) / s1, s)
        b = torch.where(bound, most_base, b)
        cost = s * (s * s1 + 2 * b * s0 - 2 * s2) + b * (n * b - 2 * total)
        better = (denominator > 0) & (cost < best)
        best, scale, base, codes = (
            torch.where(better, new, old) for new, old in ((cost, best), (s, scale), (b, base), (s0, codes))
        )

    known = per_unit > 0
    real = torch.where(known, scale * units, 0).clamp_(min=0).add_(0)
    minimum = torch.where(known, -(low + base * units), -low).clamp_(min=0).add_(0)
    most, least = real.amax(1, keepdim=True), minimum.amax(1, keepdim=True)
    d, dmin = (rounded_to_half(one / _full(one, kind.scale_top)) for one in (most, least))

    best.fill_(torch.inf)
    scale_code, low_code = torch.zeros_like(low), torch.zeros_like(low)
    exact = torch.where(d > 0, real / d, 0).clamp_(0, kind.scale_top).floor_()
    for up in (0, 1):
        code = (exact + up).clamp_(0, kind.scale_top)
        s = d * code * per_unit
        inv_scale = _inverse(s)
        fitted = -(low + (total - s * codes) / n * units)
        wanted = torch.where(known, fitted, minimum)
        start = torch.where(dmin > 0, wanted / dmin, 0).clamp_(0, kind.scale_top).round_()
        for beside in (0, -1, 1):
            minimum_code = (start + beside).clamp_(0, kind.scale_top)
            b = -(dmin * minimum_code + low) * per_unit
            s0, s1, s2 = _sums(counted, b, inv_scale, 0, kind.top)
            cost = s * (s * s1 + 2 * b * s0 - 2 * s2) + b * (n * b - 2 * total)
            better = cost < best
            best, scale_code, low_code = (
                torch.where(better, new, old)
                for new, old in ((cost, best), (code, scale_code), (minimum_code, low_code))
            )
    return scale_code, low_code, d, dmin


def symmetric(blocks: Tensor, kind: Symmetric) -> tuple[Tensor, Tensor]:
    """float32 [B, groups, width] -> integer scales [B, groups, 1] and their fp16 unit [B, 1, 1]; float32."""
    largest = _largest(blocks, 2)
    per_unit = torch.where(largest.abs() >= SMALLEST, torch.full_like(largest, kind.unit) / largest, 0)
    counted = (blocks * per_unit).round_()
    nothing = torch.zeros_like(largest)

    scale, best = torch.zeros_like(largest), torch.zeros_like(largest)
    for candidate in CANDIDATES:
        inv_scale = torch.full_like(largest, -(kind.half + candidate) / kind.unit)
        _, s1, s2 = _sums(counted, nothing, inv_scale, -kind.half, kind.half - 1)
        s = torch.where(s1 > 0, s2 / s1, 0)
        gain = s * s2
        better = gain > best
        best, scale = torch.where(better, gain, best), torch.where(better, s, scale)

    real = torch.where(per_unit != 0, scale / per_unit, 0)
    first = _largest(real, 1)
    d = rounded_to_half((first / _full(first, kind.least)).add_(0))

    best.fill_(torch.inf)
    scale_code = torch.zeros_like(largest)
    exact = torch.where(d != 0, real / d, 0).clamp_(kind.least, kind.most).floor_()
    for up in (0, 1):
        code = (exact + up).clamp_(kind.least, kind.most)
        s = d * code * per_unit
        _, s1, s2 = _sums(counted, nothing, _inverse(s), -kind.half, kind.half - 1)
        cost = s * (s * s1 - 2 * s2)
        better = cost < best
        best, scale_code = torch.where(better, cost, best), torch.where(better, code, scale_code)
    return scale_code, d


def codes(blocks: Tensor, scale: Tensor, minimum: Tensor, low: int, high: int) -> Tensor:
    """The nearest codes, from ``low`` counted: uint8 [B, groups, width]."""
    return ((blocks + minimum) * _inverse(scale)).clamp_(low, high).round_().sub_(low).to(torch.uint8)


def _sums(counted: Tensor, base: Tensor, inv_scale: Tensor, low: int, high: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of codes, of their squares, of their products with the weights; [B, groups, 1]."""
    codes = ((counted - base) * inv_scale).clamp_(low, high).round_()
    return codes.sum(2, keepdim=True), (codes * codes).sum(2, keepdim=True), (codes * counted).sum(2, keepdim=True)


def _inverse(values: Tensor) -> Tensor:
    return torch.where(values != 0, torch.ones_like(values) / values, 0)


def _largest(values: Tensor, dim: int) -> Tensor:
    """The value of largest magnitude, the first of equals."""
    return values.gather(dim, values.abs().argmax(dim, keepdim=True))


def _full(like: Tensor, value: int) -> Tensor:
    """A tensor to divide by: CUDA multiplies by the reciprocal of a Python number."""
    return torch.full_like(like, value)
