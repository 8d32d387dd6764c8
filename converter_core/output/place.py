"""The folder that an output is published in, on a disk of this machine or elsewhere: what lies there."""

from __future__ import annotations

import errno
import os
import stat
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol, TypeVar

from ..api.storages import RemoteFile, tried
from ..api.writers import StoredFile, Writer
from ..errors import CheckpointError, ConversionError, shown
from ..folder import Folder
from ..storage.location import Location
from .staging import COPY_BLOCK, checksum

T = TypeVar("T")


@dataclass(frozen=True)
class Standing:
    """What stands under a name. mark: another one where it was written to: the time of that in ns, or an ETag."""

    size: int
    mark: int | str
    is_folder: bool = False


class Place(Protocol):
    """Names are relative, like ``a/b.json``. OSError, or what a storage raises."""

    def __str__(self) -> str: ...

    def text(self, name: str) -> str:
        """Of a file, for messages."""
        ...

    def names(self) -> list[str]: ...

    def standing(self, name: str) -> Standing | None: ...

    def read(self, name: str, limit: int) -> bytes:
        """All of a file of at most ``limit`` bytes."""
        ...

    def begins(self, name: str, nbytes: int) -> tuple[int, bytes]:
        """The size of a file, and how it begins."""
        ...

    def checksum(self, name: str, at: int, nbytes: int | None) -> int:
        """crc32 of a part of a file, or of all of it; -1 if it cannot be read whole."""
        ...


class LocalPlace:
    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder.path)

    def text(self, name: str) -> str:
        return str(self.folder.path / name)

    def names(self) -> list[str]:
        return self.folder.names()

    def standing(self, name: str) -> Standing | None:
        status = self.folder.status(name)
        return Standing(status.st_size, status.st_mtime_ns, stat.S_ISDIR(status.st_mode)) if status else None

    def read(self, name: str, limit: int) -> bytes:
        return self.folder.read(name, limit)

    def begins(self, name: str, nbytes: int) -> tuple[int, bytes]:
        with os.fdopen(self.folder.open_file(name), "rb") as file:
            return os.fstat(file.fileno()).st_size, file.read(nbytes)

    def checksum(self, name: str, at: int, nbytes: int | None) -> int:
        return checksum(self.folder, name, at, nbytes)


class RemotePlace:
    """What was listed once is not asked for again."""

    def __init__(self, location: Location, writer: Writer) -> None:
        self.location = location
        self.writer = writer
        self._listed: dict[str, Sequence[StoredFile]] = {}

    def __str__(self) -> str:
        return str(self.location)

    def at(self, name: str) -> Location:
        location = self.location
        for part in PurePosixPath(name).parts:
            location = location / part
        return location

    def text(self, name: str) -> str:
        return str(self.at(name))

    def names(self) -> list[str]:
        return [file.name for file in self._listing("")]

    def standing(self, name: str) -> Standing | None:
        path = PurePosixPath(name)
        within = "" if len(path.parts) == 1 else str(path.parent)
        # an object and a folder may have one name
        found = sorted((file for file in self._listing(within) if file.name == path.name), key=lambda f: f.is_folder)
        return Standing(found[0].size, found[0].version, found[0].is_folder) if found else None

    def read(self, name: str, limit: int) -> bytes:
        try:
            return self.at(name).content(limit)
        except CheckpointError as error:
            raise OSError(errno.EIO, "; ".join(error.problems), self.text(name)) from None

    def begins(self, name: str, nbytes: int) -> tuple[int, bytes]:
        with closing(self.at(name).open()) as source:
            into = bytearray(min(nbytes, source.size))
            source.read(0, memoryview(into))
            return source.size, bytes(into)

    def checksum(self, name: str, at: int, nbytes: int | None) -> int:
        try:
            with closing(self.at(name).open()) as source:
                end = source.size if nbytes is None else at + nbytes
                buffer, crc = memoryview(bytearray(min(COPY_BLOCK, max(end - at, 0)))), 0
                while at < end:
                    block = buffer[: end - at]
                    source.read(at, block)
                    crc = zlib.crc32(block, crc)
                    at += len(block)
                return crc
        except CheckpointError:
            return -1

    def asked(self, ask: Callable[[], T]) -> T:
        """What a request gives, tried again with pauses. ConversionError."""
        return asked(str(self.location), ask)

    def _listing(self, within: str) -> Sequence[StoredFile]:
        if within not in self._listed:
            self._listed[within] = self.asked(lambda: self.writer.listing(str(self.at(within))))
        return self._listed[within]


def asked(url: str, ask: Callable[[], T]) -> T:
    """What a request to a store gives, tried again with pauses. ConversionError."""
    try:
        return tried(ask, RemoteFile.ATTEMPTS, RemoteFile.PAUSE)
    except OSError as error:
        raise ConversionError(
            f"{shown(url)}: the store does not answer as it should, also after {RemoteFile.ATTEMPTS} attempts "
            f"({error}); run the same command again, it goes on where it stopped"
        ) from error
