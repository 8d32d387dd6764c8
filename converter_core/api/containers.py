"""What a container implements: a file format that holds tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from ..errors import CheckpointError, Refused, shown
from .values import ITEMSIZE, FileLayout, PlannedWeight, TensorSpec


class ByteSource(Protocol):
    """A file that can be read at any place, wherever it lies.

    name: for messages. size: bytes. version: what changes when the file does, e.g. the time of its last change in ns,
    or an ETag. path: where a library can open it; None where it is not on this machine. It may have an ``identity``
    too: a tuple of numbers or text that a copy of the file with the same version does not share.
    """

    name: str
    size: int
    version: int | str
    path: str | None

    def read(self, at: int, into: memoryview) -> None:
        """Fill ``into`` from byte ``at`` on. Any number of threads at a time. CheckpointError if that cannot be."""
        ...

    def will_need(self, at: int, nbytes: int) -> None:
        """These bytes will be read soon: a hint."""
        ...

    def check_unchanged(self) -> None:
        """CheckpointError if the file is no longer the one that was opened."""
        ...

    def close(self) -> None: ...


class TensorReader(Protocol):
    """Reads tensors whose bytes do not lie in the file as they are."""

    def read(self, key: str, start: int, into: memoryview) -> None:
        """Fill ``into`` with a tensor's bytes, as if they were contiguous, from byte ``start`` on. From any thread."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class FileContents:
    """What a file holds, by its header.

    offsets: where the bytes of each tensor begin in the file, row by row and little endian. metadata: of the whole
    file, in the types that the format has. header: bytes before the data; with a hash of them a changed file shows.
    0: there is no such run of bytes, and keys, dtypes and shapes are hashed. reader: reads the tensors that have no
    offset. notes: what a user should know, with the file's name.
    """

    tensors: Mapping[str, TensorSpec]
    offsets: Mapping[str, int] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    header: int = 0
    reader: TensorReader | None = None
    notes: Sequence[str] = ()


class Container(ABC):
    """A file format: how files of it are read, and laid out from specs alone.

    One that cannot be written leaves ``place`` out.
    """

    name: ClassVar[str]
    """What ``source.format`` and ``Target.container`` call it."""

    default: ClassVar[bool] = False
    """Taken for targets that name none, and looked for first in a folder."""

    suffixes: ClassVar[Sequence[str]]
    """Ends of file names that it is recognised by, each with its dot; the first one is written."""

    magic: ClassVar[bytes] = b""
    """How its files begin; empty where they have no such mark."""

    index_suffixes: ClassVar[Sequence[str]] = ()
    """Ends of the names of index files (in the Hugging Face form) that name the file of every tensor; the first one is
    written. Empty: files of this format have none."""

    sharded: ClassVar[bool] = False
    """Whether several files in a folder are parts of one checkpoint also where no index says so."""

    dtypes: ClassVar[Collection[str]] = frozenset(ITEMSIZE)
    """Plain dtypes that it can hold."""

    blocks: ClassVar[Mapping[str, tuple[int, int]]] = {}
    """Packed dtypes that it can hold -> elements and bytes of a block."""

    metadata: ClassVar[Mapping[str, Any]] = {}
    """What stands in the header of every file that is written in it, beside what the target says."""

    @classmethod
    def recognises(cls, head: bytes) -> bool:
        """Whether a file that begins with ``head`` (64 bytes, fewer of a shorter file) is of this format."""
        return bool(cls.magic) and head.startswith(cls.magic)

    @abstractmethod
    def read(self, source: ByteSource, /) -> FileContents:
        """What a file holds. Only headers are read, and nothing that they claim is believed before it is checked.

        CheckpointError for a file that is damaged, cut short or of another format, with its name and what to do.
        """

    def place(self, weights: Sequence[PlannedWeight], metadata: Mapping[str, Any], /) -> FileLayout:
        """Where everything goes in a file, before there is any data. ``Refused`` for metadata that cannot be stored."""
        raise Refused(f"{self.name} files are read, not written; choose another target")

    def reference(self, path: str, /) -> Mapping[str, TensorSpec] | None:
        """The tensors of a file as the format's own library reads them, for ``verify``; None: it is not at hand.

        CheckpointError with what the library says of a file that it does not open.
        """
        return None


class HeaderReader:
    """Reads the beginning of a file piece by piece, in large blocks. at: how far it has come."""

    BLOCK = 64 << 10

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        self.at = 0
        self._block = b""
        self._start = 0

    def take(self, count: int) -> bytes:
        """The next bytes. CheckpointError if the file ends before, whatever its header claims."""
        if count < 0 or self.at + count > self.source.size:
            raise CheckpointError(
                f"{shown(self.source.name)}: the header asks for {count} bytes at byte {self.at}, the file has "
                f"{self.source.size}; it is cut short or damaged, download it again"
            )
        begin = self.at - self._start
        if begin + count > len(self._block):
            block = bytearray(min(max(count, self.BLOCK), self.source.size - self.at))
            self.source.read(self.at, memoryview(block))
            self._block, self._start, begin = bytes(block), self.at, 0
        self.at += count
        return self._block[begin : begin + count]
