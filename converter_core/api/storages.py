"""What a storage implements: where files lie, by the scheme of a URL."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from ..errors import CheckpointError, Refused, shown
from .containers import ByteSource
from .writers import Writer

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """What lies in a folder."""

    name: str
    is_folder: bool = False


class Storage(ABC):
    """A place where files lie. They are read at any place; nothing is downloaded before.

    One that outputs can be written to has a ``writer``.

    URLs are text that begins with a scheme and ``://``; the local storage takes plain paths too.
    """

    name: ClassVar[str]
    """What ``model-converter plugins`` calls it."""

    schemes: ClassVar[Sequence[str]]
    """Schemes of its URLs, e.g. ``("s3", "gs")``."""

    default: ClassVar[bool] = False
    """Takes what has no scheme: one alone."""

    @abstractmethod
    def open(self, url: str, /) -> ByteSource:
        """A file. CheckpointError if it is not there or may not be read, with what to do."""

    @abstractmethod
    def entries(self, url: str, /) -> Sequence[Entry] | None:
        """What lies in a folder, sorted; None for a file. CheckpointError if neither is there, or it cannot be told."""

    def path(self, url: str, /) -> str | None:
        """Where it lies on a disk of this machine; None: nowhere."""
        return None

    def writer(self, url: str, /) -> Writer:
        """What puts an output below a URL; nothing is asked of a server yet. Refused, with what to do instead."""
        raise Refused(f"storage {self.name} is only read from; convert into a folder on this machine, and copy that")

    def join(self, url: str, name: str, /) -> str:
        """The URL of what lies in a folder."""
        return f"{url.rstrip('/')}/{name}"

    def parent(self, url: str, /) -> str:
        """The URL of the folder that it lies in."""
        return url.rstrip("/").rpartition("/")[0]

    def basename(self, url: str, /) -> str:
        """The last part of its name."""
        return url.rstrip("/").rpartition("/")[2]


class RemoteFile(ABC):
    """A file that is read by requests for ranges; tried again, with longer and longer pauses, when one fails.

    name: the URL. version: an ETag or the like. What is large is fetched in several pieces at a time, and the beginning
    of the file is kept, for headers are read in small steps.
    """

    path: str | None = None

    HEAD = 256 << 10
    """Bytes at the beginning that are fetched at once and kept."""

    PIECE = 8 << 20
    """Bytes of a request."""

    ATTEMPTS = 6
    PAUSE = 0.5
    """Seconds before the second attempt; twice as many before each further one."""

    def __init__(self, name: str, size: int, version: int | str) -> None:
        self.name = name
        self.size = size
        self.version = version
        self._head = b""
        self._lock = threading.Lock()

    @abstractmethod
    def fetch(self, at: int, nbytes: int, /) -> bytes:
        """One request, from any thread. OSError if it may succeed when it is tried again, CheckpointError if not."""

    @abstractmethod
    def current(self) -> tuple[int, int | str]:
        """Size and version of the file now. OSError, CheckpointError."""

    def read(self, at: int, into: memoryview) -> None:
        if at + len(into) > self.size:
            raise CheckpointError(f"{shown(self.name)}: has {self.size} bytes, not {at + len(into)}")
        if not len(into):
            return
        if at + len(into) <= self.HEAD:
            into[:] = self._beginning()[at : at + len(into)]
            return
        if len(into) <= self.PIECE:
            self._piece(at, into)
            return
        starts = range(0, len(into), self.PIECE)
        for _ in _requests().map(lambda start: self._piece(at + start, into[start : start + self.PIECE]), starts):
            pass

    def will_need(self, at: int, nbytes: int) -> None:  # noqa: B027
        """Nothing: what is not asked for is not fetched."""

    def check_unchanged(self) -> None:
        if self._tried(self.current) != (self.size, self.version):
            raise CheckpointError(f"{shown(self.name)}: was replaced while it was read; run again with the new file")

    def close(self) -> None:
        self._head = b""

    def _beginning(self) -> bytes:
        with self._lock:
            if not self._head:
                head = bytearray(min(self.HEAD, self.size))
                self._piece(0, memoryview(head))
                self._head = bytes(head)
            return self._head

    def _piece(self, at: int, into: memoryview) -> None:
        data = self._tried(lambda: self._whole(at, len(into)))
        into[:] = data

    def _whole(self, at: int, nbytes: int) -> bytes:
        data = self.fetch(at, nbytes)
        if len(data) != nbytes:
            raise OSError(f"{len(data)} bytes came instead of {nbytes}")
        return data

    def _tried(self, ask: Callable[[], T]) -> T:
        try:
            return tried(ask, self.ATTEMPTS, self.PAUSE)
        except OSError as error:
            raise CheckpointError(
                f"{shown(self.name)}: cannot be read, also after {self.ATTEMPTS} attempts ({error}); run the same "
                "command again, it goes on where it stopped"
            ) from error


def tried(ask: Callable[[], T], attempts: int, pause: float) -> T:
    """What ``ask`` gives, after as many attempts as that takes; the last OSError after that many.

    pause: seconds before the second attempt; twice as many before each further one.
    """
    for attempt in range(1, attempts):
        try:
            return ask()
        except OSError:
            time.sleep(pause * 2 ** (attempt - 1))
    return ask()


_pool: list[ThreadPoolExecutor] = []
_pool_lock = threading.Lock()


def _requests() -> ThreadPoolExecutor:
    """Threads that wait for pieces of large reads, of all files together."""
    with _pool_lock:
        if not _pool:
            _pool.append(ThreadPoolExecutor(16, "range-request"))
        return _pool[0]
