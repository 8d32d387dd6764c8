"""What a plugin implements: one abstract class per kind.

One idea carries all of them: a slab is a weight with fewer rows. Neither quantizer nor target can tell the difference;
each only says by ``row_block`` at which multiples of rows a weight may be cut. The core does the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from .devices import DeviceBackend, DeviceStream
from .layouts import LayoutWriter
from .models import ModelAdapter
from .quantizers import Quantizer
from .targets import Target
from .values import FileLayout, PlannedWeight, TensorSpec

__all__ = ["Container", "DeviceBackend", "DeviceStream", "LayoutWriter", "ModelAdapter", "Quantizer", "Target"]


class Container(Protocol):
    """A file format that can be laid out from specs alone."""

    suffix: str

    def place(self, weights: Sequence[PlannedWeight], metadata: Mapping[str, str]) -> FileLayout: ...

    def read(self, path: str) -> tuple[Mapping[str, tuple[TensorSpec, int]], Mapping[str, str]]:
        """(key -> spec and offset from the beginning of the file, metadata)."""
        ...
