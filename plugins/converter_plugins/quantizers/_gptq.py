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

from converter_core.api import split_tokens

from . import _loops

if TYPE_CHECKING:
    from converter_core.api import Parts

DAMPINGS = (0.03, 0.1, 0.3, 1.0)
"""Of the mean of H's diagonal, added to it; the one whose expected error on the held-out tokens is the least."""

LEAST_TOKENS = 64
LEAST_HELD_OUT = 128
"""Tokens beside factors, all of which are held out."""

COLUMNS_TRIED = 1024
"""At least so many columns are looked at to choose the damping."""

GROUP = 128
RUN = 128
"""Columns between two products with the whole rest of the factor."""

TO_INT8, TO_E4M3, TO_E2M1 = range(3)
"""Which numbers the compiled loop rounds to; as in ``_loops.c``."""

Nearest = Callable[[Tensor, Tensor], Tensor]
"""(values [rows, n], unit [rows, 1]) -> the nearest values that can be stored, float32."""

Units = Callable[[Tensor, Tensor], Tensor]
"""(columns of a block about to be rounded [rows, width], how much each counts [width]) -> its unit [rows, 1]."""


def prepared(inputs: Parts, by_activity: bool) -> Parts:
    """What all weights that share an input have in common. Empty if it is all zero.

    inputs: the input's ``tokens`` [T, K]; H comes from them, or from its ``factors`` [R, K] and ``mean_square`` [K].
    order: int64 [K], the columns as they are held. factor: float32 [K, K], L with each column over its diagonal.
    gains: float32 [K], the squares of that diagonal. held: float32 [K, tokens], held-out tokens.
    """
    factors = inputs.get("factors")
    seen, held = (part.float() for part in split_tokens(inputs["tokens"], has_factors=factors is not None))
    moments = _Moments(seen, None) if factors is None else _Moments(factors.float(), inputs["mean_square"].float())
    if by_activity:
        order = moments.diagonal.argsort(stable=True)
    else:
        order = torch.arange(seen.shape[1] - 1, -1, -1, device=seen.device)
    moments, held = moments.of(order), held[:, order].t().contiguous()
    lower = _decomposed(moments, held)
    if lower is None:
        return {}
    gains = lower.diagonal().square()
    factor = lower.div_(lower.diagonal().clone()).contiguous()  # LAPACK's is column by column
    return {"order": order, "factor": factor, "gains": gains, "held": held}


class _Moments:
    """``H``, not yet multiplied out: the mean of ``x x^T`` over tokens [T, K], or factors beside its diagonal."""

    def __init__(self, rows: Tensor, mean_square: Tensor | None) -> None:
        """mean_square: of all tokens, [K]; None: the rows are tokens."""
        self.rows = rows
        self.mean_square = mean_square

    @property
    def diagonal(self) -> Tensor:
        if self.mean_square is None:
            return self.rows.square().mean(0)
        return torch.maximum(self.mean_square, self.rows.square().sum(0))

    def of(self, columns: Tensor) -> _Moments:
        return _Moments(self.rows[:, columns], None if self.mean_square is None else self.mean_square[columns])

    def thinned(self, step: int) -> _Moments:
        """One in ``step`` of the columns, and of the tokens as well, so that there are as many for each column."""
        columns = torch.arange(0, self.rows.shape[1], step, device=self.rows.device)
        fewer = _Moments(self.rows[::step], None) if self.mean_square is None else self
        return fewer.of(columns)

    def matrix(self) -> Tensor:
        product = self.rows.t() @ self.rows
        if self.mean_square is None:
            return product.div_(len(self.rows))
        product.diagonal().copy_(self.diagonal)
        return product


def _decomposed(moments: _Moments, held: Tensor) -> Tensor | None:
    """The Cholesky factor with the best damping; None where there is nothing to decompose.

    The damping of a wide input is found on some of its columns: three decompositions of the whole would take longer
    than all the rest.
    """
    step = max(1, len(held) // COLUMNS_TRIED)
    hessian = moments.thinned(step).matrix() if step > 1 else moments.matrix()
    best = _best_damping(hessian, held[::step])
    if best is None:
        return None
    if step > 1:
        hessian = moments.matrix()
    start = DAMPINGS.index(best)
    for damping in DAMPINGS[start:]:
        lower = _cholesky(hessian, damping)
        if lower is not None:
            return lower
    return None


def _best_damping(hessian: Tensor, held: Tensor) -> float | None:
    """None where nothing can be decomposed.

    A rounding error of one step in every column changes the held-out outputs by ``|diag(L) L^-1 x|^2``. That has one
    minimum over the damping, so that the walk from the second one stops where it rises.
    """

    def error_of(damping: float) -> float:
        lower = _cholesky(hessian, damping)
        if lower is None:
            return torch.inf
        reached = torch.linalg.solve_triangular(lower, held, upper=False).square().sum(1)
        return float((reached * lower.diagonal().square()).sum())

    weakest, first, *stronger = DAMPINGS
    least, best = error_of(first), first
    for damping in stronger:
        error = error_of(damping)
        if error >= least and least < torch.inf:
            break
        least, best = error, damping
    if best == first and error_of(weakest) < least:
        best = weakest
    return best if least < torch.inf else None


def _cholesky(hessian: Tensor, damping: float) -> Tensor | None:
    mean = hessian.diagonal().mean()
    if not mean > 0:
        return None
    trial = hessian.clone()
    trial.diagonal().add_(mean, alpha=damping)
    lower, failed = torch.linalg.cholesky_ex(trial)
    return None if failed else lower


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
