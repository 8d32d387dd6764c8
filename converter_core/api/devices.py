"""What a kind of device implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .values import Parts


class DeviceStream(Protocol):
    """One worker's way to a device and back: staging memory and, where there is such a thing, a stream."""

    def buffer(self, nbytes: int) -> Tensor:
        """Host ``uint8`` to read into, pinned where that helps; valid until the next call."""
        ...

    def upload(self, host: Tensor) -> Tensor: ...

    def download(self, parts: Parts) -> Parts:
        """On the host, contiguous, and complete on return."""
        ...


class DeviceBackend(ABC):
    """A kind of device."""

    name: ClassVar[str]
    """What ``performance.device`` calls it; ``name:N`` is the N-th of ``devices()``."""

    last_resort: ClassVar[bool] = False
    """``device: auto`` takes this one only if no other kind has a device."""

    recipe_note: ClassVar[str] = ""
    """What a recipe for it should say, e.g. what the runtime wants on such a device."""

    @abstractmethod
    def devices(self) -> Sequence[torch.device]:
        """What is there; empty if nothing."""

    def absence(self) -> str:
        """Why ``devices()`` is empty, in plain words."""
        return "no such device here"

    @abstractmethod
    def free_memory(self, device: torch.device) -> int:
        """Bytes."""

    @abstractmethod
    def slab_bytes(self, device: torch.device) -> int:
        """Source bytes worth taking at a time: about 1 MiB on a CPU (its cache), a whole weight on a GPU."""

    @abstractmethod
    def stream(self, device: torch.device) -> AbstractContextManager[DeviceStream]:
        """A worker's stream, entered in that worker's thread."""
