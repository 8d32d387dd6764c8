"""Rounding that knows the layer's inputs: each column takes up what rounding the columns before it changed.

GPTQ (Frantar et al. 2022, arXiv:2210.17323) in the form of Babai's nearest plane. ``H = E[x x^T]`` of the sampled
tokens, damped, is ``L L^T``; the error of the outputs for an error ``E`` of a row is ``|E L|^2``. Going from the last
column to the first, column j is rounded from ``w_j + sum over i > j of E_i L_ij / L_jj``, which leaves ``L_jj`` times
its own rounding error. So one Cholesky decomposition is all, without an inverse.

Columns are held in the reverse of the order in which they are rounded. Rows are independent, and are worked on
``GROUP`` at a time, always as many, so that a matrix product sees the same shapes whatever the slab.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _loops

if TYPE_CHECKING:
    from converter_core.api import Parts

GROUP = 128
RUN = 128
"""Columns between two products with the whole rest of the factor."""

TO_INT8, TO_E4M3, TO_E2M1 = range(3)
"""Which numbers the compiled loop rounds to; as in ``_loops.c``."""

Nearest = Callable[[Tensor, Tensor], Tensor]
"""(values [rows, n], unit [rows, 1]) -> the nearest values that can be stored, float32."""

Units = Callable[[Tensor, Tensor], Tensor]
"""(columns of a block about to be rounded [rows, width], how much each counts [width]) -> its unit [rows, 1]."""


def fitted(
    weight: Tensor, fit: Parts, width: int, units: Tensor | Units, nearest: Nearest, kind: int
) -> tuple[Tensor, Tensor]:
    """Values that can be stored, float32 [O, I], and their units, [O, blocks].

    width: columns that share a unit. units: those of the rows, [O, 1], or how to choose a block's when it is entered.
    """
    unit = units if isinstance(units, Tensor) else None
    order, factor = fit["order"], fit["factor"]
    held = weight.float()[:, order]
    values, found = torch.empty_like(held), []
    for start in range(0, len(held), GROUP):
        rows = held[start : start + GROUP]
        count = len(rows)
        of_rows = None if unit is None else _padded(unit[start : start + GROUP])
        group, of_group = _fitted_group(_padded(rows), factor, fit["gains"], width, of_rows, units, nearest, kind)
        values[start : start + count] = group[:count]
        found.append(of_group[:count])
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    all_units = torch.cat(found)
    return values[:, back], all_units if unit is not None else all_units.flip(1)


def better_rows(weight: Tensor, fit: Parts, new: Tensor, plain: Tensor) -> Tensor:
    """Rows [O] whose outputs for the held-out tokens are closer with ``new`` than with ``plain``."""
    found = []
    exact = weight.float()
    for start in range(0, len(weight), GROUP):
        rows = slice(start, start + GROUP)
        errors = []
        for values in (new, plain):
            error = _padded(exact[rows] - values[rows])[:, fit["order"]] @ fit["held"]
            errors.append(error.square_().sum(1)[: len(exact[rows])])
        found.append(errors[0] < errors[1])
    return torch.cat(found)


def _padded(rows: Tensor) -> Tensor:
    if len(rows) == GROUP:
        return rows
    return torch.cat([rows, rows.new_zeros(GROUP - len(rows), rows.shape[1])])


def _fitted_group(
    weight: Tensor,
    factor: Tensor,
    gains: Tensor,
    width: int,
    unit: Tensor | None,
    units: Tensor | Units,
    nearest: Nearest,
    kind: int,
) -> tuple[Tensor, Tensor]:
    columns = weight.shape[1]
    errors, values, found = torch.zeros_like(weight), torch.zeros_like(weight), []
    run = RUN if width >= RUN else RUN // width * width
    for end in range(columns, 0, -run):
        begin = max(end - run, 0)
        target = weight[:, begin:end].clone()
        if end < columns:
            target += errors[:, end:] @ factor[end:, begin:end]
        step = min(width, run)
        for stop in range(end - begin, 0, -step):
            start = max(stop - step, 0)
            block = slice(begin + start, begin + stop)
            of_block = unit
            if of_block is None:
                assert not isinstance(units, Tensor)
                of_block = units(target[:, start:stop].contiguous(), gains[block])
                found.append(of_block)
            here = errors[:, block], values[:, block]
            _feed(weight[:, block], target[:, start:stop], factor[block, block], of_block, nearest, kind, *here)
            if start:
                target[:, :start] += errors[:, block] @ factor[block, begin : begin + start]
    return values, unit if unit is not None else torch.cat(found[::-1], 1)


def _feed(
    weight: Tensor,
    target: Tensor,
    factor: Tensor,
    unit: Tensor,
    nearest: Nearest,
    kind: int,
    errors: Tensor,
    values: Tensor,
) -> None:
    """Round a run of columns that share a unit, the last one first; each takes up the errors of those after it."""
    if _loops.suit(weight):
        _loops.feed(kind, weight, target, factor, unit, errors, values)
        return
    target = target.clone()
    for column in range(target.shape[1] - 1, -1, -1):
        here = slice(column, column + 1)
        values[:, here] = nearest(target[:, here], unit)
        errors[:, here] = weight[:, here] - values[:, here]
        target[:, :column] += errors[:, here] * factor[here, :column]
