"""Who does the jobs of a run: an executor has workers, and each belongs to one thread of this process.

Two protocols, and no kind of plugins: an executor writes what the journal will claim, and must know all of the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from ..planning.jobs import Export, Job
from .job_runner import MadeOf


class WorkerLost(Exception):
    """A worker died with its job: another one is to do it."""


class JobWorker(Protocol):
    """For one thread."""

    def ready(self) -> None:
        """Returns once it can do a job; leaves as ``WorkerPool.check_wanted`` does."""
        ...

    def do(self, job: Job, exports: Sequence[Export]) -> MadeOf:
        """exports: those of the job that are to be made. Raises WorkerLost, or what is wrong with the job."""
        ...


class Executor(Protocol):
    count: int
    """Workers."""

    def worker(self, number: int) -> AbstractContextManager[JobWorker]:
        """Entered and left by the thread that uses it."""
        ...

    def wake(self) -> None:
        """The run is over: let through who waits for something."""
        ...
