"""Jobs done by processes of a cluster. Each belongs to a thread here, which journals what its process has written.

A process that dies takes nothing with it but its job, which goes back to the others; what it may still write, should it
live on somewhere unreachable, are the same bytes at the same places.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from ..errors import ConversionError, shown
from ..output.staging import StagedFile
from ..planning.jobs import Export, Job
from ..planning.plan import Plan
from .executor import JobWorker, WorkerLost
from .job_runner import MadeOf
from .remote_worker import Failure, Order
from .worker_pool import POLL, WorkerPool

MOST_DEATHS = 3
"""Workers that may die of one job, or one after the other while they start."""

PATIENCE = 300.0
"""Seconds to wait for a cluster that has not what a single worker needs: it may be growing."""


class Died(Exception):
    """The process of a worker is gone. Its text says what the cluster knows of that."""


class Pending(Protocol):
    def wait(self, seconds: float) -> bool:
        """Whether the answer is there."""
        ...

    def result(self) -> Any:
        """The answer. Raises Died, or what the method raised."""
        ...


class Process(Protocol):
    """A ``RemoteWorker`` somewhere."""

    def ask(self, method: str, *args: Any) -> Pending: ...

    def end(self) -> None: ...


class Cluster(Protocol):
    count: int
    """Workers that a run may have."""

    def start(self) -> Process:
        """Returns at once; what is asked of it waits until there is room for it."""
        ...

    def lacks(self) -> str:
        """What a single worker needs and no node has; empty: nothing."""
        ...


class Remote:
    """The executor of a cluster."""

    def __init__(
        self,
        plan: Plan,
        outputs: Sequence[int],
        open_file: Callable[[Export], StagedFile],
        pool: WorkerPool[Job],
        cluster: Cluster,
    ) -> None:
        jobs = sum(any(export.output in outputs for export in job.exports) for job in plan.jobs)
        self.count = max(1, min(cluster.count, jobs))
        self.order = Order.of(plan, outputs)
        self.number_of = {id(job): number for number, job in enumerate(plan.jobs)}
        self.open_file = open_file
        self.pool = pool
        self.cluster = cluster
        self.plan = plan
        self.deaths: Counter[int] = Counter()
        self.lock = threading.Lock()

    @contextmanager
    def worker(self, number: int) -> Iterator[JobWorker]:
        made = _Far(self)
        try:
            yield made
        finally:
            made.end()

    def wake(self) -> None:
        """Threads look whether the run is over while they wait."""


class _Far:
    def __init__(self, run: Remote) -> None:
        self.run = run
        self.process: Process | None = None
        self.proven = False

    def ready(self) -> None:
        deaths = 0
        while self.process is None:
            process = self.process = self.run.cluster.start()
            try:
                failure = self._answer(process.ask("prepare", self.run.order), self._still_wanted())
            except Died as death:
                self.end()
                deaths += 1
                if deaths == MOST_DEATHS:
                    raise ConversionError(
                        f"{deaths} workers died one after the other before they could begin; the last: {death}"
                    ) from death
            else:
                if failure is not None:
                    raise failure.error()

    def do(self, job: Job, exports: Sequence[Export]) -> MadeOf:
        assert self.process is not None
        number = self.run.number_of[id(job)]
        before = None if self.proven else self._here(exports)
        asked = self.process.ask("do", number, [export.output for export in exports])
        try:
            found = self._answer(asked, lambda: self.run.pool.advance(0))
        except Died as death:
            self.end()
            self._count(job, number, death)
            raise WorkerLost from death
        if isinstance(found, Failure):
            raise found.error()
        if before is not None:
            self._prove(exports, before, found)
        self.run.pool.advance(job.source_nbytes)
        sums: MadeOf = found
        return sums

    def end(self) -> None:
        if self.process is not None:
            self.process.end()
        self.process = None
        self.proven = False

    def _answer(self, asked: Pending, check: Callable[[], None]) -> Any:
        """check: raises where nobody wants the answer any more."""
        while not asked.wait(POLL):
            check()
        return asked.result()

    def _still_wanted(self) -> Callable[[], None]:
        """For one that waits for its place in the cluster."""
        last = time.monotonic()

        def check() -> None:
            nonlocal last
            self.run.pool.check_wanted()
            now = time.monotonic()
            if now - last > PATIENCE:
                last = now
                if lacks := self.run.cluster.lacks():
                    raise ConversionError(f"no worker can start: {lacks}")

        return check

    def _count(self, job: Job, number: int, death: Died) -> None:
        with self.run.lock:
            self.run.deaths[number] += 1
            deaths = self.run.deaths[number]
        if deaths == MOST_DEATHS:
            raise ConversionError(
                f"{shown(job.info.name)}: {deaths} workers died while they converted it; the last: {death}. If memory "
                "ran out, lower performance.max_memory or num_workers"
            ) from death

    def _here(self, exports: Sequence[Export]) -> dict[int, dict[str, int]]:
        """Of what lies in the files as this machine sees them."""
        found: dict[int, dict[str, int]] = {}
        for export in exports:
            with self.run.open_file(export) as file:
                found[export.output] = {
                    tensor.key: file.read_back(tensor.key, tensor.spec.nbytes) for tensor in export.tensors
                }
        return found

    def _prove(self, exports: Sequence[Export], before: Mapping[int, Mapping[str, int]], told: MadeOf) -> None:
        """The first job that changes anything shows whether the worker's files are ours."""
        here = self._here(exports)
        for export in exports:
            for key, crc32 in told[export.output].crc32.items():
                if here[export.output][key] != crc32:
                    path = self.run.plan.outputs[export.output].path
                    raise ConversionError(
                        f"{shown(path)}: what a worker has written there is not there for the driver; output.path must "
                        "lie on a file system that all nodes share"
                    )
                self.proven = self.proven or before[export.output][key] != crc32
