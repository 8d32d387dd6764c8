"""The one place that opens files which others may have made.

A folder may have been downloaded, shared or tampered with: a pipe would wait for ever, a device never ends, a manifest
may have gigabytes, and a link may lead to what is somebody else's. So a file is opened only if it is a regular one, it
is read up to a limit of its kind, and where something is written or deleted no component of its name is a link.

Everything that is refused is an OSError whose ``strerror`` says why, like what the system itself refuses.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from types import TracebackType

from .system import portable

MANIFEST = 256 << 20
"""Bytes of a manifest that are read: one of a million tensors has about half of it."""

JOURNAL = 512 << 20
INDEX = 100_000_000
CONFIG = 4 << 20
"""Bytes of a ``config.json``, or of another small JSON file."""

STATISTICS = 256 << 20
"""Bytes of a file of calibration statistics."""

_CAREFULLY = sum(getattr(os, flag, 0) for flag in ("O_BINARY", "O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY"))
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_RELATIVE = not portable() and {os.open, os.stat, os.unlink, os.rmdir, os.mkdir, os.rename} <= os.supports_dir_fd
_REPARSE_POINT = getattr(stat, "FILE_ATTRIBUTE_REPARSE_POINT", 0)


def is_inside(name: object) -> bool:
    """Whether a name that a file gives can only mean something below the folder it is for."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        return False
    path = PurePosixPath(name)
    if path.is_absolute() or Path(name).drive or ".." in path.parts or path.as_posix() != name or name == ".":
        return False
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def open_regular(path: str | os.PathLike[str], flags: int = os.O_RDONLY, dir_fd: int | None = None) -> int:
    """A descriptor of a regular file; a link is followed when it is read, and refused when it is written.

    What is opened for writing has one name only: another would be somebody else's.
    """
    writes = flags & (os.O_WRONLY | os.O_RDWR)
    try:
        # before it is opened: opening a device may already do something
        _check_regular(os.stat(path, dir_fd=dir_fd, follow_symlinks=not writes), path)
        fd = os.open(path, flags | _CAREFULLY | (_NO_LINK if writes else 0), dir_fd=dir_fd)
    except ValueError as error:  # NUL, or half of a surrogate pair
        raise OSError(errno.EINVAL, f"is no file name ({error})", str(path)) from None
    try:
        status = os.fstat(fd)
        _check_regular(status, path)
        if writes and status.st_nlink != 1:
            raise OSError(errno.EMLINK, "has another name too (a hard link) and is not written to", str(path))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_regular(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "is not a regular file", str(path))


def read_file(path: str | os.PathLike[str], limit: int, dir_fd: int | None = None) -> bytes:
    """The content of a regular file of at most ``limit`` bytes."""
    with os.fdopen(open_regular(path, dir_fd=dir_fd), "rb") as file:
        content = file.read(limit + 1)  # whatever its size is said to be: it may grow, and some files say 0
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"has more than {limit:,} bytes", str(path))
    return content


