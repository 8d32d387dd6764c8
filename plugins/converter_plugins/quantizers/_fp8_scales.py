"""The best row scale of fp8 within an octave, all 128 bf16 numbers of it tried, for the price of one pass over the row.

What E4M3 makes of a weight ``2^e * m`` at the scale ``2^k * t`` (1 <= m, t < 2) is wrong by ``2^e`` times a function of
``m`` and ``t`` alone. So a row is counted by ``m``, rounded to the seven bits that bf16 has, each weight as ``4^e``,
and the squared error at every ``t`` is one product of these counts with a table. Left out is what the subnormal codes
do to weights 2^14 times smaller than the row's largest. Counts and table are integers whose sums float64 holds: no
order shows.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from . import _loops
from ._bits import by_pieces

BITS = 7
"""Of the mantissas that are told apart, as bf16's."""

OCTAVE = 1 << BITS
"""bf16 numbers from a scale to twice that scale."""

BINADES = 16
"""Powers of two that are told apart, from the one above the row's largest weight, to which it may be rounded."""

EXACT = 26
"""Bits of the counts of a row, all added, and of the table's entries."""


def best_steps(weight: Tensor, amax: Tensor, first: Tensor, shares: Tensor | None = None) -> Tensor:
    """How many bf16 numbers above ``first`` the scale with the least squared error of each row lies, int32 [O, 1].

    amax: the largest magnitude of each row, float32 [O, 1]. first: scales, bf16-representable, that map it to 448.
    shares: by which the squared error of each column counts, int32 [I] whose sum is below 2^31; None: all alike.
    """
    table = _squared_errors(weight.device)
    if _loops.suit(weight):
        return _loops.e4m3_best_steps(weight, amax, first, shares, table)

    def best(rows: Tensor, amax: Tensor, first: Tensor) -> Tensor:
        lowest = (amax.view(torch.int32) >> 23) - (BINADES - 2) << BITS
        bins = rows.float().abs().view(torch.int32).add_(1 << 22 - BITS).bitwise_right_shift_(23 - BITS)
        bins.sub_(lowest).clamp_(min=0)
        counts = torch.zeros(len(rows), BINADES << BITS, dtype=torch.int64, device=rows.device)
        counts.scatter_add_(1, bins.long(), _counted(bins, shares))
        power = torch.arange(0, 2 * BINADES, 2, device=rows.device).view(-1, 1)
        energy = (counts.view(len(rows), BINADES, -1) << power).sum(1)
        total = energy.sum(1, keepdim=True)
        excess = ((total >> torch.arange(64 - EXACT, device=rows.device)) >= 1 << EXACT).sum(1, keepdim=True)
        errors = (energy >> excess).double() @ table
        start = first.view(torch.int32) >> 16 & OCTAVE - 1
        order = (start + torch.arange(OCTAVE, device=rows.device)) % OCTAVE
        return _first_least(errors.gather(1, order)).to(torch.int32)

    return by_pieces(best, weight, amax, first)


def _counted(bins: Tensor, shares: Tensor | None) -> Tensor:
    return torch.ones_like(bins, dtype=torch.int64) if shares is None else shares.long().expand(bins.shape)


def _first_least(errors: Tensor) -> Tensor:
    """The position of the first of the least numbers of each row, [rows, 1]."""
    position = torch.arange(errors.shape[1], device=errors.device)
    least = errors == errors.amin(1, keepdim=True)
    return torch.where(least, position, errors.shape[1]).amin(1, keepdim=True)


@cache
def _squared_errors(device: torch.device) -> Tensor:
    """[128, 128] float64 integers: of a mantissa at a scale's mantissa, in units of 2^-32."""
    mantissa = 1 + torch.arange(OCTAVE, dtype=torch.float64).view(-1, 1) / OCTAVE
    scale = 1 + torch.arange(OCTAVE, dtype=torch.float64) / OCTAVE
    exact = mantissa / scale
    steps = torch.where(exact < 1, 16.0, 8.0)
    error = ((exact * steps).round_() / steps - exact) * scale
    return error.square_().mul_(2.0**32).round_().to(device)
