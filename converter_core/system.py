"""What an operating system gives and another does not, each with a portable way.

``CONVERTER_PORTABLE_IO=1`` takes the portable way everywhere, so that it can be tried where it is not needed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import threading
from typing import Any

try:
    import fcntl
    import resource
except ImportError:  # Windows
    fcntl = resource = None  # type: ignore[assignment]

PORTABLE_VARIABLE = "CONVERTER_PORTABLE_IO"
LARGEST_WRITE = 64 << 20
"""Bytes that are written at a time: Linux takes at most 2,147,479,552, and smaller pieces let a signal through."""

_SYNC_FILE_RANGE_WRITE = 2
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
# a descriptor has one position: where there are no reads and writes at an offset, its users take turns
_TURNS = tuple(threading.Lock() for _ in range(64))


def portable() -> bool:
    """Whether the portable ways are asked for."""
    return os.environ.get(PORTABLE_VARIABLE, "") not in ("", "0")


def read_at(fd: int, into: memoryview, at: int) -> int:
    """Fill ``into`` from byte ``at`` of a file on; how many bytes there were. Any number of threads at a time."""
    done = 0
    while done < len(into):  # Linux reads at most 2 GiB at a time
        if hasattr(os, "preadv") and not portable():
            count = os.preadv(fd, [into[done:]], at + done)
        else:
            count = _read_in_turn(fd, into[done:], at + done)
        if not count:
            break
        done += count
    return done


def write_at(fd: int, data: memoryview, at: int) -> None:
    """Write all of ``data``. OSError with the bytes that are missing as ``missing``."""
    done = 0
    while done < len(data):
        piece = data[done : done + LARGEST_WRITE]
        try:
            if hasattr(os, "pwrite") and not portable():
                done += os.pwrite(fd, piece, at + done)
            else:
                done += _write_in_turn(fd, piece, at + done)
        except OSError as error:
            error.missing = len(data) - done  # type: ignore[attr-defined]
            raise


def _read_in_turn(fd: int, into: memoryview, at: int) -> int:
    with _TURNS[fd % len(_TURNS)]:
        os.lseek(fd, at, os.SEEK_SET)
        block = os.read(fd, min(len(into), LARGEST_WRITE))
    into[: len(block)] = block
    return len(block)


def _write_in_turn(fd: int, data: memoryview, at: int) -> int:
    with _TURNS[fd % len(_TURNS)]:
        os.lseek(fd, at, os.SEEK_SET)
        return os.write(fd, data)


def allocate(fd: int, size: int) -> None:
    """Give a file its size, and the room on the disk for it where the file system can promise that."""
    if hasattr(os, "posix_fallocate") and not portable():
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
        else:
            return
    if os.fstat(fd).st_size != size:
        os.ftruncate(fd, size)


def punch(fd: int, at: int, nbytes: int) -> bool:
    """Give the room of some bytes of a file back to the disk; zeros are read there. False: not possible here."""
    call = libc_function("fallocate")
    if call is None or portable() or not sys.platform.startswith("linux"):
        return False
    offsets = ctypes.c_int64(at), ctypes.c_int64(nbytes)
    return bool(call(fd, _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE, *offsets) == 0)


def can_punch() -> bool:
    """Whether the system knows how to; a file system may still refuse."""
    return sys.platform.startswith("linux") and not portable() and libc_function("fallocate") is not None


def lock(fd: int) -> bool:
    """Lock a folder for this process until it is closed; False: it cannot be locked here.

    BlockingIOError if another process has it.
    """
    if fcntl is None or portable():
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks on folders
        return False
    return True


def will_need(fd: int, at: int, nbytes: int) -> None:
    """These bytes of a file will be read soon: a hint."""
    if nbytes and hasattr(os, "posix_fadvise") and not portable():
        os.posix_fadvise(fd, at, nbytes, os.POSIX_FADV_WILLNEED)


def start_writeback(fd: int) -> None:
    """Let the system begin to write, so that a sync at the end finds little to do. A hint: failure is of no matter."""
    begin = libc_function("sync_file_range")
    if begin is not None and not portable():
        begin(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)


def peak_resident() -> int:
    """Bytes: the largest resident size of this process so far; 0 where the system does not tell."""
    if resource is None:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def libc_function(name: str) -> Any:
    """A function of the C library; None where there is no such."""
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):  # Windows has no library that is all of the process
        return None


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