class Folder:
    """A folder held open. Names are relative to it, and no component of one may be a link.

    Where the system knows no names relative to a descriptor, paths are joined after each component was looked at.
    """

    def __init__(self, path: Path, fd: int | None) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    def open(cls, path: Path) -> Folder:
        """``path`` is the user's own and may lead over links."""
        if not _RELATIVE:
            return cls(path.resolve(strict=True), None)
        try:
            return cls(path, os.open(path, _FOLDER))
        except ValueError as error:
            raise OSError(errno.EINVAL, f"is no file name ({error})", str(path)) from None

    def fileno(self) -> int:
        """Of the descriptor. OSError where the system has none for folders."""
        if self._fd is None:
            raise OSError(errno.ENOTSUP, "folders cannot be held open here", str(self.path))
        return self._fd

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Folder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def child(self, name: str) -> Folder:
        """A folder in it."""
        status = self._status(name)
        if _is_link(status) or not stat.S_ISDIR(status.st_mode):
            raise OSError(errno.ENOTDIR, "is a link or a file where a folder should be", str(self.path / name))
        if self._fd is None:
            return Folder(self.path / name, None)
        return Folder(self.path / name, os.open(name, _FOLDER | _NO_LINK, dir_fd=self._fd))

    def make(self, name: str) -> Folder:
        """The same, made if it is not there; its name is durable then."""
        try:
            os.mkdir(self._join(name), dir_fd=self._fd)
        except FileExistsError:
            return self.child(name)
        self.sync()
        return self.child(name)

    @contextmanager
    def holder(self, name: str, make: bool = False) -> Iterator[tuple[Folder, str]]:
        """The folder that a name like ``a/b.json`` lies in, and its last part."""
        *parents, last = PurePosixPath(name).parts or ("",)
        if last in ("", "..") or name.startswith("/") or ".." in parents:
            raise OSError(errno.EINVAL, "is no name of a file in this folder", name)
        folder, opened = self, []
        try:
            for part in parents:
                folder = folder.make(part) if make else folder.child(part)
                opened.append(folder)
            yield folder, last
        except OSError as error:
            error.filename, error.filename2 = str(self.path / name), None
            raise
        finally:
            for one in opened:
                one.close()

    def names(self) -> list[str]:
        with os.scandir(self._at()) as entries:
            return sorted(entry.name for entry in entries)

    def status(self, name: str) -> os.stat_result | None:
        """Of what stands under a name, not of what it leads to; None: nothing does."""
        try:
            with self.holder(name) as (folder, last):
                return folder._status(last)
        except FileNotFoundError:
            return None

    def open_file(self, name: str, flags: int = os.O_RDONLY) -> int:
        """A descriptor of a regular file that is there."""
        with self.holder(name) as (folder, last):
            return open_regular(folder._join(last), flags, folder._fd)

    def create_file(self, name: str) -> int:
        """A descriptor of a new file; whatever stood there loses this name, and is not written to."""
        with self.holder(name, make=True) as (folder, last):
            folder.remove(last)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK | _CAREFULLY
            return os.open(folder._join(last), flags, 0o644, dir_fd=folder._fd)

    def read(self, name: str, limit: int) -> bytes:
        with self.holder(name) as (folder, last):
            return read_file(folder._join(last), limit, folder._fd)

    def rename(self, name: str, to: Folder, new: str) -> None:
        """Over what stands there. Durable when ``to`` is synced."""
        with self.holder(name) as (folder, last), to.holder(new, make=True) as (target, final):
            os.replace(folder._join(last), target._join(final), src_dir_fd=folder._fd, dst_dir_fd=target._fd)

    def remove(self, name: str) -> None:
        """A file, a link (not what it leads to) or a folder with all that is in it; nothing where there is nothing."""
        try:
            status = self.status(name)
        except NotADirectoryError:  # a link or a file in the way: such a name does not exist
            return
        if status is None:
            return
        with self.holder(name) as (folder, last):
            if not stat.S_ISDIR(status.st_mode) or _is_link(status):
                with suppress(FileNotFoundError):
                    os.unlink(folder._join(last), dir_fd=folder._fd)
                return
            with folder.child(last) as inner:
                for one in inner.names():
                    inner.remove(one)
            folder.remove_folder(last)

    def remove_folder(self, name: str) -> None:
        """An empty folder."""
        with self.holder(name) as (folder, last):
            os.rmdir(folder._join(last), dir_fd=folder._fd)

    def stamp(self, name: str, ns: int) -> None:
        """Give a file a modification time, in nanoseconds since 1970."""
        with self.holder(name) as (folder, last):
            os.utime(folder._join(last), ns=(ns, ns), dir_fd=folder._fd, follow_symlinks=False)

    def sync(self) -> None:
        """Its names are on the disk. Where folders cannot be held open they cannot be synced either."""
        if self._fd is not None:
            os.fsync(self._fd)

    def _at(self) -> int | Path:
        return self.path if self._fd is None else self._fd

    def _join(self, name: str) -> str:
        return name if self._fd is not None else str(self.path / name)

    def _status(self, name: str) -> os.stat_result:
        return os.stat(self._join(name), dir_fd=self._fd, follow_symlinks=False)


def make_folder(path: Path) -> Folder:
    """The folder of a user's own path, made with its parents if it is not there; their names are durable then."""
    missing = []
    there = path
    while not there.is_dir() and there != there.parent:
        missing.append(there)
        there = there.parent
    for one in reversed(missing):
        with suppress(FileExistsError):
            one.mkdir()
        with Folder.open(one.parent) as parent:
            parent.sync()
    return Folder.open(path)


def _is_link(status: os.stat_result) -> bool:
    return stat.S_ISLNK(status.st_mode) or bool(getattr(status, "st_file_attributes", 0) & _REPARSE_POINT)
