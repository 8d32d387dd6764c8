"""The staging folder: preallocated files, positional writes, checksums."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import zlib
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from .. import system
from ..api.values import FileLayout
from ..errors import ConversionError, shown
from ..folder import Folder
from ..trusted import open_regular
from . import journal, upload_book
from .unfinished import FILES, staging_name

FLUSH_EVERY = 64 << 20
COPY_BLOCK = 4 << 20


class Staging:
    """Files of one output on their way: ``OUTPUT/.{name}.partial/files``, on the same file system by construction.

    Nothing is written through a link, nor to a file that has another name too: such a one loses its name here, and a
    new file takes it.
    """

    def __init__(self, output: Folder, name: str, layouts: Mapping[str, FileLayout], sparse: bool = False) -> None:
        """sparse: no room is reserved, for what is written is sent and given back to the disk."""
        self.sparse = sparse
        self.output = output
        self.name = staging_name(name)
        self.layouts = layouts

    def make(self) -> None:
        """The folder of the journal, durable under its name."""
        self.folder = self.output.make(self.name)

    def join(self) -> None:
        """What another process has made and prepared; to write there. OSError if it is not here."""
        self.folder = self.output.child(self.name)
        self.files = self.folder.child(FILES)

    def prepare(self, standing: Collection[str]) -> None:
        """Create what is not there with its full size, so that a full disk fails now, and write the headers.

        standing: files that are right under their final names.
        """
        status = self.folder.status(FILES)
        if status is not None and not stat.S_ISDIR(status.st_mode):
            self.folder.remove(FILES)
        self.files = self.folder.make(FILES)
        for file in standing:
            self.files.remove(file)
        for file, layout in self.layouts.items():
            if file not in standing:
                self._reserve(file, layout)

    def _reserve(self, file: str, layout: FileLayout) -> None:
        path = self.files.path / file
        try:
            fd = self.files.open_file(file, os.O_RDWR)
        except OSError:
            fd = self.files.create_file(file)
        try:
            if os.fstat(fd).st_size != layout.size:
                os.ftruncate(fd, 0)
            if not self.sparse:
                self._allocate(fd, path, layout.size)
            elif os.fstat(fd).st_size != layout.size:
                os.ftruncate(fd, layout.size)
            _write_at(fd, memoryview(layout.header), 0, path)
        finally:
            os.close(fd)

    def _allocate(self, fd: int, path: Path, size: int) -> None:
        try:
            system.allocate(fd, size)
        except OSError as error:
            free = shutil.disk_usage(self.folder.path).free
            raise _full(error, path, size - free) from error

    def clear(self) -> None:
        """Away with the files that an earlier run left; the journal stays, it is this run's already."""
        self.folder.remove(FILES)

    def remove(self) -> None:
        """The journal goes last: whenever this stops, it still says what the rest is, or there is no rest.

        What this tool does not put there stays, and the folder with it.
        """
        self.clear()
        for name in (journal.NEW, upload_book.NAME):
            self.folder.remove(name)
        self.folder.sync()
        self.folder.remove(journal.NAME)
        with suppress(OSError):
            self.output.remove_folder(self.name)
        self.output.sync()

    def open(self, file: str) -> StagedFile:
        return StagedFile(self.files, file, self.layouts[file])

    def put(self, name: str, content: bytes) -> int:
        """A small file whole; its crc32."""
        fd = self.files.create_file(name)
        try:
            _write_at(fd, memoryview(content), 0, self.files.path / name)
        finally:
            os.close(fd)
        return zlib.crc32(content)

    def copy(self, name: str, source: Path) -> int:
        """A file's content, not its link; the crc32 of it."""
        crc = at = 0
        try:
            with os.fdopen(open_regular(source), "rb") as reader:
                fd = self.files.create_file(name)
                try:
                    while block := reader.read(COPY_BLOCK):
                        crc = zlib.crc32(block, crc)
                        _write_at(fd, memoryview(block), at, self.files.path / name)
                        at += len(block)
                finally:
                    os.close(fd)
        except OSError as error:
            raise ConversionError(f"{shown(source)}: cannot be copied ({error.strerror})") from error
        return crc

    def close(self) -> None:
        for one in ("files", "folder"):
            if hasattr(self, one):
                getattr(self, one).close()


def checksum(folder: Folder, file: str, at: int, nbytes: int | None) -> int:
    """crc32 of a part of a file, or of all of it; -1 if it cannot be read whole."""
    try:
        fd = folder.open_file(file)
    except OSError:
        return -1
    crc = 0
    try:
        end = at + nbytes if nbytes is not None else os.fstat(fd).st_size
        buffer = memoryview(bytearray(min(COPY_BLOCK, max(end - at, 0))))
        while at < end:
            block = buffer[: end - at]
            if system.read_at(fd, block, at) < len(block):
                return -1
            crc = zlib.crc32(block, crc)
            at += len(block)
    except OSError:
        return -1
    finally:
        os.close(fd)
    return crc


class StagedFile:
    """Positional writes to one staged file, with a running crc32 for each tensor. For one thread."""

    def __init__(self, folder: Folder, name: str, layout: FileLayout) -> None:
        self.path = folder.path / name
        self._folder, self._name = folder, name
        self.layout = layout
        self.crc32: dict[str, int] = {}
        self._fd = folder.open_file(name, os.O_RDWR)
        self._unflushed = 0

    def write(self, key: str, at: int, data: memoryview) -> None:
        """``at``: bytes from the beginning of the tensor. Calls for one tensor come in order."""
        self.crc32[key] = zlib.crc32(data, self.crc32.get(key, 0))
        start = self.layout.offsets[key] + at
        _write_at(self._fd, data, start, self.path)
        self._unflushed += len(data)
        if self._unflushed >= FLUSH_EVERY:
            self._unflushed = 0
            system.start_writeback(self._fd)

    def read_back(self, key: str, nbytes: int) -> int:
        """crc32 of a tensor as it lies in the file now; -1 if it cannot be read whole."""
        return checksum(self._folder, self._name, self.layout.offsets[key], nbytes)

    def settle(self) -> None:
        """What was written is on the disk, whatever becomes of this machine."""
        try:
            getattr(os, "fdatasync", os.fsync)(self._fd)
        except OSError as error:
            raise ConversionError(
                f"{shown(self.path)}: the disk reports an error ({error.strerror}); look after the disk, then run the "
                "same command again"
            ) from error

    def close(self) -> None:
        system.start_writeback(self._fd)
        os.close(self._fd)

    def __enter__(self) -> StagedFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _write_at(fd: int, data: memoryview, start: int, path: Path) -> None:
    try:
        system.write_at(fd, data, start)
    except OSError as error:
        raise _full(error, path, getattr(error, "missing", len(data))) from error


def _full(error: OSError, path: Path, missing: int) -> ConversionError:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ConversionError(f"{shown(path)}: cannot be written ({error.strerror})")
    return ConversionError(
        f"{shown(path)}: the disk is full, {max(missing, 1)} more bytes are needed there; make room and run the "
        "same command again, it goes on where it stopped"
    )
