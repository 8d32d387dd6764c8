"""A folder held open: names in it are opened, made, renamed and removed, and none of them leads out of it.

A path that is joined and trusted leads wherever a link on the way leads, and that may change at any moment.
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
from .trusted import CAREFULLY, NO_LINK, open_regular, read_file

_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_RELATIVE = not portable() and {os.open, os.stat, os.unlink, os.rmdir, os.mkdir, os.rename} <= os.supports_dir_fd
_NOT_KNOWN = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_REPARSE_POINT = getattr(stat, "FILE_ATTRIBUTE_REPARSE_POINT", 0)


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
        return Folder(self.path / name, os.open(name, _FOLDER | NO_LINK, dir_fd=self._fd))

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
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_LINK | CAREFULLY
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

    def remove_file(self, name: str) -> None:
        """As ``remove``, but a folder stays."""
        with suppress(FileNotFoundError, NotADirectoryError), self.holder(name) as (folder, last):
            if not stat.S_ISDIR(folder._status(last).st_mode):
                os.unlink(folder._join(last), dir_fd=folder._fd)

    def remove_folder(self, name: str) -> None:
        """An empty folder."""
        with self.holder(name) as (folder, last):
            os.rmdir(folder._join(last), dir_fd=folder._fd)

    def stamp(self, name: str, ns: int) -> None:
        """Give a file a modification time, in nanoseconds since 1970."""
        with self.holder(name) as (folder, last):
            os.utime(folder._join(last), ns=(ns, ns), dir_fd=folder._fd, follow_symlinks=False)

    def sync(self) -> None:
        """Its names are on the disk, where the system and the file system know how to sync a folder."""
        if self._fd is not None:
            try:
                os.fsync(self._fd)
            except OSError as error:
                if error.errno not in _NOT_KNOWN:
                    raise OSError(error.errno, error.strerror, str(self.path)) from error

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
