"""Many conversions: jobs of one source as one read, each with a state of its own; what fails is its job alone."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ConversionError, ConverterError
from ..planning.batch import groups_of, together
from ..planning.components import make_plans
from ..planning.plan import Plan
from ..plugins.registry import Registry, load_plugins
from ..recipe.batch import Batch, load_batch
from .convert import convert
from .executors import connected
from .result import OutputResult
from .worker_pool import POLL, Progress

PENDING, RUNNING, DONE, SKIPPED, FAILED = "pending", "running", "done", "skipped", "failed"


@dataclass(frozen=True)
class JobResult:
    """What became of a job of a batch.

    state: ``done``; ``skipped``: all of it had been done before; ``failed``: see ``error``. While the batch runs also
    ``pending`` and ``running``. read_with: jobs whose outputs were made of the same read.
    """

    name: str
    state: str = PENDING
    outputs: tuple[OutputResult, ...] = ()
    error: Exception | None = None
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    read_with: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        error = self.error
        problems = list(error.problems) if isinstance(error, ConverterError) else [f"{type(error).__name__}: {error}"]
        return {
            "job": self.name,
            "state": self.state,
            **({"error": {"kind": type(error).__name__, "problems": problems}} if error is not None else {}),
            "outputs": [output.as_dict() for output in self.outputs],
            "seconds": self.seconds,
            "warnings": list(self.warnings),
            "read_with": list(self.read_with),
        }


@dataclass(frozen=True)
class BatchResult:
    """What a batch did, job by job, in the order of the file."""

    jobs: tuple[JobResult, ...]
    seconds: float

    @property
    def failed(self) -> tuple[JobResult, ...]:
        return tuple(job for job in self.jobs if job.state == FAILED)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"jobs": [job.as_dict() for job in self.jobs], "seconds": self.seconds}


def convert_batch(
    batch: Batch | Mapping[str, Any] | Sequence[Any] | str | Path,
    *,
    registry: Registry | None = None,
    overrides: Mapping[str, Any] | None = None,
    at_once: int | None = None,
    changed: Callable[[int, JobResult], None] | None = None,
    progress: Callable[[str, Progress], None] | None = None,
) -> BatchResult:
    """Convert every job of a batch. Jobs of the same source are converted together, and it is read once.

    batch: the path of a batch file, a mapping in its schema, or a list of recipes. overrides: dotted key -> value, of
    every job. at_once: conversions that run side by side; None: as the batch says. changed: called with the number of a
    job and its new state; progress: with the name of a job and how far its conversion is; never two calls at a time.

    A job that fails keeps no other from being done; what is wrong with the batch itself raises a RecipeError before
    any job begins. The same call again goes on where this one stopped.
    """
    started = time.monotonic()
    registry = registry or load_plugins()
    asked = batch if isinstance(batch, Batch) else load_batch(batch, overrides, registry)
    run = _Batch(asked, registry, changed, progress)
    run.run(at_once or asked.at_once)
    return BatchResult(tuple(run.results), round(time.monotonic() - started, 3))


class _Stopped(BaseException):
    """The batch is over before this conversion is."""


class _Batch:
    def __init__(
        self,
        batch: Batch,
        registry: Registry,
        changed: Callable[[int, JobResult], None] | None,
        progress: Callable[[str, Progress], None] | None,
    ) -> None:
        self.jobs = batch.jobs
        self.registry = registry
        self.results = [JobResult(job.name) for job in batch.jobs]
        self._changed = changed
        self._progress = progress
        self._telling = threading.Lock()
        self._planning = threading.Lock()
        self._over = threading.Event()

    def run(self, at_once: int) -> None:
        groups = groups_of(self.jobs)
        with connected([job.recipe.performance.executor for job in self.jobs]):
            self._run_all(groups, at_once)

    def _run_all(self, groups: Sequence[Sequence[int]], at_once: int) -> None:
        if at_once == 1 or len(groups) == 1:
            for group in groups:
                self._run(group)
            return
        with ThreadPoolExecutor(at_once) as pool:
            waiting = {pool.submit(self._run, group) for group in groups}
            try:
                while waiting:  # in pieces: a signal comes through between two
                    waiting = {one for one in waiting if not one.done() or one.result()}
                    wait(waiting, POLL, FIRST_COMPLETED)
            finally:
                self._over.set()
                pool.shutdown(cancel_futures=True)

    def _run(self, group: Sequence[int]) -> None:
        """A group as one conversion; if that cannot be planned or fails, the sound ones of it, or one by one."""
        if self._over.is_set():
            return
        for number in group:
            self._set(number, state=RUNNING)
        try:
            self._convert(group)
        except _Stopped:
            for number in group:
                self._set(number, state=PENDING)
        except BaseException as error:
            if not isinstance(error, Exception):  # a signal: what is finished is kept
                for number in group:
                    self._set(number, state=PENDING)
                raise
            if len(group) == 1:
                self._set(group[0], state=FAILED, error=error)
                return
            self._apart(group)

    def _apart(self, group: Sequence[int]) -> None:
        sound = []
        for number in group:
            try:
                for plan in self._plans([number]):
                    plan.close()
            except Exception as error:
                self._set(number, state=FAILED, error=error)
            else:
                sound.append(number)
        if len(sound) < len(group):
            if sound:
                self._run(sound)
            return
        for number in group:  # what one of them has finished is not made again
            self._run([number])

    def _plans(self, group: Sequence[int]) -> tuple[Plan, ...]:
        with self._planning:
            recipe = together([self.jobs[number].recipe for number in group], self.registry)
            return make_plans(recipe, self.registry, require_device=True)

    def _convert(self, group: Sequence[int]) -> None:
        started = time.monotonic()
        name = ", ".join(self.jobs[number].name for number in group)

        def progress(event: Progress) -> None:
            if self._over.is_set():
                raise _Stopped
            if self._progress is not None:
                with self._telling:
                    self._progress(name, event)

        with ExitStack() as stack:
            plans = [stack.enter_context(plan) for plan in self._plans(group)]
            result = convert(plans, progress=progress)
        seconds = round(time.monotonic() - started, 3)
        for number in group:
            outputs = tuple(output for output in result.outputs if self._is_of(number, output))
            state = SKIPPED if all(output.status == "already done" for output in outputs) else DONE
            others = tuple(self.jobs[other].name for other in group if other != number)
            self._set(number, state=state, outputs=outputs, seconds=seconds, warnings=result.warnings, read_with=others)

    def _is_of(self, number: int, output: OutputResult) -> bool:
        """By its folder: no two jobs of a batch share one, nor lies one in the other's."""
        folders = [Path(one.output.path) for one in self.jobs[number].recipe.exports]
        return any(Path(output.output).is_relative_to(folder) for folder in folders)

    def _set(self, number: int, **changes: Any) -> None:
        error = changes.get("error")
        if isinstance(error, OSError) and error.filename is not None:
            changes["error"] = ConversionError(f"{os.fsdecode(error.filename)}: {error.strerror or error}")
        with self._telling:
            self.results[number] = replace(self.results[number], **changes)
            if self._changed is not None:
                self._changed(number, self.results[number])
