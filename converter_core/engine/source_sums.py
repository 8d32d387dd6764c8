"""Checksums of what is read of the source for a weight, so that an interrupted run can be told from one of other files.

What plugins and recipes name beside it, calibration and LoRAs, is in the fingerprint with all of its content.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from ..api.tensors import raw
from ..native.checksum import Checksum
from ..planning.jobs import BoundTensor, Export, Job
from ..planning.stores import Stores

PIECE = 4 << 20


class SourceSums:
    """Of one job; for one thread. What the job itself reads from beginning to end is not read once more."""

    def __init__(self, stores: Stores, job: Job, exports: Sequence[Export]) -> None:
        self.stores = stores
        self.job = job
        self._sums = {bound: Checksum(bound.spec.dtype) for export in exports for bound in _bound(job, export)}

    def add(self, bound: BoundTensor, begin: int, data: memoryview) -> None:
        """Bytes of a tensor from byte ``begin`` of its file's tensor on. What was added before is left out."""
        sums = self._sums.get(bound)
        if sums is not None and begin - _first(bound) == sums.count:
            sums.update(data)

    def finite(self, bound: BoundTensor, end: int) -> bool:
        """Whether a tensor is known to have neither infinity nor NaN before that byte."""
        sums = self._sums.get(bound)
        return sums is not None and sums.finite and sums.count >= end - _first(bound)

    def of(self, export: Export) -> str:
        """One text for everything that the weight is made of; it reads what was not read yet."""
        whole = Checksum()
        for bound in _bound(self.job, export):
            sums = self._sums[bound]
            if sums.count < bound.spec.nbytes:
                self._read(bound, sums)
            whole.update(memoryview(sums.value.to_bytes(8, "little")))
        for _, given in sorted(export.inputs.items()):
            if isinstance(given, Tensor):
                held = given.cpu().contiguous()
                whole.update(raw(held))
        return f"{whole.value:016x}"

    def _read(self, bound: BoundTensor, sums: Checksum) -> None:
        file, size = self.stores.file(bound.path), bound.spec.nbytes
        rows = bound.spec.shape[0] if bound.spec.shape else 1
        step = PIECE if bound.row_block is not None else size
        if bound.row_block is not None and bound.decoded_from is not None:  # decoded in whole blocks of rows
            block = max(bound.row_block * size // max(rows, 1), 1)
            step = max(PIECE // block, 1) * block
        buffer = memoryview(bytearray(min(step, size)))
        first, at = _first(bound), sums.count
        while at < size:
            data = buffer[: min(step, size - at)]
            file.read(bound.ref.key, first + at, data)
            sums.update(data)
            at += len(data)


def _bound(job: Job, export: Export) -> Iterator[BoundTensor]:
    """In an order that neither layouts nor the other outputs change."""
    for _, several in sorted(job.sources.items()):
        yield from several
    for _, given in sorted(export.inputs.items()):
        if isinstance(given, BoundTensor) and not given.path:
            yield given


def _first(bound: BoundTensor) -> int:
    """Where the rows that are meant begin in the tensor."""
    return bound.spec.rows(bound.ref.rows[0]).nbytes if bound.ref.rows else 0
