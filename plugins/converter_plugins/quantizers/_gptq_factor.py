"""What gptq knows of a layer's inputs: the Cholesky factor of their second moments, damped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from converter_core.api import split_tokens

if TYPE_CHECKING:
    from converter_core.api import Parts

DAMPINGS = (0.03, 0.1, 0.3, 1.0)
"""Of the mean of H's diagonal, added to it; the one whose expected error on the held-out tokens is the least."""

LEAST_TOKENS = 64
LEAST_HELD_OUT = 128
"""Tokens beside factors, all of which are held out."""

COLUMNS_TRIED = 1024
"""At least so many columns are looked at to choose the damping."""


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
