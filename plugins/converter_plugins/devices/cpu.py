"""The processor: always there, and what ``auto`` falls back to."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from converter_core.api import DeviceBackend, DeviceStream, hookimpl

from ._host_memory import available_memory

if TYPE_CHECKING:
    from converter_core.api import Parts


class Cpu(DeviceBackend):
    """The processor; one thread for each worker."""

    name = "cpu"
    last_resort = True

    def devices(self) -> Sequence[torch.device]:
        return [torch.device("cpu")]

    def free_memory(self, device: torch.device) -> int:
        return available_memory()

    def slab_bytes(self, device: torch.device) -> int:
        """2.5 MiB, 256 rows of 5120 bfloat16: with less, workers wait for each other in the interpreter."""
        return 5 * 2**19

    def stream(self, device: torch.device) -> AbstractContextManager[DeviceStream]:
        return _stream()


class _CpuStream:
    """Tensors stay where they are. The staging buffer begins at a page and grows to the largest asked for."""

    def __init__(self) -> None:
        self._buffer = _pages(1)

    def buffer(self, nbytes: int) -> Tensor:
        if nbytes > self._buffer.numel():
            self._buffer = _pages(nbytes)
        return self._buffer[:nbytes]

    def upload(self, host: Tensor) -> Tensor:
        return host

    def download(self, parts: Parts) -> Parts:
        return {role: part.contiguous() for role, part in parts.items()}


def _pages(nbytes: int) -> Tensor:
    # mapped, not from the heap: aligned, and back with the system as soon as nobody looks at it
    return torch.frombuffer(mmap.mmap(-1, -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE), dtype=torch.uint8)


class _SingleThread:
    """One intra-op thread in every thread that has a stream; as it was when the last stream is left.

    ``torch.set_num_threads`` sets two things: the calling thread's own number, and the one that threads begin with
    that have not computed yet. A worker that begins while others run finds their 1 as its "before", so what was there
    before the first of them is kept for all. The state is torch's, of the whole process; so is this.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams = 0
        self._before = 1

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            # asked in every thread: that begins its own number, which its first operation would else begin later
            before = torch.get_num_threads()
            if not self._streams:
                self._before = before
            self._streams += 1
            torch.set_num_threads(1)
        try:
            yield
        finally:
            with self._lock:
                self._streams -= 1
                torch.set_num_threads(self._before)


_single_thread = _SingleThread()


@contextmanager
def _stream() -> Iterator[DeviceStream]:
    with _single_thread():
        yield _CpuStream()


@hookimpl
def converter_devices() -> Sequence[type[DeviceBackend]]:
    return [Cpu]
