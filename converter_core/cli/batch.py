"""``model-converter batch``."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ..sizes import format_bytes
from . import exit_codes
from .batch_progress import batch_progress
from .completion import values_of
from .failures import failure_of
from .interrupt import resumable
from .log import Log
from .output import Quiet, message, print_json_line
from .tables import show_table

if TYPE_CHECKING:
    from ..engine.batch import JobResult
    from ..plugins.registry import Registry
    from ..recipe.batch import Batch


def batch(
    jobs: Annotated[
        str, typer.Argument(metavar="JOBS.yaml", help="A list of recipes, or a matrix.", show_default=False)
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only plan every job, and say its state.")] = False,
    at_once: Annotated[
        int | None, typer.Option("--at-once", min=1, metavar="N", help="Conversions side by side; default 1.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="DEVICE", help="Of every job.", autocompletion=values_of("device")),
    ] = None,
    executor: Annotated[
        str | None, typer.Option("--executor", metavar="EXECUTOR", help="Of every job: threads, or ray for a cluster.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON for each job as it ends.")] = False,
    quiet: Quiet = False,
) -> None:
    """Convert many checkpoints, or one in many ways: a list of recipes, or models x schemes x targets.

    A source that several jobs name is read once. What fails keeps no other job from being done. The same command again
    goes on: what is done is recognised and skipped.
    """
    with resumable():
        from ..plugins.registry import load_plugins
        from ..recipe.batch import load_batch

        registry = load_plugins()
        given = {"device": device, "executor": executor}
        overrides = {f"performance.{key}": value for key, value in given.items() if value is not None}
        labels = {key: f"--{key.partition('.')[2]}" for key in overrides}
        asked = load_batch(jobs, overrides, registry, labels=labels)
        if dry_run:
            raise typer.Exit(_show_states(asked, registry, as_json))
        raise typer.Exit(_run(asked, registry, at_once, as_json, quiet))


def _run(asked: Batch, registry: Registry, at_once: int | None, as_json: bool, quiet: bool) -> int:
    from ..engine.batch import DONE, FAILED, SKIPPED, convert_batch
    from ..engine.memory import keep_freed_memory

    keep_freed_memory()
    results: dict[int, JobResult] = {}
    log = Log(quiet or as_json)

    def changed(number: int, result: JobResult) -> None:
        results[number] = result
        bar.state(result.name, result.state)
        if result.state == FAILED:
            _show_failure(result)
        if result.state in (DONE, SKIPPED, FAILED):
            if as_json:
                print_json_line({**result.as_dict(), "exit_code": _code([result])})
            else:
                bar.log(log, f"{result.state}: {result.name} ({result.seconds:.1f} s)")

    try:
        with batch_progress(len(asked.jobs), quiet or as_json) as bar:
            found = convert_batch(asked, registry=registry, at_once=at_once, changed=changed, progress=bar.progress)
    finally:
        if results and not (quiet or as_json):
            _show_table([results.get(n) or _pending(job.name) for n, job in enumerate(asked.jobs)])
    return _code(found.jobs)


def _pending(name: str) -> JobResult:
    from ..engine.batch import JobResult

    return JobResult(name)


def _code(results: Sequence[JobResult]) -> int:
    from ..engine.batch import FAILED

    return exit_codes.FAILED if any(result.state == FAILED for result in results) else exit_codes.OK


def _show_failure(result: JobResult) -> None:
    """All that was wrong; of a bug the traceback too."""
    assert result.error is not None
    failure = failure_of(result.error)
    if failure is None:
        message("".join(traceback.format_exception(result.error)).rstrip())
    problems = [str(result.error)] if failure is None else failure.problems
    for problem in problems:
        message(f"error: {result.name}: {problem}")


def _show_table(results: Sequence[JobResult]) -> None:
    rows = []
    for result in results:
        before = sum(output.bytes_before for output in result.outputs)
        after = sum(output.bytes_after for output in result.outputs)
        sizes = (format_bytes(before), format_bytes(after)) if result.outputs else ("", "")
        time = f"{result.seconds:.1f} s" if result.seconds else ""
        rows.append((result.name, result.state, *sizes, time))
    counted = Counter(result.state for result in results)
    title = ", ".join(f"{count} {state}" for state, count in counted.items())
    show_table(title, ("job", "state", "before", "after", "time"), rows, numbers=3, optional=("before", "time"))


def _show_states(asked: Batch, registry: Registry, as_json: bool) -> int:
    """What every job would do; 1 if one is refused."""
    from ..planning.batch import plan_jobs

    rows = []
    refused = []
    for job in plan_jobs(asked, registry):
        refused += [f"{job.name}: {problem}" for problem in job.problems]
        if as_json:
            print_json_line(job.as_dict())
            continue
        outputs = [output for plan in job.plans for output in plan.get("outputs", [plan])]
        before, after = (sum(output[key] for output in outputs) for key in ("bytes_before", "bytes_after"))
        sizes = (format_bytes(before), format_bytes(after)) if outputs else ("", "")
        rows.append((job.name, job.status, *sizes, str(len(job.read_with) or "")))
    if not as_json:
        columns = ("job", "state", "before", "after", "read with")
        show_table(f"{len(rows)} jobs", columns, rows, numbers=3, optional=("read with", "before"))
    for problem in refused:
        message(f"error: {problem}")
    return exit_codes.FAILED if refused else exit_codes.OK
