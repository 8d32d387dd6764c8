"""``model-converter convert``."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated, Any

import typer

from ..sizes import format_bytes
from . import several
from .asked import Asked, Misused, recipes_from_flags
from .flags import Flags, with_flags
from .interrupt import resumable
from .log import Log
from .output import Json, Quiet, Verbose, each_output, print_json, show_facts, show_remarks
from .plan import show_plans
from .progress import progress
from .tables import show_groups


@with_flags
def convert(
    ctx: typer.Context,
    flags: Flags,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done, as plan does.")] = False,
    no_resume: Annotated[
        bool, typer.Option("--no-resume", help="Start anew, even if an interrupted run could be continued.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Convert a checkpoint: by a recipe, by flags, or by both; several recipes one after the other.

    The same command again is always right: it resumes, or says that all is done.
    """
    requests = asked_for(ctx, flags)
    if dry_run:
        show_plans(requests, as_json)
    elif len(requests) > 1:
        raise typer.Exit(several.run_all(requests, run, resume=not no_resume, quiet=quiet, as_json=as_json))
    else:
        result = run(requests[0], resume=not no_resume, quiet=quiet or as_json)
        if as_json:
            print_json(result)
        elif not quiet:
            show_result(result, verbose)


def asked_for(ctx: typer.Context, flags: Flags) -> list[Asked]:
    """The recipes and what overrides them; a usage error if the flags say nothing together."""
    try:
        return recipes_from_flags(flags)
    except Misused as error:
        ctx.fail(str(error))


def run(asked: Asked, *, resume: bool = True, quiet: bool = False) -> dict[str, Any]:
    """Convert with progress on stderr; the result as JSON values."""
    log = Log(quiet)
    log.begin(*asked.paths())  # before torch is imported, which takes seconds
    with resumable(), log.ending() as end:
        from ..engine.convert import convert as run_conversion
        from ..engine.memory import keep_freed_memory
        from ..planning.components import make_plans
        from ..plugins.registry import load_plugins

        keep_freed_memory()
        registry = load_plugins()
        recipe = asked.load(registry)
        with ExitStack() as stack:
            plans = [stack.enter_context(plan) for plan in make_plans(recipe, registry, require_device=True)]
            log.name = ", ".join(dict.fromkeys(output.name for plan in plans for output in plan.outputs))
            planned = list(dict.fromkeys(warning for plan in plans for warning in plan.warnings))
            for warning in planned:
                log.say(f"warning: {warning}")
            with progress(quiet, log) as show:
                result = run_conversion(plans, resume=resume, progress=show).as_dict()
            for warning in result["warnings"]:
                if warning not in planned:
                    log.say(f"warning: {warning}")
        outputs = each_output(result)
        end.status = "; ".join(f"{one['status']}: {size_of(one)} in {one['output']}" for one in outputs)
        return result


def size_of(result: dict[str, Any]) -> str:
    """``2 files, 15.97 GiB``."""
    count = len(result["files"])
    return f"{count} file{'' if count == 1 else 's'}, {format_bytes(sum(result['files'].values()))}"


def show_result(result: dict[str, Any], verbose: bool = False) -> None:
    """A few lines for each output; with ``verbose`` the groups of weights too. Then the notes, once."""
    for one in each_output(result):
        _show_output(one, verbose)
    if any(one["status"] != "already done" for one in each_output(result)):
        show_remarks(result["notes"], ())


def _show_output(result: dict[str, Any], verbose: bool) -> None:
    if result["status"] == "already done":
        show_facts(
            {
                "already done": result["output"],
                "manifest": result["manifest"],
                "files": size_of(result),
                "again": "delete that output, or choose another output.path or output.name",
            }
        )
        return
    if verbose:
        show_groups("Converted", result["groups"])
    show_facts(
        {
            "converted": _weights(result),
            "output": f"{result['output']}: {size_of(result)}{_share(result)}",
            "manifest": result["manifest"],
            "time": _time(result),
        }
    )


def _weights(result: dict[str, Any]) -> str:
    """``36 weights to int8, 83 copied``."""
    counts = dict(result["counts"])
    copied = counts.pop("none", 0)
    made = [f"{count:,} weights to {method}" for method, count in counts.items()]
    return ", ".join([*made, f"{copied:,} copied"])


def _share(result: dict[str, Any]) -> str:
    before, after = result["bytes_before"], result["bytes_after"]
    return f", {after / before:.0%} of the source" if before else ""


def _time(result: dict[str, Any]) -> str:
    resumed = result["resumed"]
    parts = [
        f"{result['seconds']:.1f} s",
        f"peak memory {format_bytes(result['peak_memory'])}",
        f"{resumed['tensors']:,} weights ({format_bytes(resumed['bytes'])}) resumed from an earlier run"
        if resumed.get("tensors")
        else "",
    ]
    return ", ".join(filter(None, parts))
