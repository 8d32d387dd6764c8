"""The files of an output, held open for reading by position."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from .errors import CheckpointError, shown
from .interfaces import Container
from .specs import TensorSpec
from .verification_report import Problem

BLOCK = 4 << 20
"""Bytes that are read at a time."""


class OutputFile:
    """A file of weights held open. tensors: key -> spec and where it starts. header: every byte before the data."""

    def __init__(self, folder: Path, name: str, container: Container) -> None:
        self.name = name
        path = folder / name
        try:
            self.tensors, self.metadata = container.read(str(path))
            self._fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise CheckpointError(f"{shown(path)}: cannot be read ({error.strerror})") from None
        self.size = os.fstat(self._fd).st_size

    def header_crc32(self) -> int:
        return self._crc32(0, min((at for _, at in self.tensors.values()), default=self.size))

    def crc32(self, key: str, start: int = 0, sums: int = 0) -> int:
        """Of a tensor's bytes; or from ``start`` on, where ``sums`` is that of the bytes before."""
        spec, at = self.tensors[key]
        return self._crc32(at + start, spec.nbytes - start, sums)

    def _crc32(self, at: int, nbytes: int, sums: int = 0) -> int:
        buffer = memoryview(bytearray(min(BLOCK, nbytes)))
        for start in range(at, at + nbytes, BLOCK):
            block = buffer[: min(BLOCK, at + nbytes - start)]
            self._read(start, block)
            sums = zlib.crc32(block, sums)
        return sums

    def read(self, key: str, start: int, into: memoryview) -> None:
        """Fill ``into`` with bytes of a tensor from ``start`` on. Any number of threads at a time."""
        self._read(self.tensors[key][1] + start, into)

    def _read(self, at: int, into: memoryview) -> None:
        done = 0
        while done < len(into):
            count = os.preadv(self._fd, [into[done:]], at + done)
            if not count:
                raise CheckpointError(f"{shown(self.name)}: was cut short while it was read")
            done += count

    def close(self) -> None:
        os.close(self._fd)


class Reading:
    """Reads tensors for whoever wants their values, and sums up their checksums on the way: each byte is read once.

    It counts what is read in order, from a tensor's beginning on; the rest is read for ``crc32``.
    """

    def __init__(self, home: Mapping[str, OutputFile], advance: Callable[[int], None]) -> None:
        """advance: told of bytes that were read for the first time."""
        self._home = home
        self._advance = advance
        self._sums: dict[str, tuple[int, int]] = {}

    def __call__(self, key: str, start: int, into: memoryview) -> None:
        self._home[key].read(key, start, into)
        at, sums = self._sums.get(key, (0, 0))
        if start == at:
            self._sums[key] = at + len(into), zlib.crc32(into, sums)
            self._advance(len(into))

    def crc32(self, key: str) -> int:
        at, sums = self._sums.get(key, (0, 0))
        sums = self._home[key].crc32(key, at, sums)
        self.skip(key)
        return sums

    def skip(self, key: str) -> None:
        """What has not been read need not be."""
        nbytes = self._home[key].tensors[key][0].nbytes
        at, sums = self._sums.get(key, (0, 0))
        self._sums[key] = nbytes, sums
        self._advance(nbytes - at)


@dataclass
class Output:
    """The files of an output that could be opened, and what was wrong with it so far.

    home: key -> file. sizes: bytes of each file that is there. checksums: how many were compared.
    """

    folder: Path
    files: dict[str, OutputFile] = field(default_factory=dict)
    home: dict[str, OutputFile] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checksums: int = 0

    def __post_init__(self) -> None:
        self._stack = ExitStack()

    @property
    def tensors(self) -> dict[str, TensorSpec]:
        return {key: file.tensors[key][0] for key, file in self.home.items()}

    def add(self, file: OutputFile) -> None:
        self._stack.callback(file.close)
        self.files[file.name] = file
        self.sizes[file.name] = file.size
        self.home.update(dict.fromkeys(file.tensors, file))

    def problem(self, file: str, reason: str, tensor: str = "") -> None:
        self.problems.append(Problem(file, tensor, reason))

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
