"""``model-converter clean``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConversionError, shown
from ..sizes import format_bytes
from .output import Json, print_json, show_line

if TYPE_CHECKING:
    from ..output.abandoned import Abandoned


def clean(
    where: Annotated[str, typer.Argument(help="The folder or URL of an output, or of several.", metavar="OUTPUT")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without a question.")] = False,
    others: Annotated[
        bool, typer.Option("--all", help="Uploads too that were not begun on this machine, or not by this tool.")
    ] = False,
    state_folder: Annotated[
        str | None, typer.Option("--state-folder", metavar="DIR", help="The output.state_folder of the conversion.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Remove what an interrupted conversion left and nobody will continue: unfinished files, uploads, their state.

    Lists it first, and asks. Finished outputs are not touched.
    """
    from ..output.abandoned import look_for_abandoned
    from ..plugins.registry import load_plugins

    found = look_for_abandoned(where, load_plugins().storages, state_folder)
    removable = [one for one in found.leftovers if not one.publishing] or (others and found.others)
    if not as_json:
        _show(found, others)
    remove = bool(removable) and (yes or (not as_json and _agreed()))
    if remove:
        found.remove(others)
    if as_json:
        print_json(
            {
                "where": found.where,
                "unfinished": [one.as_dict() for one in found.leftovers],
                "others": [vars(upload) for upload in found.others],
                "removed": remove,
            }
        )
    elif remove:
        show_line("removed")


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise ConversionError("nothing is removed without a question; add --yes")
    return typer.confirm("Remove this?")


def _show(found: Abandoned, others: bool) -> None:
    for one in found.leftovers:
        uploads = f", {len(one.uploads)} uploads" if one.uploads else ""
        if one.publishing:
            show_line(
                f"kept: {shown(one.output)}: {shown(one.name)} was interrupted while it was published; run the same "
                f"conversion again to finish it ({shown(one.folder)})"
            )
        else:
            size = format_bytes(one.nbytes)
            show_line(f"unfinished: {shown(one.output)}: {shown(one.name)}, {size} in {shown(one.folder)}{uploads}")
    for upload in found.others:
        what = "upload" if others else "kept without --all"
        show_line(f"{what}: {shown(upload.url)}, begun {upload.started} elsewhere or by another tool")
    if not found.leftovers and not found.others:
        show_line(f"{shown(found.where)}: nothing unfinished")
