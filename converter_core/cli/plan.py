"""``model-converter plan``."""

from __future__ import annotations

from typing import Any

import typer

from ..sizes import format_bytes
from .flags import Asked, Flags, Misused, recipe_from_flags, with_flags
from .output import Json, exact, in_words, print_json, show_facts, show_groups, show_remarks, show_table

_STATUS = {
    "new": "",
    "resume": "an interrupted run of this conversion would be continued",
    "done": "already done; nothing would be touched",
}


@with_flags
def plan(ctx: typer.Context, flags: Flags, as_json: Json = False) -> None:
    """Say what convert would do with the same arguments. Reads headers only; needs neither data nor device."""
    try:
        asked = recipe_from_flags(flags)
    except Misused as error:
        ctx.fail(str(error))
    show_plan(asked, as_json)


def show_plan(asked: Asked, as_json: bool) -> None:
    from ..planning import make_plan
    from ..recipe import load_recipe
    from ..registry import load_plugins

    registry = load_plugins()
    recipe = load_recipe(asked.source, asked.overrides, registry, labels=asked.labels)
    with make_plan(recipe, registry) as made:
        found = made.as_dict()
    if as_json:
        print_json(found)
    else:
        _show(found)


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
            "left out": ", ".join(source["left_out"]),
            "model": f"{model['adapter']} {model['variant']}{f' ({facts})' if facts else ''}",
            "output": f"{plan['output']}, {plan['name']}: {plan['layout']} for {plan['target']}",
            "state": _STATUS.get(plan["status"], plan["status"]),
        }
    )
    show_groups("Weights", plan["groups"])
    show_table("Rules", ("match", "method", "weights"), [list(rule.values()) for rule in plan["rules"]], numbers=1)
    files = {**plan["files"], **plan["side_files"]}
    rows = [(name, format_bytes(size), f"{size:,}") for name, size in files.items()]
    rows += [(name, "copied", "") for name in plan["copies"]]
    show_table("Files", ("name", "size", "bytes"), rows, numbers=2)
    show_facts(
        {
            "extra": ", ".join(plan["extra_tensors"]),
            "replaces": ", ".join(plan.get("replaces", ())),
            "disk": f"{exact(plan['needed_disk'])} needed, {format_bytes(plan['free_disk'])} free",
            "device": f"{plan['device']}, {plan['workers']} workers, {format_bytes(plan['max_memory'])} of memory",
        }
    )
    show_remarks(plan["notes"], plan["warnings"])
