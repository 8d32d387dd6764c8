"""A file on a disk of this machine, read at any place."""

from __future__ import annotations

import os
from pathlib import Path

from .. import system, trusted
from ..errors import CheckpointError, shown


class LocalFile:
    """One file held open, a ``ByteSource``. CheckpointError if it cannot be opened, or is no file.

    version: when it was last changed, in ns. identity: what a copy with the same time does not share: the inode, and
    when anything of the file was last changed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        self.path: str | None = self.name
        try:
            self._file = os.fdopen(trusted.open_regular(path), "rb", buffering=0)  # held until close
        except OSError as error:
            raise CheckpointError(f"{shown(self.name)}: cannot be opened: {error.strerror}") from None
        self._stat = os.fstat(self._file.fileno())
        self.size = self._stat.st_size
        self.version: int | str = self._stat.st_mtime_ns
        self.identity = self._stat.st_ino, self._stat.st_ctime_ns

    def read(self, at: int, into: memoryview) -> None:
        try:
            count = system.read_at(self._file.fileno(), into, at)
        except OSError as error:
            raise CheckpointError(f"{shown(self.name)}: cannot be read ({error.strerror})") from None
        if count < len(into):
            raise CheckpointError(
                f"{shown(self.name)}: the file ends {len(into) - count} bytes too early; it was cut short while it "
                "was read"
            )

    def will_need(self, at: int, nbytes: int) -> None:
        system.will_need(self._file.fileno(), at, nbytes)

    def check_unchanged(self) -> None:
        """CheckpointError if the name stands for another file now, or for one that was written to."""
        try:
            now = Path(self.name).stat()
        except OSError as error:
            raise CheckpointError(f"{shown(self.name)}: was removed while it was read ({error.strerror})") from None
        if _identity(now) != _identity(self._stat):
            raise CheckpointError(f"{shown(self.name)}: was replaced while it was read; run again with the new file")

    def close(self) -> None:
        self._file.close()


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
