"""What every card has in common that torch calls ``cuda``, NVIDIA's and, in a ROCm build, others'."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from converter_core.api import DeviceBackend, DeviceStream

if TYPE_CHECKING:
    from converter_core.api import Parts


class TorchCudaBackend(DeviceBackend):
    """Everything but whose cards these are: that is for ``devices`` and ``absence`` of a subclass to say."""

    def free_memory(self, device: torch.device) -> int:
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)

    def slab_bytes(self, device: torch.device) -> int:
        """256 MiB: every bfloat16 weight of a 14B model whole (the largest has 135 MiB), and a power of two.

        torch rounds pinned memory up to one.
        """
        return 2**28

    def stream(self, device: torch.device) -> AbstractContextManager[DeviceStream]:
        return _stream(device)


def cards() -> Sequence[torch.device]:
    """All that torch sees, whoever made them."""
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]


@contextmanager
def _stream(device: torch.device) -> Iterator[DeviceStream]:
    queue = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    # both are of the thread that enters: whatever this worker computes goes to its stream
    with torch.cuda.device(device), torch.cuda.stream(queue):
        stream = _CudaStream(device, queue)
        try:
            yield stream
        finally:
            queue.synchronize()  # copies from the staging buffers may still run


class _CudaStream:
    """One stream, on which everything happens in order, and two pinned staging buffers.

    While the copy from one of them is under way the worker may read into the other. Results come into pinned memory
    that is fresh each time (torch keeps and reuses it), so none is written over while somebody still reads it.
    """

    def __init__(self, device: torch.device, stream: torch.cuda.Stream) -> None:
        self._device = device
        self._stream = stream
        self._staging = [_Staging(), _Staging()]

    def buffer(self, nbytes: int) -> Tensor:
        self._staging.reverse()
        return self._staging[0].take(nbytes)

    def upload(self, host: Tensor) -> Tensor:
        if not host.is_pinned():  # a small input from elsewhere: nothing says how long it stays as it is
            return host.to(self._device)
        there = host.to(self._device, non_blocking=True)
        self._staging[0].copied(self._stream)
        return there

    def download(self, parts: Parts) -> Parts:
        host: dict[str, Tensor] = {}
        for role, part in parts.items():
            host[role] = _pinned(part.shape, part.dtype)
            host[role].copy_(part, non_blocking=True)
        self._stream.synchronize()
        return host


def _pinned(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)


class _Staging:
    """A pinned buffer, and the event after which the last copy from it is done."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None
        self._done: torch.cuda.Event | None = None

    def take(self, nbytes: int) -> Tensor:
        if self._done is not None:
            self._done.synchronize()
            self._done = None
        if self._memory is None or self._memory.numel() < nbytes:
            self._memory = None  # first: the old one need not live beside the new one
            self._memory = _pinned((nbytes,), torch.uint8)
        return self._memory[:nbytes]

    def copied(self, stream: torch.cuda.Stream) -> None:
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done.record(stream)
