"""NaN and infinity stop a run: no scheme can store them, and a scale made of one ruins a whole row."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from ..api.tensors import torch_dtype, upcast
from ..api.values import FLOATING
from ..errors import ConversionError

if TYPE_CHECKING:
    from torch import Tensor

_CHECKED = frozenset(torch_dtype(name) for name in FLOATING)

_FIRST_BAD = {torch.float8_e4m3fn: 0x7F, torch.float8_e5m2: 0x7C}
"""From which code on, whatever the sign, floats of 8 bits are not finite: E4M3 has one NaN and no infinity."""


def check_finite(tensor: Tensor, name: str, row: int, what: str = "") -> None:
    """Raise a ConversionError with the first position of a NaN or an infinity.

    row: where the tensor starts in the whole one. A sum shows both at the price of one pass; it may overflow by
    itself, so only a suspicious one is looked at closely.
    """
    if tensor.dtype not in _CHECKED or _looks_finite(tensor):
        return
    bad = ~torch.isfinite(upcast(tensor))
    if not bool(bad.any()):
        return
    position = torch.nonzero(bad)[0].tolist()
    value = upcast(tensor)[tuple(position)].item()
    if position:
        position[0] += row
    reason = what or "mend or exclude it in the source checkpoint"
    raise ConversionError(f"{name}: {value} at {position}; {reason}")


def _looks_finite(tensor: Tensor) -> bool:
    first = _FIRST_BAD.get(tensor.dtype)
    if first is None or not tensor.numel():
        return math.isfinite(tensor.sum().item()) if first is None else True
    # nothing sums these: the largest code without a sign and the largest with one
    return tensor.view(torch.int8).amax().item() < first and tensor.view(torch.uint8).amax().item() < first | 0x80
