"""The staging folder: preallocated files, positional writes, checksums, and the way to the final names."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import zlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from ..api.values import FileLayout
from ..errors import ConversionError
from . import journal

# Linux writes at most 2,147,479,552 bytes at once; smaller pieces also let a signal through.
LARGEST_WRITE = 64 << 20
FLUSH_EVERY = 64 << 20
_SYNC_FILE_RANGE_WRITE = 2
COPY_BLOCK = 4 << 20


class Staging:
    """Files of one output on their way: ``OUTPUT/.{name}.partial/``, on the same file system by construction."""

    def __init__(self, folder: Path, placed: Mapping[str, FileLayout], home: Mapping[str, str]) -> None:
        self.folder = folder
        self.placed = placed
        self.home = home

    def path(self, file: str) -> Path:
        """Where a file is: staged, or already under its final name if its publication was interrupted."""
        staged = self.folder / file
        return staged if staged.exists() else self.folder.parent / file

    def clear(self) -> None:
        """Away with what an earlier run left; the journal stays, it is this run's already."""
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != journal.NAME:
                path.unlink()

    def remove(self) -> None:
        """The journal goes last: whenever this stops, it still says what the rest is, or there is no rest."""
        self.clear()
        (self.folder / journal.NAME).unlink()
        self.folder.rmdir()

    def reserve(self, published: Collection[str] = ()) -> None:
        """Create what is not there with its full size, so that a full disk fails now, and write the headers.

        published: files that may stand under their final names already.
        """
        for file, placed in self.placed.items():
            path = self.folder / file
            if file in published and self.path(file).exists():
                continue
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if os.fstat(fd).st_size != placed.size:
                    os.ftruncate(fd, 0)
                self._allocate(fd, path, placed.size)
                _write_at(fd, memoryview(placed.header), 0, path)
            finally:
                os.close(fd)

    def _allocate(self, fd: int, path: Path, size: int) -> None:
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                os.ftruncate(fd, size)
                return
            free = shutil.disk_usage(self.folder).free
            raise _full(error, path, size - free) from error

    def open(self, file: str) -> StagedFile:
        return StagedFile(self.path(file), self.placed[file])

    def checksum(self, file: str, key: str, nbytes: int) -> int:
        """crc32 of the staged bytes of a tensor; -1 if they cannot be read whole."""
        try:
            fd = os.open(self.path(file), os.O_RDONLY)
        except OSError:
            return -1
        crc = 0
        try:
            at, end = self.placed[file].offsets[key], self.placed[file].offsets[key] + nbytes
            while at < end:
                block = os.pread(fd, min(COPY_BLOCK, end - at), at)
                if not block:
                    return -1
                crc = zlib.crc32(block, crc)
                at += len(block)
        finally:
            os.close(fd)
        return crc

    def put(self, name: str, content: bytes) -> int:
        """A small file whole; its crc32."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.write_bytes(content)
        except OSError as error:
            raise _full(error, path, len(content)) from error
        return zlib.crc32(content)

    def copy(self, name: str, source: Path) -> int:
        """A file's content, not its link; the crc32 of it."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        crc = 0
        try:
            with source.open("rb") as reader, path.open("wb") as into:
                while block := reader.read(COPY_BLOCK):
                    crc = zlib.crc32(block, crc)
                    into.write(block)
        except OSError as error:
            raise ConversionError(f"{source}: cannot be copied to {path} ({error.strerror})") from error
        return crc

    def publish(self, names: Iterable[str], replaces: Iterable[str], last: str) -> None:
        """Everything to the disk, then to its final name, ``last`` last; what gives way goes before it."""
        output = self.folder.parent
        order = [*names, last]
        for name in order:
            if (self.folder / name).exists():
                _fsync(self.folder / name)
        for name in order[:-1]:
            self._rename(name)
        for name in sorted(set(replaces) - set(order)):
            (output / name).unlink(missing_ok=True)
        for folder in {(output / name).parent for name in order[:-1]}:
            _fsync(folder)
        self._rename(last)
        _fsync(output)
        self.remove()
        _fsync(output)

    def _rename(self, name: str) -> None:
        staged, final = self.folder / name, self.folder.parent / name
        if staged.exists():
            final.parent.mkdir(parents=True, exist_ok=True)
            staged.replace(final)


class StagedFile:
    """Positional writes to one staged file, with a running crc32 for each tensor. For one thread."""

    def __init__(self, path: Path, placed: FileLayout) -> None:
        self.path = path
        self.placed = placed
        self.crc32: dict[str, int] = {}
        self._fd = os.open(path, os.O_RDWR)
        self._unflushed = 0

    def write(self, key: str, at: int, data: memoryview) -> None:
        """``at``: bytes from the beginning of the tensor. Calls for one tensor come in order."""
        self.crc32[key] = zlib.crc32(data, self.crc32.get(key, 0))
        start = self.placed.offsets[key] + at
        _write_at(self._fd, data, start, self.path)
        self._unflushed += len(data)
        if self._unflushed >= FLUSH_EVERY:
            self._unflushed = 0
            _start_writeback(self._fd)

    def close(self) -> None:
        _start_writeback(self._fd)
        os.close(self._fd)

    def __enter__(self) -> StagedFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _write_at(fd: int, data: memoryview, start: int, path: Path) -> None:
    done = 0
    while done < len(data):
        try:
            done += os.pwrite(fd, data[done : done + LARGEST_WRITE], start + done)
        except OSError as error:
            raise _full(error, path, len(data) - done) from error


def _full(error: OSError, path: Path, missing: int) -> ConversionError:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ConversionError(f"{path}: cannot be written ({error.strerror})")
    return ConversionError(
        f"{path}: the disk is full, {max(missing, 1)} more bytes are needed there; make room and run the same command "
        "again, it goes on where it stopped"
    )


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


_libc = ctypes.CDLL(None)


def _start_writeback(fd: int) -> None:
    """Let the kernel begin to write, so that fsync at the end finds little to do. A hint: failure is of no matter."""
    if hasattr(_libc, "sync_file_range"):
        _libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)
