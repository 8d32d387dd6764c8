"""Worker threads over a queue of jobs: progress by bytes, the first failure stops all, an interrupt waits for them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Job = TypeVar("Job")

POLL = 0.1


@dataclass(frozen=True)
class Progress:
    """done, total: source bytes. resumed: those of them that an earlier run had done. weight: the latest."""

    done: int
    total: int
    resumed: int
    weight: str


class _Stopped(BaseException):
    """Raised in a worker between slabs once the run is over."""


class WorkerPool(Generic[Job]):
    """``lock`` guards ``done``, ``resumed``, ``weight`` and whatever else the workers share."""

    def __init__(self, total: int, progress: Callable[[Progress], None] | None) -> None:
        self.total = total
        self.progress = progress
        self.lock = threading.Lock()
        self.done = 0
        self.resumed = 0
        self.weight = ""
        self._waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._failure: BaseException | None = None

    def advance(self, nbytes: int) -> None:
        """Called by workers between slabs; stops them once the run is over."""
        if self._stop.is_set():
            raise _Stopped
        with self.lock:
            self.done += nbytes

    def resume(self, nbytes: int) -> None:
        """As ``advance``, of what an earlier run has done."""
        with self.lock:
            self.resumed += nbytes
        self.advance(nbytes)

    def put_back(self, job: Job) -> None:
        """A job that has to be done by another worker."""
        self._waiting.put(job)

    def check_wanted(self) -> None:
        """Called by a worker that cannot take a job yet; ends it once the run is over or no job is left."""
        self.advance(0)
        if self._waiting.empty():
            raise queue.Empty

    def run(
        self, jobs: Iterable[Job], count: int, work: Callable[[int, Callable[[], Job]], None], wake: Callable[[], None]
    ) -> None:
        """``work(number, next_job)`` in each of ``count`` threads, until ``next_job`` ends it for want of jobs.

        ``progress`` is called from this thread. ``wake`` lets workers through that wait for something when the run is
        over. Raises what the first failing worker raised.
        """
        for job in jobs:
            self._waiting.put(job)
        threads = [
            threading.Thread(target=self._worker, args=(number, work, self._waiting.get_nowait), daemon=True)
            for number in range(count)
        ]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                for thread in threads:
                    thread.join(POLL / len(threads))
                self._report()
        finally:
            self._stop.set()
            if any(thread.is_alive() for thread in threads):
                wake()
            for thread in threads:
                thread.join()
        self._report()
        if self._failure is not None:
            raise self._failure

    def _worker(self, number: int, work: Callable[[int, Callable[[], Job]], None], next_job: Callable[[], Job]) -> None:
        try:
            work(number, next_job)
        except (queue.Empty, _Stopped):
            pass
        except BaseException as error:
            with self.lock:
                self._failure = self._failure or error
            self._stop.set()

    def _report(self) -> None:
        if self.progress is not None:
            with self.lock:
                event = Progress(self.done, self.total, self.resumed, self.weight)
            self.progress(event)
