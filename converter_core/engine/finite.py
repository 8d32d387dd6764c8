"""NaN and infinity stop a run: no scheme can store them, and a scale made of one ruins a whole row."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from ..api.tensors import torch_dtype
from ..api.values import FLOATING
from ..errors import ConversionError

if TYPE_CHECKING:
    from torch import Tensor

_CHECKED = frozenset(torch_dtype(name) for name in FLOATING)


def check_finite(tensor: Tensor, name: str, row: int, what: str = "") -> None:
    """Raise a ConversionError with the first position of a NaN or an infinity.

    row: where the tensor starts in the whole one. A sum shows both at the price of one pass; it may overflow by
    itself, so only a suspicious one is looked at closely.
    """
    if tensor.dtype not in _CHECKED or math.isfinite(tensor.sum().item()):
        return
    bad = ~torch.isfinite(tensor)
    if not bool(bad.any()):
        return
    position = torch.nonzero(bad)[0].tolist()
    value = tensor[tuple(position)].item()
    if position:
        position[0] += row
    reason = what or "mend or exclude it in the source checkpoint"
    raise ConversionError(f"{name}: {value} at {position}; {reason}")
