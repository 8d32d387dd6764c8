"""One weight from its sources to the outputs that are made of it, slab by slab.

A slab is a run of rows that all quantizers and targets agree to; within it quantizers may work on finer spans. No slab
height shows in the bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from ..api.devices import DeviceStream
from ..api.models import ModelAdapter
from ..planning.jobs import Export, Job
from ..planning.slab_size import Cut
from ..planning.stores import Stores
from .making import Making, Write
from .prepared import Prepared
from .rows import Rows
from .source_sums import SourceSums


class Worker:
    """What one thread needs to do jobs."""

    def __init__(
        self,
        stores: Stores,
        adapter: ModelAdapter,
        stream: DeviceStream,
        advance: Callable[[int], None],
        prepared: Prepared,
    ) -> None:
        """advance: told of the source bytes of each finished run of rows; raises to stop."""
        self.stores = stores
        self.adapter = adapter
        self.stream = stream
        self.advance = advance
        self.prepared = prepared

    def run(
        self, job: Job, exports: Sequence[Export], cut: Cut, write: Write
    ) -> tuple[SourceSums, Mapping[int, Counter[str]]]:
        """exports: those of the job that are to be made. Raises ConversionError naming the tensor.

        What was read of the source, as checksums; by the number of the output what its quantizer counted.
        """
        sums = SourceSums(self.stores, job, exports)
        source = Rows(self.stores, self.adapter, self.stream, job, sums)
        making: list[Making] = []
        for export in exports:
            twin = next((one for one in making if one.gives(export)), None)
            making.append(Making(export, source, self.prepared, cut, write, twin))
        if any(one.export.schema.two_pass for one in making):
            for start, stop in runs(0, source.rows, cut.span):
                weight = source.weight(start, stop)
                for one in making:
                    one.observe(weight)
                del weight
                self.advance(0)
        for start, stop in runs(0, source.rows, cut.slab):
            for first, last in runs(start, stop, cut.span):
                weight = source.weight(first, last)
                for one in making:
                    one.quantize(weight, first, last, slab=(start, stop))
                del weight  # before the next rows are merged
            for one in making:
                one.store(start, stop)
            for one in making:
                one.parts = {}
            self.advance(job.source_nbytes * (stop - start) // max(source.rows, 1))
        return sums, {one.export.output: (one.twin or one).counts for one in making}


def runs(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """Half-open runs of rows; one empty run where there are no rows."""
    if start >= stop:
        yield start, stop
    for first in range(start, stop, max(step, 1)):
        yield first, min(first + step, stop)
