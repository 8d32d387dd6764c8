"""What an interrupted run left in the staging folder of an output, ``OUTPUT/.{name}.partial/``."""

from __future__ import annotations

import stat
from dataclasses import dataclass

from ..errors import CheckpointError, shown
from ..folder import Folder
from . import journal
from .journal import Begun

FILES = "files"
"""Where staged files lie in a staging folder: whatever they are called, none is called like the journal."""


@dataclass(frozen=True)
class Unfinished:
    """staged: bytes that are reserved on the disk. files: names of staged files."""

    exists: bool = False
    empty: bool = True
    begun: Begun | None = None
    staged: int = 0
    files: frozenset[str] = frozenset()

    @property
    def publishes(self) -> frozenset[str]:
        """Files that may stand under their final names, of this run."""
        return self.begun.publishes if self.begun is not None else frozenset()


def staging_name(name: str) -> str:
    return f".{name}.partial"


def look_for_unfinished(output: Folder, name: str) -> Unfinished:
    """CheckpointError where what lies there is not what this tool leaves."""
    status = output.status(staging_name(name))
    if status is None:
        return Unfinished()
    path = shown(output.path / staging_name(name))
    if not stat.S_ISDIR(status.st_mode):
        raise CheckpointError(f"{path}: is no folder, but unfinished files are kept there; move it away")
    with output.child(staging_name(name)) as staging:
        names = staging.names()
        begun = journal.read(staging)
        if FILES in names and journal.NAME not in names:
            raise CheckpointError(f"{path}: holds files and no journal, so this tool did not write it; move it away")
        sizes = dict(_walk(staging, "")) if FILES in names else {}
    return Unfinished(True, not names, begun, sum(sizes.values()), frozenset(sizes))


def _walk(folder: Folder, within: str) -> list[tuple[str, int]]:
    """(name, bytes on the disk) of every file below ``files``."""
    found = []
    for name in folder.names() if within else [FILES]:
        status = folder.status(name)
        if status is None:
            continue
        full = f"{within}/{name}" if within else name
        if stat.S_ISDIR(status.st_mode):
            with folder.child(name) as inner:
                found += _walk(inner, full)
        elif stat.S_ISREG(status.st_mode):
            found.append((full.removeprefix(f"{FILES}/"), getattr(status, "st_blocks", 0) * 512))
    return found
