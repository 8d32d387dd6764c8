"""Rows of several tensors, read into one staging buffer and put on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..api.devices import DeviceStream
from ..api.tensors import raw, typed
from ..api.values import TensorSpec
from ..planning.jobs import BoundTensor
from ..planning.stores import Stores
from .source_sums import SourceSums

if TYPE_CHECKING:
    from ..api.values import Parts

ALIGNMENT = 64
READ_AHEAD = 16 << 20


@dataclass(frozen=True)
class _Span:
    """Bytes of one tensor, and where they go in the buffer."""

    role: str
    bound: BoundTensor
    begin: int
    nbytes: int
    at: int


class Reader:
    """For one thread. What it returns is valid until it reads again, unless it has a buffer of its own each time.

    sums: is told of everything that is read. unchecked: roles whose values, of what was read last, may
    not be finite.
    """

    def __init__(
        self, stores: Stores, stream: DeviceStream, own_buffer: bool = False, sums: SourceSums | None = None
    ) -> None:
        self.stores = stores
        self.stream = stream
        self.own_buffer = own_buffer
        self.sums = sums
        self.unchecked: frozenset[str] = frozenset()
        self._advised: dict[tuple[str, str], int] = {}

    def read(self, sources: Mapping[str, Sequence[BoundTensor]], start: int, stop: int, rows: int) -> Parts:
        """Rows ``start`` to ``stop`` of every source that is by rows, all of every other. rows: of the weight."""
        spans: list[_Span] = []
        placed: dict[str, tuple[int, TensorSpec]] = {}
        end = 0
        for role, several in sources.items():
            first = end
            for bound, begin, nbytes in _pieces(several, start, stop, rows):
                spans.append(_Span(role, bound, begin, nbytes, end))
                end += nbytes
            placed[role] = first, _read_spec(several, start, stop, rows)
            end = -(-end // ALIGNMENT) * ALIGNMENT
        host = torch.empty(end, dtype=torch.uint8) if self.own_buffer else self.stream.buffer(end)
        buffer = raw(host)
        for span in spans:
            file, data = self.stores.file(span.bound.path), buffer[span.at : span.at + span.nbytes]
            file.read(span.bound.ref.key, span.begin, data)
            if self.sums is not None:
                self.sums.add(span.bound, span.begin, data)
            self._read_ahead(span.bound, span.begin + span.nbytes)
        sums = self.sums
        self.unchecked = frozenset(
            span.role for span in spans if sums is None or not sums.finite(span.bound, span.begin + span.nbytes)
        )
        device = self.stream.upload(host)
        return {role: typed(device[at : at + spec.nbytes], spec) for role, (at, spec) in placed.items()}

    def _read_ahead(self, bound: BoundTensor, at: int) -> None:
        """Keeps the file system at least half of ``READ_AHEAD`` ahead of byte ``at`` of a tensor."""
        case = bound.path, bound.ref.key
        if at + READ_AHEAD // 2 > self._advised.get(case, 0):
            begin = max(at, self._advised.get(case, 0))
            self._advised[case] = at + READ_AHEAD
            self.stores.file(bound.path).will_need(bound.ref.key, begin, at + READ_AHEAD - begin)


def _is_cut(several: Sequence[BoundTensor], start: int, stop: int, rows: int) -> bool:
    return several[0].ref.by_rows and bool(several[0].spec.shape) and stop - start < rows


def _pieces(several: Sequence[BoundTensor], start: int, stop: int, rows: int) -> list[tuple[BoundTensor, int, int]]:
    """(tensor, first byte, bytes) of a run of rows of tensors joined along the rows."""
    pieces = []
    top = 0
    cut = _is_cut(several, start, stop, rows)
    for bound in several:
        height = bound.spec.shape[0] if bound.spec.shape else 1
        first, last = (max(start, top) - top, min(stop, top + height) - top) if cut else (0, height)
        top += height
        if last > first:
            offset = bound.ref.rows[0] if bound.ref.rows else 0
            pieces.append((bound, bound.spec.rows(offset + first).nbytes, bound.spec.rows(last - first).nbytes))
    return pieces


def _read_spec(several: Sequence[BoundTensor], start: int, stop: int, rows: int) -> TensorSpec:
    spec = several[0].spec
    if _is_cut(several, start, stop, rows):
        return spec.rows(stop - start)
    return spec.rows(sum(bound.spec.shape[0] for bound in several)) if len(several) > 1 else spec
