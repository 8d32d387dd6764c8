"""An output as it stands: which files belong to it, and whether names, dtypes, shapes and checksums are as written."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from .checkpoint import open_checkpoint, read_index
from .errors import CheckpointError, VerificationError, shown
from .interfaces import Container
from .manifest import SUFFIX, load_manifest, manifests_in
from .safetensors_file import SAFETENSORS
from .specs import ITEMSIZE, Stored, TensorSpec
from .verification_files import BLOCK, Output, OutputFile

INDEX_SUFFIX = ".index.json"


@dataclass(frozen=True)
class Expected:
    """What a manifest says. tensors: key -> (file, spec, crc32). weights: name -> storage, spec before quantization."""

    content: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, tuple[str, TensorSpec, str]]
    weights: Mapping[str, tuple[Stored, TensorSpec | None]]


def find_manifest(path: Path) -> Path | None:
    """The manifest that a folder, one of its files or the manifest itself stands for; None: there is none."""
    if not path.exists():
        raise VerificationError(f"{shown(path)}: is not there")
    if path.is_dir():
        found = sorted(path.glob("*" + SUFFIX))
        if len(found) > 1:
            names = ", ".join(shown(manifest.name) for manifest in found)
            raise VerificationError(f"{shown(path)}: holds several conversions; name one of their manifests: {names}")
        return found[0] if found else None
    if path.name.endswith(SUFFIX):
        return path
    owners = (name for name, content in manifests_in(path.parent).items() if path.name in content["files"])
    owner = next(owners, None)
    return path.parent / owner if owner else None


def read_manifest(path: Path) -> Expected:
    """CheckpointError if it is damaged."""
    content = load_manifest(path)
    try:
        tensors = {
            str(key): (
                str(entry["file"]),
                TensorSpec(str(entry["dtype"]), tuple(map(int, entry["shape"]))),
                str(entry["crc32"]),
            )
            for key, entry in content["tensors"].items()
        }
        weights = {}
        for name, entry in content["weights"].items():
            before = entry.get("source")
            spec = TensorSpec(str(before["dtype"]), tuple(map(int, before["shape"]))) if before else None
            weights[str(name)] = (Stored(str(entry["format"]), dict(entry["parts"])), spec)
        files = {str(name): dict(entry) for name, entry in content["files"].items()}
        specs = [spec for _, spec, _ in tensors.values()] + [spec for _, spec in weights.values() if spec]
        whole = (
            all(spec.dtype in ITEMSIZE for spec in specs)
            and all(file in files for file, _, _ in tensors.values())
            and all(key in tensors for stored, _ in weights.values() for key in stored.keys.values())
            and all(_inside(name) for name in files)
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise CheckpointError(f"{shown(path)}: is not laid out as a manifest of this tool")
    return Expected(content, files, tensors, weights)


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def open_without_manifest(path: Path) -> Output:
    """Another tool's files, or ours whose manifest is gone. CheckpointError if they cannot be read."""
    with open_checkpoint(path, format="safetensors") as checkpoint:
        names = [file.name for file in checkpoint.files]
        folder = checkpoint.root
    output = Output(folder)
    for name in names:
        output.add(OutputFile(folder, name, SAFETENSORS))
        _open_officially(output, name, {key: spec for key, (spec, _) in output.files[name].tensors.items()})
    return output


def open_by_manifest(folder: Path, expected: Expected, container: Container) -> Output:
    """Every file that the manifest lists: there, whole, of the right size, with the right header and content."""
    output = Output(folder)
    for name, entry in expected.files.items():
        if _is_there(output, name, entry):
            if "header_crc32" in entry:
                specs = {key: spec for key, (file, spec, _) in expected.tensors.items() if file == name}
                _open_weights(output, name, str(entry["header_crc32"]), specs, container)
            else:
                _check_side_file(output, name, str(entry.get("crc32")), expected)
    output.notes += _beside(folder, container.suffix)
    return output


