"""``model-converter plugins``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from . import plugins_new
from .command import Command
from .output import Json, print_json
from .tables import show_table

if TYPE_CHECKING:
    from ..plugins.registry import Registry

app = typer.Typer(invoke_without_command=True)
app.command("new", cls=Command)(plugins_new.new)


@app.callback()
def plugins(ctx: typer.Context, as_json: Json = False) -> None:
    """List every plugin with its options, and those that cannot be used with the reason."""
    if ctx.invoked_subcommand is not None:
        return
    from ..plugins.registry import load_plugins

    registry = load_plugins()
    usable, unusable = _usable(registry), _unusable(registry)
    if as_json:
        print_json({"plugins": usable, "unusable": unusable})
        return
    rows = [(p["kind"], p["name"], f"{p['distribution']} {p['version']}".strip(), p["description"]) for p in usable]
    show_table("Plugins", ("kind", "name", "from", "what for"), rows, optional=("from",))
    _show_options(usable)
    if unusable:
        rows = [
            (b["kind"], b["name"] or b["plugin"], f"{b['distribution']} {b['version']}", b["reason"]) for b in unusable
        ]
        show_table("Not usable", ("kind", "name", "from", "reason"), rows)


def _show_options(usable: list[dict[str, Any]]) -> None:
    from .describe import in_yaml

    rows = [
        (
            p["name"],
            option["name"],
            "" if option["default"] is None else in_yaml(option["default"]),
            option["type"],
            option["description"],
        )
        for p in usable
        for option in p["options"]
    ]
    show_table("Options", ("plugin", "option", "default", "takes", "what it does"), rows, optional=("takes",))


def _usable(registry: Registry) -> list[dict[str, Any]]:
    from .describe import options, summary

    return [
        {
            "kind": catalogue.kind,
            "name": name,
            "distribution": catalogue.origins[name].distribution,
            "version": catalogue.origins[name].version,
            "description": summary(cls),
            "options": options(cls),
        }
        for catalogue in registry.catalogues()
        for name, cls in sorted(catalogue.classes.items())
    ]


def _unusable(registry: Registry) -> list[dict[str, Any]]:
    return [
        {
            "kind": broken.kind,
            "name": broken.name,
            "plugin": broken.origin.plugin,
            "distribution": broken.origin.distribution,
            "version": broken.origin.version,
            "reason": broken.reason,
            "blocked": broken.blocked,
        }
        for broken in registry.broken
    ]
