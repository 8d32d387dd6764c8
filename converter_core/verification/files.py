"""The files of an output, held open for reading by position."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType

from ..api.containers import Container
from ..api.values import TensorSpec
from ..containers.tensor_file import TensorFile
from ..storage.location import Location
from .result import Problem

BLOCK = 4 << 20
"""Bytes that are read at a time."""


class OutputFile(TensorFile):
    """A file of weights of an output. CheckpointError, whatever is wrong with it or with the container."""

    def __init__(self, folder: Location, name: str, container: Container) -> None:
        super().__init__((folder / name).open(), lambda source: container, name)
        self.size = self.source.size


class Reading:
    """Reads tensors for whoever wants their values, and sums up their checksums on the way: each byte is read once.

    It counts what is read in order, from a tensor's beginning on; the rest is read for ``crc32``.
    """

    def __init__(self, weight_map: Mapping[str, OutputFile], advance: Callable[[int], None]) -> None:
        """advance: told of bytes that were read for the first time."""
        self._weight_map = weight_map
        self._advance = advance
        self._sums: dict[str, tuple[int, int]] = {}

    def __call__(self, key: str, start: int, into: memoryview) -> None:
        self._weight_map[key].read(key, start, into)
        at, sums = self._sums.get(key, (0, 0))
        if start == at:
            self._sums[key] = at + len(into), zlib.crc32(into, sums)
            self._advance(len(into))

    def crc32(self, key: str) -> int:
        at, sums = self._sums.get(key, (0, 0))
        sums = self._weight_map[key].crc32(key, at, sums)
        self.skip(key)
        return sums

    def skip(self, key: str) -> None:
        """What has not been read need not be."""
        nbytes = self._weight_map[key].tensors[key].nbytes
        at, sums = self._sums.get(key, (0, 0))
        self._sums[key] = nbytes, sums
        self._advance(nbytes - at)


@dataclass
class Output:
    """The files of an output that could be opened, and what was wrong with it so far.

    weight_map: key -> file. sizes: bytes of each file that is there. checksums: how many were compared.
    """

    folder: Location
    files: dict[str, OutputFile] = field(default_factory=dict)
    weight_map: dict[str, OutputFile] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checksums: int = 0

    def __post_init__(self) -> None:
        self._stack = ExitStack()

    @property
    def tensors(self) -> dict[str, TensorSpec]:
        return {key: file.tensors[key] for key, file in self.weight_map.items()}

    def add(self, file: OutputFile, keys: Collection[str]) -> None:
        """keys: the tensors that are looked for in this file, and not in another that has them too."""
        self._stack.callback(file.close)
        self.files[file.name] = file
        self.sizes[file.name] = file.size
        self.weight_map.update({key: file for key in keys if key in file.tensors})

    def problem(self, file: str, reason: str, tensor: str = "") -> None:
        self.problems.append(Problem(file, tensor, reason))

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
