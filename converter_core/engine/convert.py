"""Carry out a plan: workers, progress, resume, publication."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from .. import system
from ..api.quantizers import Quantizer
from ..errors import ConversionError, PlanError, shown
from ..output.manifest import manifest_name
from ..output.staging import StagedFile
from ..planning.components import make_plans
from ..planning.jobs import Export, Job
from ..planning.plan import Plan
from ..plugins.registry import Registry
from ..recipe.load import Recipe
from .executor import Executor, WorkerLost
from .executors import executor_of
from .memory import give_back_freed_memory
from .opening import locked, output_run
from .output_run import OutputRun
from .prepared import grouped
from .result import OutputResult, Result, joined
from .source_check import compare_sources
from .uploader import UploadLost
from .worker_pool import Progress, WorkerPool

UPLOADS = 3
"""How often a run is begun again, because the store has lost what was sent to it."""


def convert(
    recipe: Recipe | Mapping[str, Any] | str | Path | Plan | Sequence[Plan],
    *,
    registry: Registry | None = None,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = True,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Convert a checkpoint; everything that can be refused is refused before the first byte is written.

    recipe: a Recipe, a mapping in the schema of the YAML file, the path of one, or plans. Of a root with several models
    each is converted, one after the other, and the result has the outputs of all. overrides: dotted key -> value.
    resume: go on where an interrupted run of the same conversion stopped. progress: called from this thread.
    Raises ConverterError. Whatever interrupts it, nothing unfinished stands under a final name.
    """
    started = time.monotonic()
    if isinstance(recipe, Plan):
        plans: Sequence[Plan] = (recipe,)
    elif isinstance(recipe, (Recipe, Mapping, str, Path)):
        plans = make_plans(recipe, registry, overrides=overrides, require_device=True)
    else:
        plans = recipe
    with _told_of_files(), ExitStack() as stack:
        for plan in plans:
            stack.enter_context(plan)
        if problems := [problem for plan in plans for problem in (plan.resources.absence, *plan.problems) if problem]:
            raise PlanError(*dict.fromkeys(problems))
        return joined([_convert(plan, resume, progress) for plan in plans], time.monotonic() - started)


def _convert(plan: Plan, resume: bool, progress: Callable[[Progress], None] | None) -> Result:
    for attempt in range(1, UPLOADS + 1):
        try:
            return _attempt(plan, resume or attempt > 1, progress)
        except UploadLost as lost:
            reason = str(lost)
    raise ConversionError(f"{reason}, {UPLOADS} times; look after the store, then run the same command again")


def _attempt(plan: Plan, resume: bool, progress: Callable[[Progress], None] | None) -> Result:
    started = time.monotonic()
    with ExitStack() as stack:
        runs: list[OutputRun] = []
        for output in plan.outputs:
            folder = stack.enter_context(locked(output.destination))
            runs.append(output_run(plan, output, folder, resume))
            stack.callback(runs[-1].close)
        compare_sources(plan, runs, progress)
        for run in runs:
            run.compare()
        unfinished = {run.plan.number: run for run in runs if not run.is_done}
        resumed: Mapping[int, Mapping[str, int]] = {}
        told: Sequence[str] = ()
        if unfinished:
            plan.stores.check_open()
            run_of_all = _Run(plan, unfinished, progress)
            resumed = run_of_all.run()
            told = run_of_all.told()
        for run in runs:
            if run.is_done:
                run.tidy()
        return _result(plan, started, runs, resumed, told)


class _Run:
    def __init__(self, plan: Plan, runs: Mapping[int, OutputRun], progress: Callable[[Progress], None] | None) -> None:
        """runs: by the number of the output."""
        self.plan = plan
        self.runs = runs
        self.jobs = grouped([job for job in plan.jobs if any(one.output in self.runs for one in job.exports)])
        self.pool: WorkerPool[Job] = WorkerPool(sum(job.source_nbytes for job in self.jobs), progress)
        self.kept: Counter[int] = Counter()
        self.kept_bytes: Counter[int] = Counter()
        self.counts: defaultdict[Quantizer, Counter[str]] = defaultdict(Counter)

    def run(self) -> dict[int, dict[str, int]]:
        """What was resumed of each output: tensors and bytes."""
        for one in self.runs.values():
            one.begin()
        give_back_freed_memory()  # what planning took
        with executor_of(self.plan, [*self.runs], self._open, self.pool) as executor:

            def wake() -> None:
                executor.wake()
                for one in self.runs.values():
                    one.wake()

            self.pool.run(self.jobs, executor.count, partial(self._worker, executor), wake)
        self.plan.stores.check_unchanged()
        for one in self.runs.values():
            one.publish(self.plan)
        return {number: {"tensors": self.kept[number], "bytes": self.kept_bytes[number]} for number in self.runs}

    def told(self) -> list[str]:
        """What the quantizers say of what they counted in this run."""
        found = (quantizer.told(counts) for quantizer, counts in self.counts.items() if counts)
        return [text for text in found if text]

    def _open(self, export: Export) -> StagedFile:
        return self.runs[export.output].open(export)

    def _worker(self, executor: Executor, number: int, next_job: Callable[[], Job]) -> None:
        with executor.worker(number) as worker:
            while True:
                self.pool.advance(0)
                worker.ready()
                job = next_job()
                made = [export for export in job.exports if export.output in self.runs]
                missing = [export for export in made if not self.runs[export.output].has(job, export)]
                if missing:
                    with self.pool.lock:
                        self.pool.weight = job.info.name
                    try:
                        sums = worker.do(job, missing)
                    except WorkerLost:
                        self.pool.put_back(job)
                        continue
                    for export in missing:
                        made_now = sums[export.output]
                        self.runs[export.output].done(job, export, made_now.crc32, made_now.source)
                        with self.pool.lock:
                            self.counts[export.quantizer].update(made_now.counts)
                else:
                    self.pool.resume(job.source_nbytes)
                with self.pool.lock:
                    for export in made:
                        if not any(export is one for one in missing):
                            self.kept[export.output] += 1
                            self.kept_bytes[export.output] += job.source_nbytes


@contextmanager
def _told_of_files() -> Iterator[None]:
    """What the system says of a file is for the user, not a bug."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise ConversionError(f"{shown(error.filename)}: {error.strerror or error}") from error


def _result(
    plan: Plan,
    started: float,
    runs: Sequence[OutputRun],
    resumed: Mapping[int, Mapping[str, int]],
    told: Sequence[str],
) -> Result:
    return Result(
        outputs=tuple(_output_result(plan, run, resumed.get(run.plan.number, {})) for run in runs),
        seconds=round(time.monotonic() - started, 3),
        peak_memory=system.peak_resident(),
        notes=(*plan.notes, *told),
        warnings=(*plan.warnings, *(warning for run in runs for warning in run.warnings)),
    )


def _output_result(plan: Plan, run: OutputRun, resumed: Mapping[str, int]) -> OutputResult:
    output = run.plan
    exports = [export for job in plan.jobs for export in job.exports if export.output == output.number]
    return OutputResult(
        status="already done" if run.is_done else "done",
        output=str(output.destination),
        manifest=output.destination.at(manifest_name(output.name)),
        files={**output.files, **output.side_sizes},
        counts=dict(Counter(export.quantizer.name for export in exports)),
        groups=tuple(vars(group) for group in output.groups),
        bytes_before=output.bytes_before,
        bytes_after=output.bytes_after,
        resumed=resumed,
    )
