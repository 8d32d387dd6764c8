"""A second moment matrix of low rank, gathered in one pass without the matrix itself.

The rows that are held are joined with some more tokens, and of the singular vectors of both together the strongest
stay, each as long as its singular value (Brand 2002, "Incremental singular value decomposition"). The vectors come
from the Gram matrix of the joined rows, which is small. What is dropped is not lost where it matters most: the diagonal
of the whole is known from the sums of squares.
"""

from __future__ import annotations

import torch
from torch import Tensor

PIECES = 4
"""Tokens that are joined at a time, in multiples of the rank: more cost more, and lose less."""


def factors_of(tokens: Tensor, picked: Tensor, rank: int) -> Tensor:
    """Float32 [at most rank, I], of the picked rows of tokens [N, I]."""
    found = torch.zeros(0, tokens.shape[1], device=tokens.device)
    if not rank:
        return found
    for some in picked.split(PIECES * rank):  # type: ignore[no-untyped-call]
        found = compressed(torch.cat([found, tokens[some].float()]), rank)
    return found


def compressed(rows: Tensor, rank: int) -> Tensor:
    """[at most rank, I]: the best approximation of ``rows^T rows`` for rows [R, I]."""
    if len(rows) <= rank:
        return rows
    _, vectors = torch.linalg.eigh((rows @ rows.t()).double())
    strongest: Tensor = vectors[:, -rank:].flip(1).float()
    return strongest.t() @ rows
