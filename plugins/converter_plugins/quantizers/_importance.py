"""How much the error of each column counts: by ``E[x^2]`` of what it multiplies, as integers or with mean 1.

The squared error of a layer's output is, where inputs are taken for independent, the squared error of its weight with
the columns weighted so. The bytes of a scheme follow from these numbers, so they are the same on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._bits import halving_sum

COUNTED = 2.0**30
"""About what the integer shares of a row add up to."""


def shares_of(mean_square: Tensor | None) -> Tensor | None:
    """[I] float32 with mean 1; all 1 where nothing ever came in. None stays None."""
    if mean_square is None:
        return None
    size = mean_square.double().clamp(min=0)
    mean = halving_sum(size.clone(), 0) / len(size)
    return torch.where(mean > 0, size / mean, torch.ones_like(size)).float()


def counted(shares: Tensor | None) -> Tensor | None:
    """[I] int32, at least 1, whose sum is below 2^31."""
    if shares is None:
        return None
    return (shares.double() * (COUNTED / len(shares))).round().clamp(1, COUNTED).to(torch.int32)


def of_blocks(shares: Tensor | None, width: int) -> Tensor | None:
    """[I] float32, 1 for the largest of each run of ``width`` columns and at least 2^-12 for the others."""
    if shares is None:
        return None
    blocks = shares.double().view(-1, width)
    amax = blocks.amax(1, keepdim=True)
    relative = torch.where(amax > 0, blocks / amax, torch.ones_like(blocks))
    return relative.clamp(min=2.0**-12).float().view(-1)
