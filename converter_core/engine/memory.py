"""How much tensor data is in flight, and keeping glibc from giving freed memory back only to fault it in again."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..system import libc_function

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> None:
    """Tell glibc to keep what slabs free. Without this, 4-bit kernels run four times slower; elsewhere a no-op.

    For the command line alone: in a library the process, and what its memory costs, is the host's.
    """
    mallopt = libc_function("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 256 << 20)


def give_back_freed_memory() -> None:
    """To the system, what is freed already: each worker thread has a heap of its own and finds nothing of it."""
    trim = libc_function("malloc_trim")
    if trim is not None:
        trim(ctypes.c_size_t(0))


class Budget:
    """Bytes that may be in flight. What is larger than all of it waits until it can run alone."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = total
        self._changed = threading.Condition()
        self._closed = False

    @contextmanager
    def take(self, nbytes: int) -> Iterator[None]:
        claim = min(nbytes, self.total)
        with self._changed:
            self._changed.wait_for(lambda: self._closed or claim <= self._free)
            self._free -= claim
        try:
            yield
        finally:
            with self._changed:
                self._free += claim
                self._changed.notify_all()

    def close(self) -> None:
        """Let everyone through who still waits; the run is over."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
