"""``model-converter plugins new``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def new(
    kind: Annotated[str, typer.Argument(help="quantizer, target, layout, model, device, container or storage.")],
    name: Annotated[str, typer.Argument(help="What recipes will call it, e.g. my_scheme.")],
    folder: Annotated[
        Path | None, typer.Option("--dir", help="Where to write it.", show_default="./converter-NAME")
    ] = None,
) -> None:
    """Begin a plugin: a package that works, with its tests, ready for pip install -e."""
    from ..scaffold import new_plugin

    written = new_plugin(kind, name, folder)
    for path in written:
        typer.echo(f"wrote {path}")
    root = written[0].parent
    typer.echo(f"\nNext: pip install -e '{root}[test]' && pytest {root} && model-converter plugins")
