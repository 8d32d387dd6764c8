"""The tensors of one model, whatever files they are in."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from ..api.values import TensorSpec
from ..containers.tensor_file import TensorFile
from ..errors import CheckpointError
from ..storage.location import Location


@dataclass(frozen=True)
class SourceFile:
    """A file as it was when it was opened; enough to tell whether it is still the same.

    name: relative to the checkpoint's root. size: bytes. version: the time of its last change in ns, or an ETag.
    header_hash: SHA-256 of what describes its tensors. identity: the version, and what else tells this very file from a
    copy of it.
    """

    name: str
    path: str
    size: int
    version: int | str
    header_hash: str
    identity: tuple[int | str, ...]


class Checkpoint:
    """The tensors of one model, in one file or several. Only headers are read until ``read`` is called.

    location: what was asked for. root: the folder its files are in. files: by name. tensors: in the order of the files
    and, within each, of the data. metadata: the headers' own. notes: the containers' own. skipped: other files with
    weights in the folder that was given. indexed: an index names the files. decoded: keys of weights that are stored
    quantized and decoded as they are read. decoded_from: what they are stored as, in words.
    """

    decoded: Collection[str] = frozenset()
    decoded_from: str = ""

    def __init__(
        self,
        location: Location,
        root: Location,
        format: str,
        readers: Sequence[TensorFile],
        skipped: Iterable[str],
        indexed: bool,
    ) -> None:
        self.location = location
        self.root = root
        self.format = format
        self.notes = tuple(note for reader in readers for note in reader.notes)
        self.skipped = tuple(skipped)
        self.indexed = indexed
        self._readers = tuple(readers)
        self._of = {key: reader for reader in readers for key in reader.tensors}
        self.tensors: Mapping[str, TensorSpec] = {key: reader.tensors[key] for key, reader in self._of.items()}
        self.metadata: Mapping[str, Any] = {
            name: text for reader in reversed(self._readers) for name, text in reader.metadata.items()
        }
        self.files = tuple(_described(one) for one in readers)

    def file_of(self, key: str) -> str:
        """Name of the file a tensor is in."""
        return self._of[key].name

    def read(self, key: str, start: int, into: memoryview) -> None:
        """Fill ``into`` with bytes ``[start, start + len(into))`` of a tensor. Any number of threads at a time."""
        self._of[key].read(key, start, into)

    def row_block(self, key: str) -> int | None:
        """At which multiples of rows a tensor is best cut; None: nowhere."""
        return 1

    def stored_nbytes(self, key: str) -> int:
        """Bytes that are read for all of a tensor."""
        return self.tensors[key].nbytes

    def decoding_nbytes(self, key: str) -> int:
        """Bytes of memory that ``read`` takes beside what it fills."""
        return 0

    def will_need(self, key: str, start: int, nbytes: int) -> None:
        """Tell the operating system what will be read soon."""
        self._of[key].will_need(key, start, nbytes)

    def check_unchanged(self) -> None:
        """CheckpointError if a file is no longer the one that was opened."""
        problems: list[str] = []
        for reader in self._readers:
            try:
                reader.source.check_unchanged()
            except CheckpointError as error:
                problems += error.problems
        if problems:
            raise CheckpointError(*problems)

    def close(self) -> None:
        for reader in self._readers:
            reader.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _described(file: TensorFile) -> SourceFile:
    source = file.source
    identity = source.version, *getattr(source, "identity", ())
    return SourceFile(file.name, source.name, source.size, source.version, file.header_hash(), identity)
