"""``model-converter inspect``."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from ..sizes import format_bytes
from .describe import in_yaml
from .output import Json, console, print_json, show_facts, show_remarks
from .tables import natural_key, show_table


def inspect(
    path: Annotated[str, typer.Argument(help="A folder or file of weights.", metavar="PATH")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    as_json: Json = False,
) -> None:
    """Say what a checkpoint is: model, variant, naming, dtypes, whether it is quantized, and what loads it."""
    from ..inspection import inspect as look

    found = look(path).as_dict()
    if as_json:
        print_json(found if tensors else {key: value for key, value in found.items() if key != "tensors"})
    else:
        _show(found, tensors)


def _scheme(scheme: dict[str, Any]) -> str:
    options = ", ".join(f"{name}: {in_yaml(value)}" for name, value in scheme["options"].items())
    return f"{scheme['match']} {scheme['method']}" + (f" ({options})" if options else "")


def _arranged(told: tuple[str, dict[str, str]]) -> str:
    """``nvfp4: nibbles high first, scales swizzled 128x4``."""
    format, arrangement = told
    return f"{format}: {', '.join(' '.join(item) for item in arrangement.items())}"


def _show(found: dict[str, Any], tensors: bool) -> None:
    quantized = found["quantized"]
    formats = ", ".join(f"{count:,} {name}" for name, count in quantized["formats"].items()) if quantized else ""
    show_facts(
        {
            "path": found["path"],
            "model": f"{found['model']} {found['variant']}" if found["model"] else "not recognised",
            **{name.replace("_", " "): value for name, value in found["facts"].items()},
            "quantized": f"for {quantized['target']}: {formats}" if quantized else "no",
            "schemes": "; ".join(map(_scheme, quantized["schemes"])) if quantized else "",
            "stored as": "; ".join(map(_arranged, quantized["arrangement"].items())) if quantized else "",
            "dtypes": ", ".join(f"{count:,} {name}" for name, count in found["dtypes"].items()),
            "parameters": f"{found['parameters']:,}",
            "size": format_bytes(found["bytes"]),
            "skipped": ", ".join(found["skipped"]),
        }
    )
    files = sorted(found["files"], key=lambda file: natural_key(file["name"]))
    show_table(
        "Files",
        ("name", "tensors", "size"),
        [(file["name"], f"{file['tensors']:,}", format_bytes(file["size"])) for file in files],
        numbers=2,
    )
    if tensors:
        rows = [(t["key"], t["dtype"], "x".join(map(str, t["shape"])) or "scalar") for t in found["tensors"]]
        show_table("Tensors", ("key", "dtype", "shape"), rows)
    if found["runtime_config"]:
        console().print("Runtime config", style="bold")
        console().print(json.dumps(found["runtime_config"], indent=2), soft_wrap=True)
    show_remarks(found["notes"], ())
