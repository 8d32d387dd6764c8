"""Carry out a plan: workers, progress, resume, publication."""

from __future__ import annotations

import fcntl
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import journal as journals
from . import output_folder
from .errors import ConversionError, ConverterError, PlanError
from .journal import Journal
from .manifest import manifest_name
from .memory import Budget, keep_freed_memory
from .plan import Job, Plan
from .planning import make_plan
from .publication import publish
from .recipe import Recipe
from .registry import Registry
from .slabs import Cut, Worker, cut
from .team import Progress, Team
from .tensors import raw
from .writer import Staging

if TYPE_CHECKING:
    from .interfaces import Lane


@dataclass(frozen=True)
class Result:
    """What a conversion did. seconds: wall time of this run. peak_memory: bytes, of the whole process."""

    status: str
    output: str
    manifest: str
    files: Mapping[str, int]
    counts: Mapping[str, int]
    groups: tuple[Mapping[str, Any], ...]
    bytes_before: int
    bytes_after: int
    seconds: float
    peak_memory: int
    resumed: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            key: list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
            for key, value in vars(self).items()
        }


def convert(
    recipe: Recipe | Mapping[str, Any] | str | Path | Plan,
    *,
    registry: Registry | None = None,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = True,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Convert a checkpoint; everything that can be refused is refused before the first byte is written.

    recipe: a Recipe, a mapping in the schema of the YAML file, the path of one, or a Plan. overrides: dotted key ->
    value. resume: go on where an interrupted run of the same conversion stopped. progress: called from this thread.
    Raises ConverterError. Whatever interrupts it, nothing unfinished stands under a final name.
    """
    started = time.monotonic()
    if isinstance(recipe, Plan):
        plan = recipe
        if plan.means.absence:
            raise PlanError(plan.means.absence)
    else:
        plan = make_plan(recipe, registry, overrides=overrides, require_device=True)
    with plan:
        if plan.survey.done:
            return _result(plan, "already done", started, {})
        keep_freed_memory()
        plan.output.mkdir(parents=True, exist_ok=True)
        with _locked(plan.output):
            _look_again(plan)
            resumed = _Run(plan, resume, progress).run()
        return _result(plan, "done", started, resumed)


def _look_again(plan: Plan) -> None:
    """What stood in the output folder when it was planned may have changed until the lock was ours."""
    overwrite = plan.recipe.output.overwrite
    now = output_folder.survey(plan.output, plan.name, plan.published, plan.fingerprint, overwrite)
    if now.problems or now.done:
        changed = f"{plan.output}: another conversion wrote there in the meantime; run the same command again"
        raise PlanError(*(now.problems or (changed,)))


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """One process at a time writes to an output folder; the lock dies with its owner and leaves no file."""
    fd = os.open(output, os.O_RDONLY)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConversionError(f"{output}: another conversion is writing there; wait for it or stop it") from None
        except OSError:
            pass  # a file system without locks on folders: two runs at once are then the user's to avoid
        yield
    finally:
        os.close(fd)


class _Run:
    def __init__(self, plan: Plan, resume: bool, progress: Callable[[Progress], None] | None) -> None:
        self.plan = plan
        folder = output_folder.staging_folder(plan.output, plan.name)
        self.staging = Staging(folder, plan.placed, plan.home)
        self.begun = journals.read(folder) if resume else None
        if self.begun is not None and self.begun.fingerprint != plan.fingerprint.value:
            self.begun = None
        self.crc32: dict[str, int] = {}
        self.team: Team[Job] = Team(sum(job.source_nbytes for job in plan.jobs), progress)

    def run(self) -> dict[str, int]:
        """What was taken over from an earlier run: tensors and bytes."""
        plan, folder = self.plan, self.staging.folder
        folder.mkdir(exist_ok=True)
        if self.begun is None:
            self.journal = Journal.begin(folder, plan.fingerprint, plan.survey.replaces)
            self.staging.clear()
        else:
            self.journal = Journal(folder)
        try:
            self.staging.reserve(self.begun.publishes if self.begun else ())
            for key, tensor in plan.extras.tensors.items():
                with self.staging.open(plan.home[key]) as file:
                    file.write(key, 0, raw(tensor.contiguous()))
                    self.crc32.update(file.crc32)
            kept = self._work()
            plan.checkpoint.check_unchanged()
            publish(plan, self.staging, self.journal, self.crc32)
        finally:
            self.journal.close()
        return kept

    def _work(self) -> dict[str, int]:
        plan, team = self.plan, self.team
        means, claims = plan.means, self.begun.done if self.begun else {}
        budget = Budget(means.max_memory)
        kept: list[Job] = []

        def work(number: int, next_job: Callable[[], Job]) -> None:
            device = means.devices[number % len(means.devices)]
            with torch.inference_mode(), means.backend.lane(device) as lane:
                while True:
                    team.advance(0)
                    job = next_job()
                    if self._verified(job, claims.get(job.info.name)):
                        with team.lock:
                            kept.append(job)
                            team.taken_over += job.source_nbytes
                        team.advance(job.source_nbytes)
                    else:
                        self._convert(job, lane, budget, means.backend.slab_bytes(device))

        team.run(plan.jobs, means.workers, work, budget.close)
        return {"tensors": len(kept), "bytes": team.taken_over}

    def _verified(self, job: Job, claim: Mapping[str, int] | None) -> bool:
        """Whether the staged bytes are what the journal says; notes their checksums if so."""
        if claim is None or set(claim) != {output.key for output in job.outputs}:
            return False
        for output in job.outputs:
            file = self.plan.home[output.key]
            if self.staging.checksum(file, output.key, output.spec.nbytes) != claim[output.key]:
                return False
        with self.team.lock:
            self.crc32.update(claim)
        return True

    def _convert(self, job: Job, lane: Lane, budget: Budget, slab_bytes: int) -> None:
        plan = self.plan
        share = budget.total // plan.means.workers
        with self.team.lock:
            self.team.weight = job.info.name
        while True:
            how = cut(job, slab_bytes, share)
            advanced = 0

            def advance(nbytes: int) -> None:
                nonlocal advanced
                advanced += nbytes
                self.team.advance(nbytes)

            try:
                with budget.take(how.nbytes):
                    self._attempt(job, lane, how, advance)
                return
            except torch.cuda.OutOfMemoryError as error:
                torch.cuda.empty_cache()
                while slab_bytes and cut(job, slab_bytes, share) == how:
                    slab_bytes //= 2
                if not slab_bytes:
                    raise ConversionError(
                        f"{job.info.name}: does not fit into the memory of {plan.means.name} ({error}); use device: cpu"
                    ) from error
                with self.team.lock:
                    self.team.done -= advanced
            except MemoryError as error:
                raise ConversionError(f"{job.info.name}: out of memory; lower max_memory or num_workers") from error
            except ConverterError as error:
                if job.info.name in str(error):
                    raise
                raise type(error)(*(f"{job.info.name}: {problem}" for problem in error.problems)) from error
            except Exception as error:
                if hasattr(error, "add_note"):  # Python 3.11
                    error.add_note(f"while converting {job.info.name} by {job.quantizer.name}")
                raise

    def _attempt(self, job: Job, lane: Lane, how: Cut, advance: Callable[[int], None]) -> None:
        plan = self.plan
        with ExitStack() as stack:
            file = stack.enter_context(self.staging.open(plan.home[job.outputs[0].key]))
            worker = Worker(plan.checkpoint, plan.adapter, plan.target, lane, advance)
            worker.run(job, how, file.write)
            sums = {output.key: file.crc32.get(output.key, 0) for output in job.outputs}
        self.journal.done(job.info.name, sums)
        with self.team.lock:
            self.crc32.update(sums)


def _result(plan: Plan, status: str, started: float, resumed: Mapping[str, int]) -> Result:
    unit = 1 if sys.platform == "darwin" else 1024
    return Result(
        status=status,
        output=str(plan.output),
        manifest=str(plan.output / manifest_name(plan.name)),
        files={**plan.files, **plan.side_sizes},
        counts=dict(Counter(job.quantizer.name for job in plan.jobs)),
        groups=tuple(vars(group) for group in plan.groups),
        bytes_before=plan.bytes_before,
        bytes_after=plan.bytes_after,
        seconds=round(time.monotonic() - started, 3),
        peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        resumed=resumed,
        notes=plan.notes,
        warnings=plan.warnings,
    )
