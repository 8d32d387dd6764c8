"""``model-converter demo``."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import PluginError
from .asked import Asked, layout_for
from .completion import values_of
from .output import console, each_output, message
from .schemes import default_scheme, target_for

if TYPE_CHECKING:
    from ..plugins.registry import Registry


def demo(
    scheme: Annotated[
        str | None,
        typer.Option(
            "--scheme",
            help="Any registered scheme; default: the first that the default target runs.",
            autocompletion=values_of("quantizer"),
        ),
    ] = None,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="DIR", help="Keep source, recipe and output in this folder.")
    ] = None,
) -> None:
    """Make up a small checkpoint, convert it by a recipe, and show what came out."""
    with TemporaryDirectory(prefix="model-converter-") if keep is None else nullcontext(str(keep)) as folder:
        _demo(Path(folder), scheme)
    if keep is None:
        message("the demo ran in a temporary folder, which is deleted now; --keep DIR keeps it")


def _demo(folder: Path, wanted: str | None) -> None:
    from ..inspection import inspect
    from ..plugins.registry import load_plugins
    from .convert import run, show_result

    registry = load_plugins()
    scheme = wanted or default_scheme(registry)
    source, recipe = folder / "source", folder / f"demo_{scheme}.yaml"
    model = _write_sample(source, registry)
    target = target_for(scheme, registry)
    layout = layout_for("--single-file" if registry.targets[target]().one_file else "--save-by-block", registry)
    text = _yaml(model, scheme, target, layout, source, folder / f"output_{scheme}")
    recipe.write_text(text, encoding="utf-8")
    console().print(recipe.read_text(encoding="utf-8"), soft_wrap=True)
    console().print(f"$ model-converter --config {recipe}", style="bold", soft_wrap=True)
    result = run(Asked(str(recipe)))
    show_result(result)
    config = inspect(each_output(result)[0]["output"]).runtime_config
    if config:
        console().print("What loads it (model-converter inspect tells again):", style="bold")
        console().print(json.dumps(config, indent=2), soft_wrap=True)


def _write_sample(folder: Path, registry: Registry) -> str:
    """The default model, or the first that has a sample; a folder from an earlier demo is left as it is."""
    from ..checkpoint.synthetic import write_synthetic

    for name, cls in sorted(registry.models.items(), key=lambda item: not item[1].default):
        sample = cls().synthetic()
        if sample is not None:
            if not folder.exists():
                message(f"making up a small {name} checkpoint")
                write_synthetic(folder, sample)
            return name
    raise PluginError("no model plugin has a sample to show")


def _yaml(model: str, scheme: str, target: str, layout: str, source: Path, output: Path) -> str:
    import yaml

    recipe: dict[str, dict[str, Any]] = {
        "source": {"type": model, "path": str(source)},
        "quantization": {"method": scheme},
        "output": {"path": str(output), "copy_metadata": True},
        "target": {"format": target, "layout": layout},
    }
    text: str = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    return text
