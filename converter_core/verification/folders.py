"""Folders that hold several outputs, and sources that hold several models."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..checkpoint.roots import DEPTH, components_of
from ..containers.find import has_suffix
from ..errors import CheckpointError, VerificationError, shown
from ..output.manifest import SUFFIX
from ..plugins.registry import Registry
from ..storage.location import Location, locate


def outputs_in(output: str, registry: Registry) -> list[str]:
    """The outputs of a conversion of several components, or of one with several outputs: its sub-folders, sorted.

    ``output`` itself where it is a file, holds files of an output, or has no sub-folder that does.
    """
    location = locate(output, registry.storages)
    path = location.path
    suffixes = (SUFFIX, *(suffix for cls in registry.containers.classes.values() for suffix in cls.suffixes))
    if path is None:
        return [str(folder) for folder in _holders_elsewhere(location, suffixes, DEPTH)] or [output]
    if not path.is_dir():
        return [output]
    return [str(folder) for folder in _holders(path, suffixes, DEPTH)] or [output]


def _holders(folder: Path, suffixes: tuple[str, ...], depth: int) -> Iterator[Path]:
    """The topmost folders with a file of one of the suffixes. Hidden ones, links and unreadable ones are skipped."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    if any(has_suffix(entry.name, suffixes) and not entry.is_dir() for entry in entries):
        yield folder
    elif depth:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                yield from _holders(Path(entry.path), suffixes, depth - 1)


def _holders_elsewhere(folder: Location, suffixes: tuple[str, ...], depth: int) -> Iterator[Location]:
    """The same of a URL; none of what cannot be listed."""
    try:
        entries = folder.entries() or ()
    except CheckpointError:
        return
    if any(has_suffix(entry.name, suffixes) and not entry.is_folder for entry in entries):
        yield folder
    elif depth:
        for entry in entries:
            if entry.is_folder and not entry.name.startswith("."):
                yield from _holders_elsewhere(folder / entry.name, suffixes, depth - 1)


def source_in(against: str | os.PathLike[str], recipe: Mapping[str, Any], registry: Registry) -> str | os.PathLike[str]:
    """The component of ``against`` that a recipe converted, or ``against`` itself where it has no components.

    Raises VerificationError if it has several main models and the recipe's source is none of them.
    """
    path = locate(against, registry.storages).path
    adapters = [cls() for cls in registry.models.values() if not cls.by_name]
    found = components_of(path, adapters, registry, []) if path is not None else []
    section = recipe.get("source")
    typed = section.get("path") if isinstance(section, Mapping) else None
    parts = Path(typed).parts if isinstance(typed, str) else ()
    for component in found:
        own = Path(component.relative).parts
        if own and parts[-len(own) :] == own:
            return component.path
    main = [component for component in found if not component.adapter.auxiliary]
    if any(component.relative == "." for component in found) or not main:
        return against
    if len(main) == 1:
        return main[0].path
    names = ", ".join(shown(component.path) for component in main)
    raise VerificationError(f"{shown(against)}: holds several models; give the one that was converted: {names}")
