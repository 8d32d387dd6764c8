"""An output as it stands: whether its files, names, dtypes, shapes and headers are as the manifest says."""

from __future__ import annotations

import stat
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from ..api.containers import Container
from ..api.values import TensorSpec
from ..checkpoint.files import open_checkpoint
from ..containers.index import parse_index
from ..errors import CheckpointError, shown
from ..plugins.registry import Registry
from ..storage.location import Location
from ..trusted import INDEX
from .expected import Expected, reason_of
from .files import BLOCK, Output, OutputFile

INDEX_SUFFIX = ".index.json"


def open_without_manifest(path: Location, registry: Registry) -> Output:
    """Another tool's files, or ours whose manifest is gone. CheckpointError if they cannot be read."""
    with open_checkpoint(str(path), registry=registry) as checkpoint:
        names, folder = [file.name for file in checkpoint.files], checkpoint.root
        container = registry.containers[checkpoint.format]()
    output = Output(folder)
    for name in names:
        file = OutputFile(folder, name, container)
        output.add(file, file.tensors)
        _compare_with_reference(output, file, file.tensors)
    return output


def open_by_manifest(folder: Location, expected: Expected, container: Container) -> Output:
    """Every file that the manifest lists: there, of the right size, with the right header and the right tensors."""
    output = Output(folder)
    output.problems += expected.findings
    specs: dict[str, dict[str, TensorSpec]] = {}
    for key, tensor in expected.tensors.items():
        specs.setdefault(tensor.file, {})[key] = tensor.spec
    for name, entry in expected.files.items():
        if not _is_there(output, name, entry):
            continue
        if name in specs or "header_crc32" in entry:
            _open_weights(output, name, entry, specs.get(name, {}), container)
        else:
            _check_side_file(output, name, entry.get("crc32"), expected)
    return output


def _is_there(output: Output, name: str, entry: Mapping[str, Any]) -> bool:
    size = _size(output, name)
    if size is None:
        return False
    output.sizes[name] = size
    if size != entry.get("size", size):
        output.problem(name, f"has {size} bytes, the manifest says {entry['size']}")
        return False
    return True


def _size(output: Output, name: str) -> int | None:
    """None, and a problem, if a file is not there or is none."""
    location = output.folder / name
    if location.path is None:
        try:
            source = location.open()
        except CheckpointError as error:
            output.problem(name, "; ".join(error.problems).replace(f"{shown(location)}: ", ""))
            return None
        source.close()
        return source.size
    try:
        status = location.path.stat()
    except (FileNotFoundError, NotADirectoryError):
        output.problem(name, "is missing; the manifest lists it")
        return None
    except (OSError, ValueError) as error:
        output.problem(name, f"cannot be opened ({reason_of(error)})")
        return None
    if not stat.S_ISREG(status.st_mode):
        output.problem(name, "is not a regular file; the manifest lists it")
        return None
    return status.st_size


def _open_weights(
    output: Output, name: str, entry: Mapping[str, Any], specs: Mapping[str, TensorSpec], container: Container
) -> None:
    try:
        file = OutputFile(output.folder, name, container)
        output.add(file, specs)
        size = entry.get("header_size")
        header = f"{file.header_crc32(size if isinstance(size, int) and size >= 0 else None):08x}"
    except CheckpointError as error:
        for problem in error.problems:
            output.problem(name, problem.removeprefix(f"{shown(output.folder / name)}: "))
        return
    output.checksums += 1
    if header != entry.get("header_crc32", header):
        output.problem(name, "the header's checksum differs; it was changed after it was written")
    _compare_with_reference(output, file, specs)


def _compare_with_reference(output: Output, file: OutputFile, specs: Mapping[str, TensorSpec]) -> None:
    """As the format's own library sees the file, where it is at hand."""
    path = file.source.path
    try:
        with _in_unicode(path) as readable:
            found = file.container.reference(readable) if readable is not None else None
    except CheckpointError as error:
        for problem in error.problems:
            output.problem(file.name, problem.removeprefix(f"{shown(path)}: "))
        return
    _compare_specs(output, file.name, file.tensors if found is None else found, specs)


@contextmanager
def _in_unicode(path: str | None) -> Iterator[str | None]:
    """A name of a file that every library takes: a path may have bytes that are no UTF-8. None: there is none."""
    try:
        (path or "").encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder, f"file{Path(path or '').suffix}")
            link.symlink_to(Path(path or "").resolve())
            yield str(link)
    else:
        yield path


def _compare_specs(output: Output, name: str, found: Mapping[str, TensorSpec], specs: Mapping[str, TensorSpec]) -> None:
    for key in sorted(set(found) | set(specs)):
        if key not in found:
            output.problem(name, "is missing", key)
        elif key not in specs:
            output.problem(name, "is not in the manifest", key)
        elif found[key] != specs[key]:
            output.problem(name, f"is {found[key]}, the manifest says {specs[key]}", key)


def _check_side_file(output: Output, name: str, crc32: object, expected: Expected) -> None:
    location = output.folder / name
    sums = 0
    try:
        with closing(location.open()) as source:
            buffer = memoryview(bytearray(min(BLOCK, source.size)))
            for at in range(0, source.size, BLOCK):
                block = buffer[: source.size - at]
                source.read(at, block)
                sums = zlib.crc32(block, sums)
    except CheckpointError as error:
        output.problem(name, "; ".join(error.problems).replace(f"{shown(location)}: ", ""))
        return
    output.checksums += 1
    if crc32 is not None and f"{sums:08x}" != crc32:
        output.problem(name, "its checksum differs; it was changed after it was written")
    elif name.endswith(INDEX_SUFFIX) and "/" not in name:
        _check_index(output, name, location, expected)


def _check_index(output: Output, name: str, path: Location, expected: Expected) -> None:
    try:
        index = parse_index(path.content(INDEX), path)
    except CheckpointError as error:
        output.problem(name, "; ".join(error.problems))
        return
    for key in sorted(set(index) ^ set(expected.tensors)):
        output.problem(name, "is in the index alone" if key in index else "is not in the index", key)
    for key in sorted(set(index) & set(expected.tensors)):
        file = expected.tensors[key].file
        if index[key] != file:
            output.problem(name, f"is in {file}, the index says {index[key]}", key)
