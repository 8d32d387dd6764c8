"""What lies beside the files of an output: conversions that were not finished, and weight files of others."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from ..containers.find import has_suffix
from ..errors import printable, shown
from ..output import journal
from ..output.manifest import SUFFIX
from ..output.unfinished import staging_name
from ..storage.location import Location
from .expected import files_listed, manifests_beside
from .files import Output


def look_beside(output: Output, manifest: Location | None, suffixes: Collection[str]) -> None:
    """suffixes: of the weight files that a runtime would find in the folder. Elsewhere than on a disk: nothing."""
    folder = output.folder.path
    if folder is None:
        return
    own = staging_name(manifest.name.removesuffix(SUFFIX)) if manifest else None
    others = []
    for name in _unfinished(folder):
        if own is None:
            output.problem(name, "is an unfinished conversion, and no manifest says that these files are complete")
        elif name == own:
            output.problem(name, "is an unfinished conversion of this output; run the same command again to finish it")
        else:
            others.append(name)
    if others:
        output.notes.append(f"{shown(output.folder)} also holds an unfinished conversion: {_some(others)}")
    if manifest is not None:
        output.notes += _strays(output.folder, folder, suffixes)


def _unfinished(folder: Path) -> list[str]:
    found = sorted(path.name for path in folder.glob(".*.partial"))
    return [name for name in found if os.path.lexists(folder / name / journal.NAME)]


def _strays(location: Location, folder: Path, suffixes: Collection[str]) -> Iterator[str]:
    """Weight files that a runtime which is given the whole folder may load too."""
    owned = {file for manifest in manifests_beside(location) for file in files_listed(manifest) or ()}
    strays = sorted(
        path.name for path in folder.iterdir() if has_suffix(path.name, suffixes) and path.name not in owned
    )
    if strays:
        yield (
            f"{shown(folder)} also holds {_some(strays)}, which no manifest lists; a runtime that is given the folder "
            "may load that too"
        )


def _some(names: Iterable[str], most: int = 3) -> str:
    shortened = [printable(name) for name in names]
    rest = f" and {len(shortened) - most} more" if len(shortened) > most else ""
    return ", ".join(shortened[:most]) + rest
