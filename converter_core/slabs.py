"""One weight from its sources to its outputs, slab by slab.

A slab is a run of rows that quantizer and target both agree to; within it the quantizer may work on finer pieces. No
slab height shows in the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .checkpoint import Checkpoint
from .errors import ConversionError
from .finite import check_finite
from .interfaces import Lane, ModelAdapter, Target
from .keep import Keep
from .plan import Job
from .specs import OutputTensor, TensorSpec
from .tensors import dtype_name, raw, torch_dtype, typed

if TYPE_CHECKING:
    from torch import Tensor

    from .specs import Parts

ALIGNMENT = 64
READ_AHEAD = 16 << 20

# What one element of a piece may take beside its source bytes: a float32 copy and three temporaries of that size.
WORKING_BYTES = 16


@dataclass(frozen=True)
class Cut:
    """How a job is cut. slab, piece: rows; piece divides slab. nbytes: what it takes in memory at a time."""

    slab: int
    piece: int
    nbytes: int


def cut(job: Job, slab_bytes: int, budget: int) -> Cut:
    """Slabs of about ``slab_bytes`` of source, lower where the budget asks for it; whole where it must be."""
    rows = job.outcome.spec.shape[0] if job.outcome.spec.shape else 1
    tile, fine = job.outcome.tile, job.quantizer.row_tile
    row_source = -(-job.source_nbytes // max(rows, 1))
    row_working = job.outcome.spec.numel // max(rows, 1) * WORKING_BYTES
    row_output = -(-sum(output.spec.nbytes for output in job.outputs) // max(rows, 1))

    def nbytes(slab: int, piece: int) -> int:
        return piece * (row_source + row_working) + 2 * slab * row_output

    if tile is None or not fine:
        return Cut(rows, rows, nbytes(rows, rows))

    def fit(limit: int, per_row: int, step: int) -> int:
        return max(1, limit // max(per_row, 1) // step) * step

    piece = min(fit(slab_bytes, row_source, fine), fit(budget // 2, row_source + row_working, fine))
    slab = min(fit(slab_bytes, row_source, tile), fit(budget // 2, 2 * row_output, tile))
    slab = min(slab, -(-rows // tile) * tile)
    piece = min(piece, slab)
    return Cut(slab, piece, nbytes(slab, piece))


class Worker:
    """What one thread needs to do jobs."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        adapter: ModelAdapter,
        target: Target,
        lane: Lane,
        advance: Callable[[int], None],
    ) -> None:
        """advance: told of the source bytes of each finished stretch; raises to stop."""
        self.checkpoint = checkpoint
        self.adapter = adapter
        self.target = target
        self.lane = lane
        self.advance = advance

    def run(self, job: Job, cut: Cut, write: Callable[[str, int, memoryview], None]) -> None:
        """``write(key, at, data)``: in order for each key. Raises ConversionError naming the tensor."""
        task = _Task(self, job, cut)
        given = {name: self.lane.upload(tensor) for name, tensor in job.quantizer.inputs(job.info).items()}
        if job.outcome.two_pass:
            given.update(task.statistic())
        once: dict[str, bytes] = {}
        for start, stop in task.slabs():
            parts = task.quantized(start, stop, given)
            encoded = self.target.encode(job.quantizer.format, parts)
            if unplanned := encoded.keys() - {output.role for output in job.outputs}:
                raise ConversionError(
                    f"{job.info.name}: {job.quantizer.name} made {', '.join(sorted(unplanned))} of it, though not of "
                    "zeros; quantize must not branch on values"
                )
            stored = self.lane.download({role: tensor.contiguous() for role, tensor in encoded.items()})
            for output in job.outputs:
                self._write(task, output, stored, start, write, once)
            self.advance(task.nbytes(stop - start))

    def _write(
        self,
        task: _Task,
        output: OutputTensor,
        stored: Parts,
        start: int,
        write: Callable[[str, int, memoryview], None],
        once: dict[str, bytes],
    ) -> None:
        job = task.job
        if output.role not in stored:
            raise ConversionError(
                f"{output.key}: {job.quantizer.name} made no {output.role} of it, though it did of zeros"
            )
        tensor = stored[output.role]
        tile = job.outcome.tile or 1
        at = start // tile * output.tile_nbytes
        expected = output.spec.nbytes
        if output.tile_nbytes:
            expected = min(task.cut.slab // tile * output.tile_nbytes, expected - at)
        data = raw(tensor)
        if tensor.dtype != torch_dtype(output.spec.dtype) or len(data) != expected:
            raise ConversionError(
                f"{output.key}: rows from {start} came out as {dtype_name(tensor.dtype)} {list(tensor.shape)}, which "
                f"is not their share of {output.spec}; {job.quantizer.name} or {self.target.name} does not do with "
                "data what it does with zeros"
            )
        cast = not isinstance(job.quantizer, Keep) or job.quantizer.dtype is not None
        if cast:
            what = f"it does not fit into {output.spec.dtype}; choose a wider target.dtype"
            check_finite(tensor, output.key, start, what)
        if output.tile_nbytes or start == 0:
            write(output.key, at, data)
        if not output.tile_nbytes and task.cut.slab < task.rows:
            if start == 0:
                once[output.key] = bytes(data)
            elif once[output.key] != data:
                names = f"{job.quantizer.name} or {self.target.name}"
                raise ConversionError(f"{output.key}: differs between slabs; row_tile of {names} is not true")


class _Task:
    """A job under way: reads runs of rows, keeps the last one, joins pieces."""

    def __init__(self, worker: Worker, job: Job, cut: Cut) -> None:
        self.worker = worker
        self.job = job
        self.cut = cut
        self.rows = job.outcome.spec.shape[0] if job.outcome.spec.shape else 1
        self._last: tuple[int, int, Tensor] | None = None
        self._checked = 0
        self._advised: dict[str, int] = {}

    def slabs(self) -> Iterator[tuple[int, int]]:
        return _runs(0, self.rows, self.cut.slab)

    def nbytes(self, rows: int) -> int:
        return self.job.source_nbytes * rows // max(self.rows, 1)

    def statistic(self) -> Parts:
        """Over the whole weight; pieces are combined by maximum."""
        total: dict[str, Tensor] = {}
        for start, stop in _runs(0, self.rows, self.cut.piece):
            for name, value in self.job.quantizer.statistic(self._weight(start, stop)).items():
                total[name] = torch.maximum(total[name], value) if name in total else value
            self.worker.advance(0)
        return total

    def quantized(self, start: int, stop: int, given: Mapping[str, Tensor]) -> Parts:
        quantizer = self.job.quantizer
        if stop - start <= self.cut.piece:
            return quantizer.quantize(self._weight(start, stop), **given)
        fine = quantizer.row_tile or 1
        whole: dict[str, Tensor] = {}
        for first, last in _runs(start, stop, self.cut.piece):
            # copied before the next read: a part may be a view of the staging buffer
            for role, part in quantizer.quantize(self._weight(first, last), **given).items():
                if role not in self.job.outcome.joined:
                    whole.setdefault(role, part.clone())
                    continue
                height = part.shape[0] // -(-(last - first) // fine)
                if role not in whole:
                    whole[role] = part.new_empty((-(-(stop - start) // fine) * height, *part.shape[1:]))
                at = (first - start) // fine * height
                whole[role][at : at + part.shape[0]].copy_(part)
        return whole

    def _weight(self, start: int, stop: int) -> Tensor:
        """Rows of the assembled weight; the last run is kept, so that a statistic pass over all of it is one read."""
        if self._last is None or self._last[:2] != (start, stop):
            self._last = None
            self._last = (start, stop, self.worker.adapter.assemble(self._read(start, stop)))
        return self._last[2]

    def _read(self, start: int, stop: int) -> Parts:
        checkpoint, lane = self.worker.checkpoint, self.worker.lane
        spans: list[tuple[str, str, TensorSpec, int, int]] = []
        end = 0
        for role, source in self.job.info.sources.items():
            spec = checkpoint.tensors[source.key]
            begin = 0
            if source.by_rows and spec.shape and stop - start < self.rows:
                row = spec.nbytes // max(spec.shape[0], 1)
                begin, spec = start * row, spec.rows(stop - start)
            spans.append((role, source.key, spec, begin, end))
            end += -(-spec.nbytes // ALIGNMENT) * ALIGNMENT
        host = lane.buffer(end)
        buffer = raw(host)
        for _, key, spec, begin, at in spans:
            checkpoint.read(key, begin, buffer[at : at + spec.nbytes])
            self._read_ahead(key, begin + spec.nbytes)
        device = lane.upload(host)
        sources = {role: typed(device[at : at + spec.nbytes], spec) for role, _, spec, _, at in spans}
        if stop > self._checked:
            for role, key, _, _, _ in spans:
                check_finite(sources[role], f"{checkpoint.file_of(key)}: {key!r}", start)
            self._checked = stop
        return sources

    def _read_ahead(self, key: str, at: int) -> None:
        """Keeps the file system at least half of ``READ_AHEAD`` ahead of byte ``at`` of a tensor."""
        if at + READ_AHEAD // 2 > self._advised.get(key, 0):
            begin = max(at, self._advised.get(key, 0))
            self._advised[key] = at + READ_AHEAD
            self.worker.checkpoint.will_need(key, begin, at + READ_AHEAD - begin)


def _runs(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """Half-open runs of rows; one empty run where there are no rows."""
    if start >= stop:
        yield start, stop
    for first in range(start, stop, max(step, 1)):
        yield first, min(first + step, stop)
