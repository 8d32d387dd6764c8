"""One open file of tensors, whatever its format and wherever it lies."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from ..api.containers import ByteSource, Container, FileContents
from ..api.values import TensorSpec
from ..errors import CheckpointError, ConverterError, Refused, shown
from ..plugins.attribution import describe

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 4 << 20
"""Bytes that are read at a time for a checksum."""


class TensorFile:
    """Its tensors in the order of their data, each with its spec. Reading is for any number of threads at a time.

    name: without its folder. It owns the source and closes it. CheckpointError, whatever is wrong with the file or
    with its container.
    """

    def __init__(self, source: ByteSource, container_for: Callable[[ByteSource], Container], name: str = "") -> None:
        self.source = source
        self.name = name or PurePath(source.name).name
        try:
            self.container = container_for(source)
            contents = _read(source, self.container)
        except BaseException:
            source.close()
            raise
        self._contents = contents
        self._offsets = contents.offsets
        self.metadata: Mapping[str, Any] = contents.metadata
        self.notes = tuple(contents.notes)
        by_offset = sorted(contents.tensors.items(), key=lambda item: (contents.offsets.get(item[0], -1), item[0]))
        ordered = by_offset if contents.offsets else contents.tensors.items()
        self.tensors: Mapping[str, TensorSpec] = dict(ordered)

    def header_hash(self) -> str:
        """SHA-256 of what describes the tensors."""
        digest = hashlib.sha256()
        if self._contents.header:
            for block in self._blocks(0, self._contents.header):
                digest.update(block)
        else:
            listing = sorted((key, spec.dtype, spec.shape) for key, spec in self.tensors.items())
            digest.update(json.dumps(listing).encode())
        return digest.hexdigest()

    def read(self, key: str, start: int, into: memoryview) -> None:
        """Fill ``into`` with the tensor's bytes from ``start`` on."""
        spec = self.tensors[key]
        if start < 0 or start + len(into) > spec.nbytes:
            raise ValueError(f"bytes {start} to {start + len(into)} of a tensor of {spec.nbytes}")
        if key in self._offsets:
            self.source.read(self._offsets[key] + start, into)
        elif self._contents.reader is not None:
            self._contents.reader.read(key, start, into)

    def will_need(self, key: str, start: int, nbytes: int) -> None:
        if key in self._offsets:
            self.source.will_need(self._offsets[key] + start, nbytes)

    def tensor(self, key: str) -> Tensor:
        """All of one."""
        import torch

        from ..api.tensors import raw, typed

        spec = self.tensors[key]
        buffer = torch.empty(spec.nbytes, dtype=torch.uint8)
        self.read(key, 0, raw(buffer))
        return typed(buffer, spec)

    def header_crc32(self, nbytes: int | None = None) -> int:
        """Of that many bytes at the beginning; None: of all before the first tensor."""
        first = min(self._offsets.values(), default=self.source.size)
        sums = 0
        for block in self._blocks(0, min(first if nbytes is None else nbytes, self.source.size)):
            sums = zlib.crc32(block, sums)
        return sums

    def crc32(self, key: str, start: int = 0, sums: int = 0) -> int:
        """Of a tensor's bytes; or from ``start`` on, where ``sums`` is that of the bytes before."""
        nbytes = self.tensors[key].nbytes
        buffer = memoryview(bytearray(min(BLOCK, nbytes - start)))
        for at in range(start, nbytes, BLOCK):
            block = buffer[: min(BLOCK, nbytes - at)]
            self.read(key, at, block)
            sums = zlib.crc32(block, sums)
        return sums

    def _blocks(self, at: int, nbytes: int) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(min(BLOCK, nbytes)))
        for start in range(at, at + nbytes, BLOCK):
            block = buffer[: min(BLOCK, at + nbytes - start)]
            self.source.read(start, block)
            yield block

    def close(self) -> None:
        if self._contents.reader is not None:
            self._contents.reader.close()
        self.source.close()


def _read(source: ByteSource, container: Container) -> FileContents:
    """What the container says, checked against the file."""
    name = shown(source.name)
    try:
        contents = container.read(source)
        outside = [
            key
            for key, spec in contents.tensors.items()
            if not (key in contents.offsets or contents.reader is not None)
            or not 0 <= contents.offsets.get(key, 0) <= source.size - (spec.nbytes if key in contents.offsets else 0)
        ]
    except Refused as error:
        raise CheckpointError(*(f"{name}: {problem}" for problem in error.problems)) from None
    except ConverterError:
        raise
    except OSError as error:
        raise CheckpointError(f"{name}: cannot be read ({error.strerror})") from None
    except Exception as error:  # a third-party container may raise anything
        raise CheckpointError(f"{name}: container {container.name} cannot read it ({describe(error)})") from None
    if outside or contents.header > source.size:
        raise CheckpointError(
            f"{name}: {outside[0] if outside else 'the header'} lies outside the file's {source.size:,} bytes"
        )
    return contents
