"""``model-converter init``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import RecipeError


def init(
    file: Annotated[Path | None, typer.Argument(help="Where to write it; stdout if omitted.", metavar="[FILE]")] = None,
    scheme: Annotated[str, typer.Option("--scheme", help="int8, fp8, mxfp4, nvfp4, or any registered one.")] = "int8",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, hygon_dcu ...")] = "auto",
    source: Annotated[str, typer.Option("--source", "-s", help="The checkpoint.")] = "/path/to/Wan2.1-I2V-14B-480P",
    output: Annotated[str | None, typer.Option("--output", "-o", help="The folder for the result.")] = None,
) -> None:
    """Write a recipe with every key explained."""
    from ..registry import load_plugins
    from .template import recipe

    cls = load_plugins().quantizers[scheme]
    text = recipe(cls, device=device, source=source, output=output, file=file.name if file else "recipe.yaml")
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
