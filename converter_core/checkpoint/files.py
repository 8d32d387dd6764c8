"""Find the files of a checkpoint, read their headers, and read tensors out of them piece by piece."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from ..api.values import TensorSpec
from ..containers.index import INDEX_NAME, INDEX_SUFFIX, read_index, some
from ..containers.safetensors import SafetensorsReader
from ..errors import CheckpointError, shown, unknown

__all__ = ["FORMATS", "Checkpoint", "NothingKnown", "Reader", "SourceFile", "open_checkpoint", "read_index"]

FORMATS: Mapping[str, tuple[str, ...]] = {"safetensors": (".safetensors",), "pytorch": (".pth", ".pt")}
"""``source.format`` -> the suffixes it is recognised by."""

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".gguf", ".onnx")
"""Files that hold weights of some kind."""


class NothingKnown(CheckpointError):
    """There are weights, but none of the model that is looked for."""


@dataclass(frozen=True)
class SourceFile:
    """A file as it was when it was opened; enough to tell whether it is still the same.

    name: relative to the checkpoint's root. size: bytes. header_hash: SHA-256 of what describes its tensors.
    """

    name: str
    path: str
    size: int
    mtime_ns: int
    header_hash: str


class Reader(Protocol):
    """One open file."""

    path: str
    stat: os.stat_result
    header_hash: str
    tensors: Mapping[str, TensorSpec]
    metadata: Mapping[str, str]

    def read(self, key: str, start: int, into: memoryview) -> None: ...

    def will_need(self, key: str, start: int, nbytes: int) -> None: ...

    def close(self) -> None: ...


class Checkpoint:
    """The tensors of one model, in one file or several. Only headers are read until ``read`` is called.

    root: the folder its files are in. files: by name. tensors: in the order of the files and, within each, of the data.
    metadata: the headers' own. skipped: other files with weights in the folder that was given. indexed: an index
    names the files.
    """

    def __init__(
        self, path: Path, root: Path, format: str, readers: Sequence[Reader], skipped: Iterable[str], indexed: bool
    ) -> None:
        self.path = path
        self.root = root
        self.format = format
        self.skipped = tuple(skipped)
        self.indexed = indexed
        self._readers = tuple(readers)
        self._of = {key: reader for reader in readers for key in reader.tensors}
        self.tensors: Mapping[str, TensorSpec] = {key: reader.tensors[key] for key, reader in self._of.items()}
        self.metadata: Mapping[str, str] = {
            name: text for reader in reversed(self._readers) for name, text in reader.metadata.items()
        }
        self.files = tuple(
            SourceFile(_name(reader), reader.path, reader.stat.st_size, reader.stat.st_mtime_ns, reader.header_hash)
            for reader in readers
        )

    def file_of(self, key: str) -> str:
        """Name of the file a tensor is in."""
        return _name(self._of[key])

    def read(self, key: str, start: int, into: memoryview) -> None:
        """Fill ``into`` with bytes ``[start, start + len(into))`` of a tensor. Any number of threads at a time."""
        self._of[key].read(key, start, into)

    def will_need(self, key: str, start: int, nbytes: int) -> None:
        """Tell the operating system what will be read soon."""
        self._of[key].will_need(key, start, nbytes)

    def check_unchanged(self) -> None:
        """CheckpointError if a file is no longer the one that was opened."""
        problems = []
        for reader in self._readers:
            try:
                now = Path(reader.path).stat()
            except OSError as error:
                problems.append(f"{shown(reader.path)}: was removed while it was read ({error.strerror})")
                continue
            if _identity(now) != _identity(reader.stat):
                problems.append(f"{shown(reader.path)}: was replaced while it was read; run again with the new file")
        if problems:
            raise CheckpointError(*problems)

    def close(self) -> None:
        _close(self._readers)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_checkpoint(
    path: str | os.PathLike[str], *, format: str | None = None, owns_key: Callable[[str], bool] = lambda key: True
) -> Checkpoint:
    """A folder (with an index or without), one file, or an index file.

    format: ``safetensors`` or ``pytorch``; None: by the files' names. owns_key: whether a key is of the model that is
    looked for; in a folder without an index, files without such a key are left out. CheckpointError with all problems.
    """
    if format is not None and format not in FORMATS:
        raise CheckpointError(unknown("format", format, FORMATS))
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{shown(path)}: cannot be opened: {reason}") from None
    if stat.S_ISDIR(mode):
        return _open_folder(path, format, owns_key)
    if path.name.endswith(INDEX_SUFFIX):
        return _open_indexed(path, path)
    format = format or next((name for name, suffixes in FORMATS.items() if path.suffix.lower() in suffixes), None)
    if format is None:
        raise CheckpointError(
            f"{shown(path)}: neither .safetensors nor .pth nor .pt; if it is one of them, say so by source.format"
        )
    return _checked(Checkpoint(path, path.parent, format, _open([path], format), (), False))


def _open_folder(folder: Path, format: str | None, owns_key: Callable[[str], bool]) -> Checkpoint:
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise CheckpointError(f"{shown(folder)}: cannot be listed: {error.strerror}") from None
    weights = [name for name in names if Path(name).suffix.lower() in WEIGHT_SUFFIXES]
    strangers: list[str] = []
    if format != "pytorch":
        indexes = [name for name in names if name.endswith(INDEX_SUFFIX)]
        if len(indexes) > 1 and INDEX_NAME not in indexes:
            raise CheckpointError(f"{shown(folder)}: has several indexes; name one as the path: {some(indexes, 10)}")
        if indexes:
            return _open_indexed(folder, folder / (INDEX_NAME if INDEX_NAME in indexes else indexes[0]), weights)
        paths = [folder / name for name in weights if name.lower().endswith(".safetensors")]
        readers = _open(paths, "safetensors")
        known = [reader for reader in readers if any(map(owns_key, reader.tensors))]
        _close(reader for reader in readers if reader not in known)
        if known:
            return _checked(_folder(folder, "safetensors", known, weights))
        strangers = [path.name for path in paths]
    if format != "safetensors":
        pickled = [name for name in weights if name.lower().endswith(FORMATS["pytorch"])]
        if len(pickled) > 1:
            raise CheckpointError(
                f"{shown(folder)}: has several .pth or .pt files; name one as the path: {some(pickled, 10)}"
            )
        readers = _open([folder / name for name in pickled], "pytorch")
        if any(owns_key(key) for reader in readers for key in reader.tensors):
            return _checked(_folder(folder, "pytorch", readers, weights))
        _close(readers)
        strangers += pickled
    if strangers:
        raise NothingKnown(
            f"{shown(folder)}: no file in it has a tensor with a name that is known; looked into {some(strangers, 10)}"
        )
    raise CheckpointError(_no_weights(folder, format, weights))


def _folder(folder: Path, format: str, readers: Sequence[Reader], weights: Sequence[str]) -> Checkpoint:
    used = {_name(reader) for reader in readers}
    return Checkpoint(folder, folder, format, readers, [name for name in weights if name not in used], False)


def _open_indexed(path: Path, index: Path, weights: Sequence[str] = ()) -> Checkpoint:
    where = read_index(index)
    names = sorted(set(where.values()))
    readers = _open([index.parent / name for name in names], "safetensors")
    listed: dict[str, set[str]] = {name: set() for name in names}
    for key, name in where.items():
        listed[name].add(key)
    problems = []
    for reader in readers:
        name = _name(reader)
        beside = [key for key in reader.tensors if key not in listed[name]]
        absent = sorted(listed[name] - set(reader.tensors))
        if beside:
            problems.append(f"{shown(reader.path)}: {some(beside)} not in the index {shown(index.name)}")
        if absent:
            problems.append(f"{shown(index)}: says that {shown(name)} has {some(absent)}, which it does not have")
    if problems:
        _close(readers)
        raise CheckpointError(*problems)
    skipped = [name for name in weights if name not in listed]
    return _checked(Checkpoint(path, index.parent, "safetensors", readers, skipped, True))


def _open(paths: Iterable[Path], format: str) -> list[Reader]:
    """All of them, or a CheckpointError with what is wrong with each and none left open."""
    readers: list[Reader] = []
    problems: list[str] = []
    for path in paths:
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # a pipe would wait for a writer
                raise CheckpointError(f"{shown(path)}: is not a file")
            readers.append(_reader(str(path), format))
        except OSError as error:
            problems.append(f"{shown(path)}: cannot be opened: {error.strerror}")
        except CheckpointError as error:
            problems += error.problems
    if problems:
        _close(readers)
        raise CheckpointError(*problems)
    return readers


def _reader(path: str, format: str) -> Reader:
    if format == "safetensors":
        return SafetensorsReader(path)
    from ..containers.torch_zip import TorchReader

    return TorchReader(path)


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    """The same, or a CheckpointError if it has no tensors or one of them twice."""
    twice: dict[tuple[str, str], list[str]] = {}
    for reader in checkpoint._readers:
        for key in reader.tensors:
            last = checkpoint.file_of(key)
            if last != _name(reader):
                twice.setdefault((_name(reader), last), []).append(key)
    problems = [
        f"{shown(checkpoint.path)}: {shown(one)} and {shown(other)} both have {some(keys)}; name one file as the path"
        for (one, other), keys in twice.items()
    ]
    if not checkpoint.tensors:
        problems.append(f"{shown(checkpoint.path)}: has no tensors")
    if problems:
        checkpoint.close()
        raise CheckpointError(*problems)
    return checkpoint


def _no_weights(folder: Path, format: str | None, weights: Sequence[str]) -> str:
    inside = [
        entry
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and not entry.name.startswith(".") and any(entry.glob("*.safetensors"))
    ]
    if (folder / "model_index.json").is_file():
        models = [entry for entry in inside if entry.name.startswith("transformer")] or [folder / "transformer"]
        remedy = " or ".join(map(shown, models))
        return f"{shown(folder)}: is a whole pipeline; give the folder of its transformer: {remedy}"
    lacks = " and no ".join(" or ".join(FORMATS[name]) for name in ([format] if format else FORMATS))
    there = f"; there is {some(weights)}" if weights else ""
    there += f"; there are some in {', '.join(map(shown, inside))}" if inside else ""
    return f"{shown(folder)}: has no {lacks}{there}"


def _name(reader: Reader) -> str:
    return Path(reader.path).name


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _close(readers: Iterable[Reader]) -> None:
    for reader in readers:
        reader.close()
