"""``model-converter convert``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..sizes import format_bytes
from .flags import Asked, Flags, Misused, recipe_from_flags, with_flags
from .interrupt import resumable
from .output import Json, Quiet, exact, message, print_json, show_facts, show_groups, show_remarks
from .plan import show_plan
from .progress import progress


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
) -> None:
    """Convert a checkpoint: by a recipe (--config), by flags, or by both.

    The same command again is always right: it resumes, or says that all is done.
    """
    asked = asked_for(ctx, flags)
    if dry_run:
        show_plan(asked, as_json)
        return
    result = run(asked, resume=not no_resume, quiet=quiet or as_json)
    if as_json:
        print_json(result)
    else:
        show_result(result)


def asked_for(ctx: typer.Context, flags: Flags) -> Asked:
    """The recipe and what overrides it; a usage error if the flags say nothing together."""
    try:
        return recipe_from_flags(flags)
    except Misused as error:
        ctx.fail(str(error))


def run(asked: Asked, *, resume: bool = True, quiet: bool = False) -> dict[str, Any]:
    """Convert with progress on stderr; the result as JSON values."""
    with resumable():
        from ..conversion import convert as run_conversion
        from ..planning import make_plan
        from ..recipe import load_recipe
        from ..registry import load_plugins

        registry = load_plugins()
        recipe = load_recipe(asked.source, asked.overrides, registry, labels=asked.labels)
        with make_plan(recipe, registry, require_device=True) as plan:
            if not quiet:
                for warning in plan.warnings:
                    message(f"warning: {warning}")
            with progress(quiet) as show:
                return run_conversion(plan, resume=resume, progress=show).as_dict()


def show_result(result: dict[str, Any]) -> None:
    if result["status"] == "already done":
        message("to convert anew, delete that output, or choose another output.path or output.name")
        show_facts({"already done": result["output"], "manifest": result["manifest"], "files": len(result["files"])})
        return
    show_groups("Converted", result["groups"])
    resumed = result["resumed"]
    show_facts(
        {
            "output": result["output"],
            "files": f"{len(result['files'])}, {exact(sum(result['files'].values()))}",
            "manifest": result["manifest"],
            "time": f"{result['seconds']:.1f} s",
            "peak memory": format_bytes(result["peak_memory"]),
            "taken over": f"{resumed['tensors']:,} weights, {format_bytes(resumed['bytes'])}"
            if resumed.get("tensors")
            else "",
        }
    )
    show_remarks(result["notes"], ())
