"""What interrupted runs have left: staging folders on this machine, and uploads that nobody completed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .. import system
from ..api.storages import Storage
from ..api.writers import PartWriter, PendingUpload
from ..errors import CheckpointError, ConversionError, Refused, shown
from ..folder import Folder
from ..plugins.registry import Catalogue
from ..storage.location import Location, locate, within
from . import journal, upload_book
from .destination import is_inside_url, state_folder, state_home
from .place import asked
from .unfinished import FILES, look_for_unfinished

_PARTIAL = ".partial"


@dataclass(frozen=True)
class Leftover:
    """Of one output. name: of its files. folder: what lies on this machine; nbytes: how much. uploads: of its files.

    publishing: it was interrupted while files were given their final names, which only the same conversion can finish.
    """

    output: str
    name: str
    folder: Path
    nbytes: int
    uploads: tuple[PendingUpload, ...] = ()
    publishing: bool = False

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        uploads = [vars(upload) for upload in self.uploads]
        return {**vars(self), "folder": str(self.folder), "uploads": uploads}


@dataclass(frozen=True)
class Abandoned:
    """leftovers: of runs of this machine. others: uploads that no run of this machine knows."""

    where: str
    leftovers: Sequence[Leftover]
    others: Sequence[PendingUpload] = ()
    writer: PartWriter | None = field(default=None, repr=False)

    def remove(self, others: bool = False) -> None:
        """Away with the leftovers that are not being published, and with the uploads of others too. ConversionError."""
        for leftover in self.leftovers:
            if not leftover.publishing:
                self._remove(leftover)
        for upload in self.others if others else ():
            self._abort(upload)

    def _remove(self, leftover: Leftover) -> None:
        with Folder.open(leftover.folder.parent) as holder:
            try:
                system.lock(holder.fileno())
            except BlockingIOError:
                raise ConversionError(
                    f"{shown(leftover.output)}: a conversion is writing there; wait for it or stop it"
                ) from None
            except OSError:  # folders cannot be held open here
                pass
            for upload in leftover.uploads:
                self._abort(upload)
            with holder.child(leftover.folder.name) as staging:
                for name in (FILES, journal.NEW, upload_book.NAME, journal.NAME):
                    staging.remove(name)
            with suppress(OSError):
                holder.remove_folder(leftover.folder.name)
        if self.writer is not None:
            with suppress(OSError):
                leftover.folder.parent.rmdir()

    def _abort(self, upload: PendingUpload) -> None:
        if self.writer is not None:
            asked(upload.url, partial(self.writer.abort, upload.url, upload.id))


def look_for_abandoned(where: str, storages: Catalogue[Storage], typed: str | None = None) -> Abandoned:
    """where: the folder or URL of outputs. typed: ``output.state_folder``. ConverterError."""
    location = locate(where, storages)
    if location.path is not None:
        if not location.path.is_dir():
            raise CheckpointError(f"{shown(where)}: is no folder; give the output of an interrupted conversion")
        return Abandoned(where, list(_in_folder(location.path, where)))
    return _of_url(location, typed)


def _of_url(location: Location, typed: str | None) -> Abandoned:
    try:
        writer = location.storage.writer(location.url)
    except Refused as refusal:
        raise CheckpointError(*(f"{shown(location)}: {problem}" for problem in refusal.problems)) from None
    leftovers = []
    home, own = state_home(typed), state_folder(str(location), typed)
    for folder in sorted(home.iterdir()) if home.is_dir() else ():
        if folder.is_dir():
            for one in _in_folder(folder, str(location) if folder == own else ""):
                if is_inside_url(one.output, str(location)):
                    leftovers.append(one)
    others: list[PendingUpload] = []
    if isinstance(writer, PartWriter):
        known = {upload.id for one in leftovers for upload in one.uploads}
        pending = asked(str(location), partial(writer.uploads, location.url))
        others = [upload for upload in pending if upload.id not in known]
        return Abandoned(str(location), leftovers, others, writer)
    return Abandoned(str(location), leftovers)


def _in_folder(folder: Path, output: str) -> Iterator[Leftover]:
    """output: what it is called where no book tells."""
    with Folder.open(folder) as holder:
        for entry in holder.names():
            if not (entry.startswith(".") and entry.endswith(_PARTIAL)):
                continue
            name = entry[1 : -len(_PARTIAL)]
            try:
                found = look_for_unfinished(holder, name)
                with closing(holder.child(entry)) as staging:
                    names = staging.names()
                    told = upload_book.read(staging)
            except (CheckpointError, OSError):  # others' files
                continue
            if names and not {journal.NAME, journal.NEW, upload_book.NAME} & {*names}:
                continue
            uploads = () if told is None else tuple(_uploads(told))
            url = output if told is None else told.url
            yield Leftover(url, name, folder / entry, found.staged, uploads, bool(found.publishes))


def _uploads(told: upload_book.Told) -> Iterator[PendingUpload]:
    for name, sent in told.files.items():
        if sent.id and not sent.version:
            yield PendingUpload(within(told.url, name), sent.id)
