"""Does jobs in this process: within the byte budget, in slabs that fit the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from ..api.devices import DeviceStream
from ..errors import ConversionError, ConverterError
from ..output.staging import StagedFile
from ..planning.jobs import Export, Job
from ..planning.plan import Plan
from ..planning.slab_size import Cut, cut
from .memory import Budget
from .prepared import Prepared
from .slabs import Worker


@dataclass(frozen=True)
class Made:
    """One job for one output. crc32: of what was written, by key. source: checksum of what was read for it.

    counts: what the quantizer counted.
    """

    crc32: Mapping[str, int]
    source: str
    counts: Mapping[str, int]


MadeOf = Mapping[int, Made]
"""By the number of the output."""


@dataclass(frozen=True)
class Lane:
    """What one thread works with."""

    stream: DeviceStream
    prepared: Prepared
    slab_bytes: int


class JobRunner:
    """Any number of threads, each with a ``lane`` of its own.

    durable: what was written is on the disk before a job counts as done.
    """

    def __init__(self, plan: Plan, open_file: Callable[[Export], StagedFile], *, durable: bool = False) -> None:
        self.plan = plan
        self.budget = Budget(plan.resources.max_memory)
        self._open = open_file
        self._durable = durable
        self._prepared = [Prepared() for _ in plan.resources.devices]

    @contextmanager
    def lane(self, number: int) -> Iterator[Lane]:
        """For the thread that enters it; threads are spread over the devices by their numbers."""
        resources = self.plan.resources
        at = number % len(resources.devices)
        device = resources.devices[at]
        with torch.inference_mode(), resources.backend.stream(device) as stream:
            yield Lane(stream, self._prepared[at], resources.backend.slab_bytes(device))

    def do(self, lane: Lane, job: Job, exports: Sequence[Export], advance: Callable[[int], None]) -> MadeOf:
        """advance: told of source bytes between slabs, and less than nothing if some are done again; raises to stop."""
        share = self.plan.resources.share
        slab_bytes = lane.slab_bytes
        while True:
            how = cut(job, slab_bytes, share)
            advanced = 0

            def counted(nbytes: int) -> None:
                nonlocal advanced
                advanced += nbytes
                advance(nbytes)

            try:
                with self.budget.take(how.nbytes), _told_of(job):
                    return self._attempt(job, exports, how, lane, counted)
            except torch.cuda.OutOfMemoryError as error:
                torch.cuda.empty_cache()
                while slab_bytes and cut(job, slab_bytes, share) == how:
                    slab_bytes //= 2
                if not slab_bytes:
                    raise ConversionError(
                        f"{job.info.name}: does not fit into the memory of {self.plan.resources.name} ({error}); use "
                        "device: cpu"
                    ) from error
                advance(-advanced)

    def _attempt(
        self, job: Job, exports: Sequence[Export], how: Cut, lane: Lane, advance: Callable[[int], None]
    ) -> MadeOf:
        with ExitStack() as stack:
            files = {export.output: stack.enter_context(self._open(export)) for export in exports}

            def write(output: int, key: str, at: int, data: memoryview) -> None:
                files[output].write(key, at, data)

            worker = Worker(self.plan.stores, self.plan.adapter, lane.stream, advance, lane.prepared)
            sums, counts = worker.run(job, exports, how, write)
            for file in files.values() if self._durable else ():
                file.settle()
        return {
            export.output: Made(files[export.output].crc32, sums.of(export), dict(counts[export.output]))
            for export in exports
        }


@contextmanager
def _told_of(job: Job) -> Iterator[None]:
    """What goes wrong names the weight."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except MemoryError as error:
        raise ConversionError(f"{job.info.name}: out of memory; lower max_memory or num_workers") from error
    except ConverterError as error:
        if job.info.name in str(error):
            raise
        raise type(error)(*(f"{job.info.name}: {problem}" for problem in error.problems)) from error
    except Exception as error:
        if hasattr(error, "add_note"):  # Python 3.11
            names = ", ".join(dict.fromkeys(export.quantizer.name for export in job.exports))
            error.add_note(f"while converting {job.info.name} by {names}")
        raise
