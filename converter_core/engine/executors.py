"""The executor that ``performance.executor`` names: threads that do jobs themselves, or processes of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from ..output.staging import StagedFile
from ..planning.jobs import Export, Job
from ..planning.plan import Plan
from .executor import Executor, JobWorker
from .job_runner import JobRunner, Lane, MadeOf
from .worker_pool import WorkerPool


class Threads:
    """Jobs are done by the threads that ask for them."""

    def __init__(self, plan: Plan, open_file: Callable[[Export], StagedFile], pool: WorkerPool[Job]) -> None:
        self.count = plan.resources.workers
        self.runner = JobRunner(plan, open_file)
        self.pool = pool

    @contextmanager
    def worker(self, number: int) -> Iterator[JobWorker]:
        with self.runner.lane(number) as lane:
            yield _Here(self.runner, lane, self.pool)

    def wake(self) -> None:
        self.runner.budget.close()


class _Here:
    def __init__(self, runner: JobRunner, lane: Lane, pool: WorkerPool[Job]) -> None:
        self.runner = runner
        self.lane = lane
        self.pool = pool

    def ready(self) -> None:
        pass

    def do(self, job: Job, exports: Sequence[Export]) -> MadeOf:
        return self.runner.do(self.lane, job, exports, self.pool.advance)


def connected(executors: Sequence[str]) -> AbstractContextManager[object]:
    """What these executors work with, for several runs: it is found or started once, and let go of at the end."""
    if "ray" not in executors:
        return nullcontext()
    from .ray_cluster import connection

    return connection()


@contextmanager
def executor_of(
    plan: Plan, outputs: Sequence[int], open_file: Callable[[Export], StagedFile], pool: WorkerPool[Job]
) -> Iterator[Executor]:
    """The one that the plan asks for. outputs: numbers of those that are to be made."""
    if plan.resources.executor == "threads":
        yield Threads(plan, open_file, pool)
        return
    from .ray_cluster import ray_cluster
    from .remote import Remote

    with ray_cluster(plan.resources) as cluster:
        yield Remote(plan, outputs, open_file, pool, cluster)
