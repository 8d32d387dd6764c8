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
from pathlib import Path, PurePosixPath

MANIFEST = 256 << 20
"""Bytes of a manifest that are read: one of a million tensors has about half of it."""

JOURNAL = 512 << 20
INDEX = 100_000_000
CONFIG = 4 << 20
"""Bytes of a ``config.json``, or of another small JSON file."""

STATISTICS = 256 << 20
"""Bytes of a file of calibration statistics."""

_BLOCK = 1 << 20
CAREFULLY = sum(getattr(os, flag, 0) for flag in ("O_BINARY", "O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY"))
NO_LINK = getattr(os, "O_NOFOLLOW", 0)


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
        fd = os.open(path, flags | CAREFULLY | (NO_LINK if writes else 0), dir_fd=dir_fd)
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
    content = bytearray()
    with os.fdopen(open_regular(path, dir_fd=dir_fd), "rb", buffering=0) as file:
        # whatever its size is said to be: it may grow, and some files say 0
        while block := file.read(min(_BLOCK, limit + 1 - len(content))):
            content += block
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"has more than {limit:,} bytes", str(path))
    return bytes(content)
