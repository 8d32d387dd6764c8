"""``model-converter demo``."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from ..errors import PluginError
from .flags import Asked
from .output import console, message
from .template import RUNS_ON


def demo(
    scheme: Annotated[str, typer.Option("--scheme", help="int8, fp8, mxfp4, nvfp4, or any registered one.")] = "int8",
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="DIR", help="Keep source, recipe and output in this folder.")
    ] = None,
) -> None:
    """Make up a small checkpoint, convert it by a recipe, and show what came out."""
    with TemporaryDirectory(prefix="model-converter-") if keep is None else nullcontext(str(keep)) as folder:
        _demo(Path(folder), scheme)
    if keep is None:
        message("that was in a temporary folder, gone by now; --keep DIR keeps it")


def _demo(folder: Path, scheme: str) -> None:
    from ..inspection import inspect
    from .convert import run, show_result

    source, recipe = folder / "source", folder / f"demo_{scheme}.yaml"
    model = _write_sample(source)
    recipe.write_text(_yaml(model, scheme, source, folder / f"output_{scheme}"), encoding="utf-8")
    console().print(recipe.read_text(encoding="utf-8"), soft_wrap=True)
    console().print(f"$ model-converter --config {recipe}", style="bold", soft_wrap=True)
    result = run(Asked(str(recipe)))
    show_result(result)
    config = inspect(result["output"]).runtime_config
    if config:
        console().print("What loads it (model-converter inspect tells again):", style="bold")
        console().print(json.dumps(config, indent=2), soft_wrap=True)


def _write_sample(folder: Path) -> str:
    """The first model that has a sample; a folder from an earlier demo is left as it is."""
    from ..registry import load_plugins
    from ..sample import write_sample

    for name, cls in load_plugins().models.items():
        sample = cls().sample()
        if sample is not None:
            if not folder.exists():
                message(f"making up a small {name} checkpoint")
                write_sample(folder, sample)
            return name
    raise PluginError("no model plugin has a sample to show")


def _yaml(model: str, scheme: str, source: Path, output: Path) -> str:
    import yaml

    recipe: dict[str, dict[str, Any]] = {
        "source": {"type": model, "path": str(source)},
        "quantization": {"method": scheme},
        "output": {"path": str(output), "copy_metadata": True},
        "target": {"format": "lightx2v" if scheme in RUNS_ON else "plain", "layout": "by_block"},
    }
    text: str = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    return text
