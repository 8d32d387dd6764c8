"""Whether the source is still the one that finished weights were made of, where inode or times cannot tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .. import system
from ..planning.jobs import Job
from ..planning.plan import Plan
from .output_run import OutputRun
from .source_sums import SourceSums
from .worker_pool import Progress, WorkerPool


def compare_sources(plan: Plan, runs: Sequence[OutputRun], progress: Callable[[Progress], None] | None) -> None:
    """Read again what the suspects of these runs were made of, each weight once, and tell the runs what was found."""
    suspects = [run for run in runs if run.claims.suspects]
    jobs = [job for job in plan.jobs if any(job.info.name in run.claims.suspects for run in suspects)]
    if not jobs:
        return
    plan.stores.check_open()
    by_number = {run.plan.number: run for run in suspects}
    pool: WorkerPool[Job] = WorkerPool(sum(job.source_nbytes for job in jobs), progress)

    def compare(number: int, next_job: Callable[[], Job]) -> None:
        while True:
            job = next_job()
            with pool.lock:
                pool.weight = f"comparing {job.info.name}"
            sums = SourceSums(plan.stores, job, job.exports)
            for export in job.exports:
                if export.output in by_number:
                    by_number[export.output].claims.found[job.info.name] = sums.of(export)
            pool.advance(job.source_nbytes)

    pool.run(jobs, min(plan.resources.workers, system.cores()), compare, lambda: None)
