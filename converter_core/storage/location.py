"""A file or folder: which storage it lies in, and what that calls it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..api.containers import ByteSource
from ..api.storages import Entry, Storage
from ..errors import CheckpointError, shown, unknown
from ..plugins.registry import Catalogue

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


@dataclass(frozen=True)
class Location:
    """Its text is what the user typed."""

    storage: Storage
    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        return self.storage.basename(self.url)

    @property
    def parent(self) -> Location:
        return Location(self.storage, self.storage.parent(self.url))

    @property
    def path(self) -> Path | None:
        """On a disk of this machine; None: it lies elsewhere."""
        path = self.storage.path(self.url)
        return None if path is None else Path(path)

    def __truediv__(self, name: str) -> Location:
        return Location(self.storage, self.storage.join(self.url, name))

    def open(self) -> ByteSource:
        return self.storage.open(self.url)

    def entries(self) -> Sequence[Entry] | None:
        """None for a file."""
        return self.storage.entries(self.url)

    def content(self, limit: int) -> bytes:
        """All of a file of at most ``limit`` bytes. CheckpointError."""
        source = self.open()
        try:
            if source.size > limit:
                raise CheckpointError(f"{shown(self)}: has {source.size:,} bytes, more than {limit:,}")
            content = bytearray(source.size)
            source.read(0, memoryview(content))
        finally:
            source.close()
        return bytes(content)


def scheme_of(text: str) -> str:
    """Empty for a plain path."""
    found = _SCHEME.match(text)
    return found[1].lower() if found else ""


def within(folder: str, *names: str) -> str:
    """The path or URL of what lies in a folder, as it would be typed."""
    return "/".join((folder.rstrip("/"), *names)) if scheme_of(folder) else str(Path(folder, *names))


def locate(where: str | os.PathLike[str], storages: Catalogue[Storage]) -> Location:
    """Whose scheme a URL has. CheckpointError if no storage has it."""
    text = os.fspath(where)
    scheme = scheme_of(text)
    if not scheme:
        return Location(storages[storages.default()](), text)
    for cls in storages.values():
        if scheme in cls.schemes:
            return Location(cls(), text)
    known = [name for cls in storages.values() for name in cls.schemes]
    raise CheckpointError(f"{shown(text)}: {unknown('scheme', scheme, known)}")
