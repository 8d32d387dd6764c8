"""Find the files of a checkpoint and read their headers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from ..api.containers import ByteSource, Container
from ..api.storages import Entry
from ..containers.find import container_of_file, has_suffix, ordered
from ..containers.index import parse_index, preferred_index, some
from ..containers.nature import nature
from ..containers.tensor_file import TensorFile
from ..errors import CheckpointError, PluginError, shown
from ..plugins.registry import Catalogue, Registry, load_plugins
from ..storage.location import Location, locate
from ..trusted import INDEX
from .checkpoint import Checkpoint

OTHER_SUFFIXES = (".onnx",)
"""Of files that hold weights in formats that no container here may read."""

MOST_TENSORS = 1_000_000
"""Of a checkpoint. Time and memory grow with them; the largest models have some thousands."""


class NothingKnown(CheckpointError):
    """There are weights, but none of the model that is looked for."""


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    owns_key: Callable[[str], bool] = lambda key: True,
    registry: Registry | None = None,
) -> Checkpoint:
    """A folder (with an index or without), one file, or an index file; a path, or the URL of a storage.

    format: the name of a container; None: by the files' names and how they begin. owns_key: whether a key is of the
    model that is looked for; in a folder without an index, files without such a key are left out. registry: None: of
    the installed plugins. CheckpointError with all problems.
    """
    registry = registry or load_plugins()
    containers = registry.containers
    try:
        asked = containers[format]() if format is not None else None
    except PluginError as error:
        raise CheckpointError(*error.problems) from None
    location = locate(path, registry.storages)
    entries = location.entries()
    if entries is not None:
        return _Folder(location, entries, containers).open(asked, owns_key)
    for cls in ordered(containers):
        if has_suffix(location.name, cls.index_suffixes):
            return _indexed(location, location, cls(), containers)
    (file,) = _open(
        [location], lambda source: asked or container_of_file(source, location.name, containers), containers
    )
    return _checked(Checkpoint(location, location.parent, file.container.name, [file], (), False))


def weight_suffixes(containers: Catalogue[Container]) -> tuple[str, ...]:
    """Of files that hold weights of some kind."""
    return (*(suffix for cls in ordered(containers) for suffix in cls.suffixes), *OTHER_SUFFIXES)


class _Folder:
    """A folder in which a checkpoint is looked for."""

    def __init__(self, location: Location, entries: Sequence[Entry], containers: Catalogue[Container]) -> None:
        self.location = location
        self.containers = containers
        self.names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
        self.folders = [entry.name for entry in entries if entry.is_folder and not entry.name.startswith(".")]
        suffixes = weight_suffixes(containers)
        self.weights = [name for name in self.names if has_suffix(name, suffixes)]

    def open(self, asked: Container | None, owns_key: Callable[[str], bool]) -> Checkpoint:
        """Of each format in turn: an index, or else the files with a tensor of the model."""
        strangers: list[str] = []
        unclear: list[str] = []
        formats = [asked] if asked else [cls() for cls in ordered(self.containers)]
        if not formats:
            raise CheckpointError(f"{shown(self.location)}: no container plugin is installed that could read it")
        for container in formats:
            index = self._index(container)
            if index is not None:
                return _indexed(self.location, index, container, self.containers, self.weights)
            found = [name for name in self.weights if has_suffix(name, container.suffixes)]
            alone = len(found) > 1 and not container.sharded
            files = self._readable(container, found) if alone else self._files(container, found)
            known = [file for file in files if any(map(owns_key, file.tensors))]
            _close(file for file in files if file not in known)
            if alone and len(known) != 1:
                _close(known)
                unclear.append(
                    f"{shown(self.location)}: has several {' or '.join(container.suffixes)} files; name one as the "
                    f"path: {some(found, 10)}"
                )
            elif known:
                used = {file.name for file in known}
                skipped = [name for name in self.weights if name not in used]
                return _checked(Checkpoint(self.location, self.location, container.name, known, skipped, False))
            strangers += found
        if unclear:
            raise CheckpointError(*unclear)
        if strangers:
            raise NothingKnown(
                f"{shown(self.location)}: no file in it has a tensor with a name that is known; looked into "
                f"{some(strangers, 10)}"
            )
        raise CheckpointError(self._no_weights(formats))

    def _files(self, container: Container, names: Sequence[str]) -> list[TensorFile]:
        return _open([self.location / name for name in names], _always(container), self.containers)

    def _readable(self, container: Container, names: Sequence[str]) -> list[TensorFile]:
        """Those that can be opened: of files that have nothing to do with each other one may be broken."""
        files: list[TensorFile] = []
        for name in names:
            with suppress(CheckpointError):
                files += self._files(container, [name])
        return files

    def _index(self, container: Container) -> Location | None:
        indexes = [name for name in self.names if has_suffix(name, container.index_suffixes)]
        if not indexes:
            return None
        name = preferred_index(indexes)
        if name is None:
            raise CheckpointError(
                f"{shown(self.location)}: has several indexes; name one as the path: {some(indexes, 10)}"
            )
        return self.location / name

    def _no_weights(self, formats: Sequence[Container]) -> str:
        folder = self.location
        inside = [folder / name for name in self.folders if _holds_weights(folder / name, formats)]
        if "model_index.json" in self.names:
            models = [entry for entry in inside if entry.name.startswith("transformer")] or [folder / "transformer"]
            remedy = " or ".join(map(shown, models))
            return f"{shown(folder)}: is a whole pipeline; give the folder of its transformer: {remedy}"
        suffixes = ", ".join(suffix for container in formats for suffix in container.suffixes)
        there = f"; there is {some(self.weights)}" if self.weights else ""
        there += f"; there are some in {', '.join(map(shown, inside))}: give one of these" if inside else ""
        return f"{shown(folder)}: has no weights ({suffixes}){there}"


def _holds_weights(folder: Location, formats: Sequence[Container]) -> bool:
    suffixes = [suffix for container in formats for suffix in container.suffixes]
    return any(has_suffix(entry.name, suffixes) for entry in folder.entries() or ())


def _indexed(
    location: Location,
    index: Location,
    container: Container,
    containers: Catalogue[Container],
    weights: Sequence[str] = (),
) -> Checkpoint:
    where = parse_index(index.content(INDEX), index)
    names = sorted(set(where.values()))
    remedy = f"the index {shown(index.name)} lists it: download it"
    files = _open([index.parent / name for name in names], _always(container), containers, remedy)
    listed: dict[str, set[str]] = {name: set() for name in names}
    for key, name in where.items():
        listed[name].add(key)
    problems = []
    for file in files:
        name = file.name
        beside = [key for key in file.tensors if key not in listed[name]]
        absent = sorted(listed[name] - set(file.tensors))
        if beside:
            problems.append(f"{shown(file.source.name)}: {some(beside)} not in the index {shown(index.name)}")
        if absent:
            problems.append(f"{shown(index)}: says that {shown(name)} has {some(absent)}, which it does not have")
    if problems:
        _close(files)
        raise CheckpointError(*problems)
    skipped = [name for name in weights if name not in listed]
    return _checked(Checkpoint(location, index.parent, container.name, files, skipped, True))


def _always(container: Container) -> Callable[[ByteSource], Container]:
    return lambda source: container


def _open(
    locations: Iterable[Location],
    container_for: Callable[[ByteSource], Container],
    containers: Catalogue[Container],
    remedy: str = "check the path",
) -> list[TensorFile]:
    """All of them, or a CheckpointError with what is wrong with each and none left open. remedy: for a missing one."""
    files: list[TensorFile] = []
    problems: list[str] = []
    for location in locations:
        try:
            files.append(TensorFile(location.open(), container_for, location.name))
        except CheckpointError as error:
            told = _nature(location, containers)
            hint = f"; {remedy}" if isinstance(error.__context__, FileNotFoundError) else ""
            problems += [f"{shown(location)}: {told}"] if told else [f"{one}{hint}" for one in error.problems]
    if problems:
        _close(files)
        raise CheckpointError(*problems)
    return files


def _nature(location: Location, containers: Catalogue[Container]) -> str:
    try:
        source = location.open()
    except CheckpointError:
        return ""
    try:
        return nature(source, location.name, containers)
    finally:
        source.close()


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    """The same, or a CheckpointError if it has no tensors or one of them twice."""
    twice: dict[tuple[str, str], list[str]] = {}
    for reader in checkpoint._readers:
        for key in reader.tensors:
            last = checkpoint.file_of(key)
            if last != reader.name:
                twice.setdefault((reader.name, last), []).append(key)
    problems = [
        f"{shown(checkpoint.location)}: {shown(one)} and {shown(other)} both have {some(keys)}; name one file as the "
        "path"
        for (one, other), keys in twice.items()
    ]
    if len(checkpoint.tensors) > MOST_TENSORS:
        problems = [
            f"{shown(checkpoint.location)}: has {len(checkpoint.tensors):,} tensors; at most {MOST_TENSORS:,} are read"
        ]
    if not checkpoint.tensors:
        problems.append(f"{shown(checkpoint.location)}: has no tensors")
    if problems:
        checkpoint.close()
        raise CheckpointError(*problems)
    return checkpoint


def _close(files: Iterable[TensorFile]) -> None:
    for file in files:
        file.close()
