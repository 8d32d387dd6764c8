"""``model-converter plan``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import typer

from ..errors import PlanError
from ..sizes import format_bytes
from .asked import Asked, Misused, recipes_from_flags
from .flags import Flags, with_flags
from .output import Json, each_output, exact, in_words, model_name, print_json, show_facts, show_line, show_remarks
from .tables import natural_key, show_groups, show_table, sizes

_STATUS = {
    "new": "",
    "resume": "an interrupted run of this conversion would be continued",
    "check": "done once; what is missing or turns out to be changed would be made again",
    "done": "already done; nothing would be touched",
}


@with_flags
def plan(ctx: typer.Context, flags: Flags, as_json: Json = False) -> None:
    """Say what convert would do with the same arguments. Reads headers only; needs neither data nor device."""
    try:
        requests = recipes_from_flags(flags)
    except Misused as error:
        ctx.fail(str(error))
    show_plans(requests, as_json)


def show_plans(requests: Sequence[Asked], as_json: bool) -> None:
    """One plan, or several one after the other (in JSON as a list)."""
    from ..planning.components import component_recipes
    from ..planning.planner import make_plan
    from ..plugins.registry import load_plugins

    registry = load_plugins()
    found = []
    problems: list[str] = []
    for asked in requests:
        if len(requests) > 1 and not as_json:
            show_line(f"{asked.source}:")
        for recipe in component_recipes(asked.load(registry), registry):
            with make_plan(recipe, registry) as made:
                found.append(made.as_dict())
                problems += made.problems
            if not as_json:
                _show(found[-1])
    if as_json:
        print_json(found[0] if len(found) == 1 else found)
    if problems:
        raise PlanError(*problems)


def _show(plan: dict[str, Any]) -> None:
    model, source = plan["model"], plan["source"]
    facts = ", ".join(
        f"{name.replace('_', ' ')} {in_words(value)}"
        for name, value in model.items()
        if name not in ("adapter", "variant") and value != ""
    )
    show_facts(
        {
            "source": source["path"],
            "": f"{len(source['files'])} files, {source['tensors']:,} tensors, {format_bytes(source['bytes'])}",
            "skipped": ", ".join(source["skipped"]),
            "model": f"{model_name(model['adapter'], model['variant'])}{f' ({facts})' if facts else ''}",
        }
    )
    if plan["loras"]:
        rows = [
            (
                lora["file"],
                f"{lora['strength']:g}",
                ", ".join(f"{module} {count}" for module, count in lora["modules"].items()),
                lora["weights"],
            )
            for lora in plan["loras"]
        ]
        show_table("LoRAs", ("file", "strength", "modules", "weights"), rows, numbers=1)
    outputs = each_output(plan)
    if len(outputs) > 1:
        _show_side_by_side(outputs)
    for output in outputs:
        _show_output(output)
    show_facts(
        {
            "extra": ", ".join(plan["extra_tensors"]),
            "device": _means(plan),
        }
    )
    show_remarks(plan["notes"], plan["warnings"])


def _means(plan: dict[str, Any]) -> str:
    """``cpu, 8 workers, 4 GiB of memory``."""
    memory = f"{format_bytes(plan['max_memory'])} of memory"
    if plan["executor"] == "threads":
        return f"{plan['device']}, {plan['workers']} workers, {memory}"
    workers = f"{plan['workers']} workers" if plan["workers"] else "as many workers as it has room for"
    return f"{plan['device']}, on {plan['executor']} with {workers}, {memory} each"


def _show_side_by_side(outputs: Sequence[dict[str, Any]]) -> None:
    rows = []
    for one in outputs:
        reader = re.split(r"[;.](?: |$)", one["runs_on"])[0] or one["target"]
        before, after, ratio = sizes(one["bytes_before"], one["bytes_after"])
        rows.append((PurePath(one["output"]).name, one["method"], reader, before, after, ratio))
    columns = ("output", "method", "read by", "before", "after", "ratio")
    show_table("Outputs of one read", columns, rows, numbers=3, optional=("before", "read by"))


def _show_output(plan: dict[str, Any]) -> None:
    show_facts(
        {
            "output": f"{plan['output']}, {plan['name']}: {plan['layout']} for {plan['target']}",
            "unsent in": plan.get("state_folder", ""),
            "state": _STATUS.get(plan["status"], plan["status"]),
        }
    )
    show_groups("Weights", plan["groups"])
    show_table("Rules", ("match", "method", "weights"), [list(rule.values()) for rule in plan["rules"]], numbers=1)
    files = {**plan["files"], **plan["side_files"]}

    def by_name(item: tuple[str, int]) -> list[tuple[int, str]]:
        return natural_key(item[0])

    rows = [(name, format_bytes(size), f"{size:,}") for name, size in sorted(files.items(), key=by_name)]
    rows += [(name, "copied", "") for name in plan["copies"]]
    show_table("Files", ("name", "size", "bytes"), rows, numbers=2, optional=("bytes",))
    show_facts(
        {
            "replaces": ", ".join(plan.get("replaces", ())),
            "disk": f"{exact(plan['needed_disk'])} needed, {format_bytes(plan['free_disk'])} free",
        }
    )
