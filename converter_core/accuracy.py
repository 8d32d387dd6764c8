"""How far a weight of an output is from its source, told in slabs of rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from .checkpoint import Checkpoint
from .interfaces import ModelAdapter, Target
from .keep import Keep
from .read_back import Read, filled
from .specs import Stored, TensorSpec, WeightInfo
from .tensors import raw, torch_dtype
from .trial import Piece, Trials, common_tile
from .verification_report import Worst

if TYPE_CHECKING:
    from torch import Tensor


COPY_BYTES = 4 << 20


class Source:
    """The weights of the checkpoint that an output was made of."""

    def __init__(
        self, checkpoint: Checkpoint, adapter: ModelAdapter, target: Target, stored: Mapping[str, Stored]
    ) -> None:
        """stored: its weights that are quantized already; their parts can only be compared as they are."""
        self.checkpoint = checkpoint
        self.adapter = adapter
        self.stored = stored
        self.parts = frozenset(
            key for weight in stored.values() for role, key in weight.keys.items() if role != "weight"
        )
        self._trials = Trials(adapter, target)

    def spec(self, info: WeightInfo) -> TensorSpec:
        """Of the assembled weight."""
        pieces = {
            role: Piece(self.checkpoint.tensors[source.key], source.by_rows) for role, source in info.sources.items()
        }
        return self._trials.run(Keep(), pieces, {}).spec

    def nbytes(self, info: WeightInfo) -> int:
        return sum(self.checkpoint.tensors[source.key].nbytes for source in info.sources.values())

    def rows(self, info: WeightInfo, start: int, stop: int) -> Tensor:
        """Rows of the assembled weight; of one without rows, all of it."""
        parts = {}
        for role, source in info.sources.items():
            spec, at = self.checkpoint.tensors[source.key], 0
            if source.by_rows and spec.shape and spec.shape[0]:
                at, spec = start * (spec.nbytes // spec.shape[0]), spec.rows(stop - start)
            parts[role] = filled(self.checkpoint.read, source.key, spec, at)
        return self.adapter.assemble(parts)


class Sums:
    """What is summed up over a weight: rows in float32, all else in float64, for it may have a billion elements."""

    def __init__(self) -> None:
        self.error = 0.0
        self.signal = 0.0
        self.cross = 0.0
        self.step: float | None = 0.0
        self.worst = Worst(-1.0, ())

    def add(self, row: int, source: Tensor, decoded: Tensor, step: Tensor | None) -> None:
        """row: where the slab begins in the weight. decoded: is overwritten."""
        exact = source.to(torch.float32)
        error = decoded.sub_(exact)
        self.error += _squares(error)
        self.signal += _squares(exact)
        self.cross += float(torch.dot(exact.reshape(-1), error.reshape(-1)))
        self.step = None if step is None or self.step is None else self.step + _squares(step)
        self._look_for_worst(row, error)

    def _look_for_worst(self, row: int, error: Tensor) -> None:
        rows = error.reshape(error.shape[0] if error.shape else 1, -1)
        if not rows.numel():
            return
        # torch's argmax over all of it would take longer than everything else
        reach = torch.maximum(rows.amax(1), rows.amin(1).neg_())
        at = int(reach.argmax())
        largest = float(reach[at])
        if largest > self.worst.error:
            flat = at * rows.shape[1] + int(rows[at].abs().argmax())
            position = _position(flat, error.shape)
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
    return times * float(torch.linalg.vector_norm(rows, dim=1).double().square().sum())


def copied_equals(read: Read, key: str, spec: TensorSpec, source: Source, info: WeightInfo, target: Target) -> bool:
    """Whether a stored tensor is what its source gives when it is copied or, as its dtype tells, cast."""
    before = source.spec(info)
    if before.shape != spec.shape:
        return False
    keep = Keep(spec.dtype if spec.dtype != before.dtype else None)
    rows = spec.shape[0] if spec.shape else 1
    tile = common_tile(keep.row_tile, target.row_tile)
    step = max(1, COPY_BYTES * rows // max(spec.nbytes, 1) // tile) * tile if tile else rows
    at = 0
    for start in range(0, rows, max(step, 1)):
        weight = source.rows(info, start, min(start + step, rows))
        (stored,) = target.encode(keep.format, keep.quantize(weight)).values()
        expected = stored.contiguous().reshape(-1).view(torch.uint8)
        if stored.dtype != torch_dtype(spec.dtype) or at + expected.numel() > spec.nbytes:
            return False
        buffer = torch.empty_like(expected)
        read(key, at, raw(buffer))
        if not torch.equal(buffer, expected):
            return False
        at += expected.numel()
    return at == spec.nbytes
