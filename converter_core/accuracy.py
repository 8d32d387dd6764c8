"""The source of an output: its weights in slabs of rows, and what was copied from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from .checkpoint import Checkpoint
from .interfaces import ModelAdapter, Target
from .keep import Keep
from .read_back import Read, filled
from .specs import Stored, TensorSpec, WeightInfo
from .tensors import raw, torch_dtype
from .trial import Piece, Trials, common_tile

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
