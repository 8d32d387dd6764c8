"""The rows of one weight, read, assembled and merged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..api.contexts import WeightContext
from ..api.devices import DeviceStream
from ..api.models import ModelAdapter
from ..errors import ConversionError
from ..planning.jobs import Job
from ..planning.stores import Stores
from .finite import check_finite
from .merging import Merger
from .reading import Reader
from .source_sums import SourceSums

if TYPE_CHECKING:
    from torch import Tensor

    from ..api.values import Parts


class Rows:
    """The rows of a job's weight. The last run is kept, so that an observing pass over all of it is one read."""

    def __init__(self, stores: Stores, adapter: ModelAdapter, stream: DeviceStream, job: Job, sums: SourceSums) -> None:
        self.stores = stores
        self.adapter = adapter
        self.stream = stream
        self.job = job
        self.sums = sums
        self.rows = job.spec.shape[0] if job.spec.shape else 1
        self.reader = Reader(stores, stream, sums=sums)
        self._context = WeightContext(job.info, job.info.name, job.spec, model=job.model)
        self._merger = Merger(job.terms, stores, stream, self.rows)
        self._last: tuple[int, int, Tensor] | None = None
        self._checked = 0

    def weight(self, start: int, stop: int) -> Tensor:
        if self._last is None or self._last[:2] != (start, stop):
            self._last = None
            sources = self.reader.read(self.job.sources, start, stop, self.rows)
            if stop > self._checked:
                self._check(sources, start)
                self._checked = stop
            weight = self.adapter.assemble(self._context, sources)
            expected = self.job.spec.rows(stop - start).in_memory.shape
            if self.job.spec.shape and weight.shape != expected:
                raise ConversionError(
                    f"{self.job.info.name}: assemble of {self.adapter.name} gives {list(weight.shape)} for rows "
                    f"{start} to {stop - 1}; it must give {list(expected)}"
                )
            self._last = (start, stop, self._merger.merged(weight, start, stop))
        return self._last[2]

    def _check(self, sources: Parts, start: int) -> None:
        for role in sorted(self.reader.unchecked):
            bound = self.job.sources[role][0]
            file = self.stores.file(bound.path).file_of(bound.ref.key)
            check_finite(sources[role], f"{file}: {bound.ref.key!r}", start)
