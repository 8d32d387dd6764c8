"""What lies in a folder as it was downloaded: the components that model adapters find there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..api.models import ModelAdapter
from ..api.roots import SourceRoot
from ..containers.find import has_suffix
from ..errors import PluginError
from ..plugins.attribution import call_each
from ..plugins.registry import Registry
from ..trusted import CONFIG, is_inside, read_file

PIPELINE = "model_index.json"
DEPTH = 3
MOST = 10_000
"""Files of a folder that are listed: more than any model has."""


@dataclass(frozen=True)
class Component:
    """path: of its folder or file; relative: the same below the root. adapter: whose model it is."""

    name: str
    path: Path
    adapter: ModelAdapter
    relative: str


def components_of(
    path: Path, adapters: Sequence[ModelAdapter], registry: Registry, skipped: list[str]
) -> list[Component]:
    """All of a folder, in the order of their names; empty for a file and for a folder that is no root."""
    if not path.is_dir():
        return []
    suffixes = tuple(suffix for cls in registry.containers.classes.values() for suffix in cls.suffixes)
    files = tuple(_files(path, DEPTH))
    weights = tuple(file for file in files if has_suffix(file, suffixes))
    root = SourceRoot(files, weights, _pipeline(path / PIPELINE))
    found = []
    for adapter, named in call_each(adapters, lambda adapter: adapter.components(root), skipped):
        for name, relative in named.items():
            if not is_inside(name) or not (relative == "." or is_inside(relative)):
                raise PluginError(f"model {adapter.name}: component {name!r} at {relative!r} is outside the root")
            found.append(Component(name, path / relative, adapter, relative))
    return sorted(found, key=lambda component: component.name)


def _files(folder: Path, depth: int, above: str = "") -> Iterator[str]:
    """Nothing that is hidden, nothing behind a folder that cannot be listed."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)[:MOST]
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            yield above + entry.name
        elif depth > 1:
            yield from _files(Path(entry.path), depth - 1, f"{above}{entry.name}/")


def _pipeline(path: Path) -> dict[str, object]:
    try:
        found = json.loads(read_file(path, CONFIG))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
