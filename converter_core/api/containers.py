"""A container: a file format that holds tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from .values import FileLayout, PlannedWeight, TensorSpec


class Container(Protocol):
    """A file format that can be laid out from specs alone."""

    suffix: str

    def place(self, weights: Sequence[PlannedWeight], metadata: Mapping[str, str]) -> FileLayout: ...

    def read(self, path: str) -> tuple[Mapping[str, tuple[TensorSpec, int]], Mapping[str, str]]:
        """(key -> spec and offset from the beginning of the file, metadata)."""
        ...
