"""``model-converter init``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import RecipeError
from .completion import values_of
from .schemes import default_scheme


def init(
    file: Annotated[Path | None, typer.Argument(help="Where to write it; stdout if omitted.", metavar="[FILE]")] = None,
    scheme: Annotated[
        str | None,
        typer.Option("--scheme", help="Any registered scheme.", autocompletion=values_of("quantizer")),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="auto, or a device plugin.", autocompletion=values_of("device"))
    ] = "auto",
    source: Annotated[str, typer.Option("--source", "-s", help="The checkpoint.")] = "/path/to/checkpoint",
    output: Annotated[str | None, typer.Option("--output", "-o", help="The folder for the result.")] = None,
) -> None:
    """Write a recipe with every key explained."""
    from ..plugins.registry import load_plugins
    from .template import recipe

    registry = load_plugins()
    cls = registry.quantizers[scheme or default_scheme(registry)]
    text = recipe(cls, registry, device=device, source=source, output=output, file=file.name if file else "recipe.yaml")
    if file is None:
        typer.echo(text, nl=False)
        return
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(text)
    except FileExistsError:
        raise RecipeError(f"{file}: is there already; nothing was written") from None
    except OSError as error:
        raise RecipeError(f"{file}: cannot be written: {error.strerror}") from None
