"""``model-converter inspect``."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from ..errors import CheckpointError
from ..sizes import format_bytes
from .describe import in_yaml
from .output import Json, console, model_name, print_json, show_facts, show_remarks
from .tables import natural_key, show_table


def inspect(
    path: Annotated[str, typer.Argument(help="A folder or file of weights.", metavar="PATH")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    runtime_config: Annotated[
        bool, typer.Option("--runtime-config", help="Print only what the runtime's configuration needs, to paste.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what a checkpoint is: model, variant, naming, dtypes, whether it is quantized, what loads it, what next."""
    from ..inspection import inspect as look

    found = look(path).as_dict()
    if runtime_config:
        print_json(_pasteable(found["runtime_config"], path))
    elif as_json:
        print_json(found if tensors else _without_tensors(found))
    else:
        _show(found, tensors)


def _pasteable(config: dict[str, Any], path: str) -> Any:
    """What a target gives to paste: its ``config`` where it says more than that, else all of it."""
    if not config:
        raise CheckpointError(
            f"{path}: no runtime needs to be told anything of it; model-converter inspect says what it is"
        )
    return config.get("config", config)


def _without_tensors(found: dict[str, Any]) -> dict[str, Any]:
    parts = {name: _without_tensors(part) for name, part in found["components"].items()}
    return {**{key: value for key, value in found.items() if key != "tensors"}, "components": parts}


def _options(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {in_yaml(value)}" for name, value in options.items())


def _scheme(scheme: dict[str, Any]) -> str:
    options = _options(scheme["options"])
    return f"{scheme['match']} {scheme['method']}" + (f" ({options})" if options else "")


def _quantized(quantized: dict[str, Any] | None) -> str:
    if not quantized:
        return "no"
    formats = ", ".join(f"{count:,} {name}" for name, count in quantized["formats"].items())
    options = _options(quantized["options"])
    return f"for {quantized['target']}{f' ({options})' if options else ''}: {formats}"


def _model(found: dict[str, Any]) -> str:
    return model_name(found["model"], found["variant"]) if found["model"] else "not recognised"


def _arranged(told: tuple[str, dict[str, str]]) -> str:
    """``nvfp4: nibbles high first, scales swizzled 128x4``."""
    format, arrangement = told
    return f"{format}: {', '.join(' '.join(item) for item in arrangement.items())}"


def _show(found: dict[str, Any], tensors: bool) -> None:
    quantized, parts = found["quantized"], found["components"]
    is_model = bool(found["files"])
    show_facts(
        {
            "path": found["path"],
            "model": _model(found) if is_model else "",
            **{name.replace("_", " "): value for name, value in found["facts"].items()},
            "quantized": _quantized(quantized) if is_model else "",
            "schemes": "; ".join(map(_scheme, quantized["schemes"])) if quantized else "",
            "stored as": "; ".join(map(_arranged, quantized["arrangement"].items())) if quantized else "",
            "dtypes": ", ".join(f"{count:,} {name}" for name, count in found["dtypes"].items()),
            "parameters": f"{found['parameters']:,}",
            "size": format_bytes(found["bytes"]),
            "skipped": ", ".join(found["skipped"]),
        }
    )
    listed = [
        (name, _model(part), _quantized(part["quantized"]), format_bytes(part["bytes"])) for name, part in parts.items()
    ]
    if listed:
        show_table("Components", ("name", "model", "quantized", "size"), listed, numbers=1)
    files = sorted(found["files"], key=lambda file: natural_key(file["name"]))
    if files:
        rows = [(file["name"], f"{file['tensors']:,}", format_bytes(file["size"])) for file in files]
        show_table("Files", ("name", "tensors", "size"), rows, numbers=2)
    if tensors:
        rows = [(t["key"], t["dtype"], "x".join(map(str, t["shape"])) or "scalar") for t in found["tensors"]]
        show_table("Tensors", ("key", "dtype", "shape"), rows)
    if found["runtime_config"]:
        console().print("Runtime config", style="bold")
        console().print(json.dumps(found["runtime_config"], indent=2), soft_wrap=True)
    for problem in found["problems"]:
        console().print(f"problem: {problem}", style="red", soft_wrap=True)
    show_remarks(found["notes"], ())
    for step in found["next_steps"]:
        console().print(f"next: {step}", soft_wrap=True)
