"""Error sums of a weight, slab by slab."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..native.loader import KERNEL_DTYPES, kernels_suit, load_kernels
from .result import Worst

_library = load_kernels(
    __file__,
    "_compiled_sums",
    compare=(
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_size_t,
        ctypes.c_size_t,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ),
)

SMALL, LARGE = 1e-25, 1e30
"""Between them a sum of squares in float32 is good; outside, squares underflow or overflow and float64 sums again."""


class ErrorStats:
    """What is summed up over a weight, in float64 but for short runs: it may have a billion elements."""

    def __init__(self) -> None:
        self.error = 0.0
        self.signal = 0.0
        self.cross = 0.0
        self.step: float | None = 0.0
        self.worst = Worst(-1.0, ())

    def add(self, row: int, source: Tensor, decoded: Tensor, step: Tensor | None) -> None:
        """row: where the slab begins in the weight. decoded: float32, in the same shape."""
        if not decoded.numel():
            return
        shape = decoded.shape
        rows = shape[0] if shape else 1
        source, decoded = source.reshape(rows, -1), decoded.reshape(rows, -1)
        compare = _compared if kernels_suit(_library, source) and source.dtype in KERNEL_DTYPES else _compared_by_torch
        (error, signal, cross), reach = compare(source, decoded)
        self.error += error
        self.signal += signal
        self.cross += cross
        self.step = None if step is None or self.step is None else self.step + _squares(step)
        at = int(reach.argmax())
        largest = float(reach[at])
        if largest > self.worst.error:
            there = (decoded[at] - source[at].float()).abs().argmax()
            position = _position(at * decoded.shape[1] + int(there), shape)
            self.worst = Worst(largest, (position[0] + row, *position[1:]) if position else position)

    @property
    def finite(self) -> bool:
        return math.isfinite(self.error)

    @property
    def relative_error(self) -> float:
        return _ratio(math.sqrt(self.error), math.sqrt(self.signal))

    @property
    def sqnr_db(self) -> float:
        if not self.error:
            return math.inf
        return 10 * math.log10(self.signal / self.error) if self.signal else -math.inf

    @property
    def cosine(self) -> float:
        """Between source s and decoded s + e: (s.s + s.e) / (|s| |s + e|)."""
        decoded = max(self.signal + 2 * self.cross + self.error, 0.0)
        if not self.signal and not decoded:
            return 1.0
        return max(-1.0, min(1.0, _ratio(self.signal + self.cross, math.sqrt(self.signal * decoded))))

    @property
    def limit(self) -> float | None:
        return None if self.step is None else _ratio(math.sqrt(self.step), math.sqrt(self.signal))

    @property
    def ok(self) -> bool:
        return self.finite and (self.step is None or self.error <= self.step)


def _position(flat: int, shape: Sequence[int]) -> tuple[int, ...]:
    position = []
    for length in reversed(shape):
        flat, at = divmod(flat, length)
        position.append(at)
    return tuple(reversed(position))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else (math.inf if part else 0.0)


def _squares(values: Tensor) -> float:
    """Sum of squares; a dimension along which a tensor is merely expanded is not gone through."""
    times = 1
    for dim, (length, stride) in enumerate(zip(values.shape, values.stride(), strict=True)):
        if not stride and length:
            values = values.narrow(dim, 0, 1)
            times *= length
    rows = values.reshape(values.shape[0] if values.shape else 1, -1)
    total = float(torch.linalg.vector_norm(rows, dim=1).double().square().sum())
    if not SMALL <= total <= LARGE:
        total = float(torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square().sum())
    return times * total


def _compared(source: Tensor, decoded: Tensor) -> tuple[list[float], Tensor]:
    """The sums of e e, s s and s e of e = decoded - source and s = source; the largest magnitude of e in each row."""
    source, decoded = source.contiguous(), decoded.contiguous()
    sums, reach = torch.zeros(3, dtype=torch.float64), torch.empty(decoded.shape[0])
    arguments = (source.data_ptr(), KERNEL_DTYPES[source.dtype], *decoded.shape, decoded.data_ptr())
    _library.compare(*arguments, sums.data_ptr(), reach.data_ptr())  # type: ignore[union-attr]
    return sums.tolist(), reach


def _compared_by_torch(source: Tensor, decoded: Tensor) -> tuple[list[float], Tensor]:
    error = decoded - source.float()
    e, s = error.double().reshape(-1), source.double().reshape(-1)
    # torch's argmax over all of it would take longer than everything else
    reach = torch.maximum(error.amax(1), error.amin(1).neg_())
    return [float(torch.dot(e, e)), float(torch.dot(s, s)), float(torch.dot(s, e))], reach