def _is_there(output: Output, name: str, entry: Mapping[str, Any]) -> bool:
    path = output.folder / name
    if not path.is_file():
        output.problem(name, "is missing; the manifest lists it")
        return False
    output.sizes[name] = size = path.stat().st_size
    if size != entry.get("size"):
        output.problem(name, f"has {size} bytes, the manifest says {entry.get('size')}")
        return False
    return True


def _open_weights(
    output: Output, name: str, header_crc32: str, specs: Mapping[str, TensorSpec], container: Container
) -> None:
    try:
        file = OutputFile(output.folder, name, container)
    except CheckpointError as error:
        for problem in error.problems:
            output.problem(name, problem.removeprefix(f"{shown(output.folder / name)}: "))
        return
    output.add(file)
    output.checksums += 1
    if f"{file.header_crc32():08x}" != header_crc32:
        output.problem(name, "the header's checksum differs; it was changed after it was written")
    if container is SAFETENSORS:
        _open_officially(output, name, specs)
    else:
        _compare_specs(output, name, {key: spec for key, (spec, _) in file.tensors.items()}, specs)


def _open_officially(output: Output, name: str, specs: Mapping[str, TensorSpec]) -> None:
    """As the safetensors library sees it."""
    found = {}
    try:
        with safe_open(str(output.folder / name), framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                tensor = file.get_slice(key)
                found[key] = TensorSpec(tensor.get_dtype(), tuple(tensor.get_shape()))
    except (SafetensorError, OSError, ValueError) as error:
        output.problem(name, f"the safetensors library does not open it: {error}")
        return
    _compare_specs(output, name, found, specs)


def _compare_specs(output: Output, name: str, found: Mapping[str, TensorSpec], specs: Mapping[str, TensorSpec]) -> None:
    for key in sorted(set(found) | set(specs)):
        if key not in found:
            output.problem(name, "is missing", key)
        elif key not in specs:
            output.problem(name, "is not in the manifest", key)
        elif found[key] != specs[key]:
            output.problem(name, f"is {found[key]}, the manifest says {specs[key]}", key)


def _check_side_file(output: Output, name: str, crc32: str, expected: Expected) -> None:
    path = output.folder / name
    sums = 0
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                sums = zlib.crc32(block, sums)
    except OSError as error:
        output.problem(name, f"cannot be read ({error.strerror})")
        return
    output.checksums += 1
    if f"{sums:08x}" != crc32:
        output.problem(name, "its checksum differs; it was changed after it was written")
    elif name.endswith(INDEX_SUFFIX) and "/" not in name:
        _check_index(output, name, path, expected)


def _check_index(output: Output, name: str, path: Path, expected: Expected) -> None:
    try:
        index = read_index(path)
    except CheckpointError as error:
        output.problem(name, "; ".join(error.problems))
        return
    for key in sorted(set(index) ^ set(expected.tensors)):
        output.problem(name, "is in the index alone" if key in index else "is not in the index", key)
    for key in sorted(set(index) & set(expected.tensors)):
        file = expected.tensors[key][0]
        if index[key] != file:
            output.problem(name, f"is in {file}, the index says {index[key]}", key)


def _beside(folder: Path, suffix: str) -> Iterator[str]:
    """What a runtime that is given the whole folder may meet there."""
    owned = {file for content in manifests_in(folder).values() for file in content["files"]}
    strays = sorted(path.name for path in folder.glob("*" + suffix) if path.name not in owned)
    if strays:
        yield (
            f"{shown(folder)} also holds {_some(strays)}, which no manifest lists; a runtime that is given the folder "
            "may load that too"
        )
    unfinished = sorted(path.name for path in folder.glob(".*.partial") if path.is_dir() and any(path.iterdir()))
    if unfinished:
        yield f"{shown(folder)} also holds an unfinished conversion: {_some(unfinished)}"


def _some(names: Iterable[str], most: int = 3) -> str:
    listed = [shown(name) for name in names]
    rest = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + rest
