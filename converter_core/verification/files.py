"""The files of an output, held open for reading by position."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from ..api.containers import Container
from ..api.tensors import raw, typed
from ..api.values import TensorSpec
from ..errors import CheckpointError, ConverterError, shown
from ..plugins.attribution import describe
from .result import Problem

BLOCK = 4 << 20
"""Bytes that are read at a time."""


class OutputFile:
    """A file of weights held open. tensors: key -> spec and where it starts. header: every byte before the data."""

    def __init__(self, folder: Path, name: str, container: Container) -> None:
        """CheckpointError, whatever is wrong with the file or with the container that reads it."""
        self.name = name
        path = folder / name
        try:
            self.tensors, self.metadata = container.read(str(path))
            self._fd = os.open(path, os.O_RDONLY)
        except ConverterError:
            raise
        except OSError as error:
            raise CheckpointError(f"{shown(path)}: cannot be read ({error.strerror})") from None
        except Exception as error:  # a third-party container may raise anything
            raise CheckpointError(
                f"{shown(path)}: {type(container).__name__} cannot read it ({describe(error)})"
            ) from None
        self.size = os.fstat(self._fd).st_size
        outside = [key for key, (spec, at) in self.tensors.items() if at < 0 or at + spec.nbytes > self.size]
        if outside:
            os.close(self._fd)
            raise CheckpointError(f"{shown(path)}: {outside[0]} lies outside the file's {self.size:,} bytes")

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
            try:
                count = os.preadv(self._fd, [into[done:]], at + done)
            except OSError as error:
                raise CheckpointError(f"{shown(self.name)}: cannot be read ({error.strerror})") from None
            if not count:
                raise CheckpointError(f"{shown(self.name)}: ends before byte {at + len(into):,}")
            done += count

    def tensor(self, key: str) -> Tensor:
        """All of it."""
        spec, _ = self.tensors[key]
        buffer = torch.empty(spec.nbytes, dtype=torch.uint8)
        self.read(key, 0, raw(buffer))
        return typed(buffer, spec)

    def close(self) -> None:
        os.close(self._fd)


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
        nbytes = self._weight_map[key].tensors[key][0].nbytes
        at, sums = self._sums.get(key, (0, 0))
        self._sums[key] = nbytes, sums
        self._advance(nbytes - at)


@dataclass
class Output:
    """The files of an output that could be opened, and what was wrong with it so far.

    weight_map: key -> file. sizes: bytes of each file that is there. checksums: how many were compared.
    """

    folder: Path
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
        return {key: file.tensors[key][0] for key, file in self.weight_map.items()}

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
