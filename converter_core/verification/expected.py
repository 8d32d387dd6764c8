"""What a manifest says of an output, and what it contradicts or leaves out."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from ..api.formats import UNQUANTIZED, QuantFormat
from ..api.storages import Entry
from ..api.values import Stored, TensorSpec
from ..errors import CheckpointError, VerificationError, shown
from ..output.manifest import SUFFIX, is_manifest, load_manifest, parse_manifest
from ..storage.location import Location
from ..trusted import MANIFEST, is_inside
from .result import Problem

T = TypeVar("T")


@dataclass(frozen=True)
class ExpectedTensor:
    """crc32: empty where the manifest has none."""

    file: str
    spec: TensorSpec
    crc32: str


@dataclass(frozen=True)
class Expected:
    """What a manifest says. weights: name -> storage, spec before quantization (None: the target made it).

    written_by: distributions and their versions. loras: the SHA-256 of each that was merged.
    findings: where the manifest contradicts itself, or leaves out what a manifest of this tool always has.
    """

    target: str
    container: str
    adapter: str
    variant: str
    recipe: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, ExpectedTensor]
    weights: Mapping[str, tuple[Stored, TensorSpec | None]]
    written_by: str = ""
    findings: tuple[Problem, ...] = ()
    loras: tuple[str, ...] = ()


def find_manifest(output: Location) -> Location | None:
    """The manifest that a folder, one of its files or the manifest itself stands for; None: there is none."""
    entries = _entries_of(output)
    if entries is not None:
        found = [output / entry.name for entry in entries if entry.name.endswith(SUFFIX)]
        if len(found) > 1:
            names = ", ".join(shown(manifest.name) for manifest in found)
            raise VerificationError(f"{shown(output)}: has several conversions; name one of their manifests: {names}")
        return found[0] if found else None
    if output.name.endswith(SUFFIX):
        return output
    unreadable = None
    for manifest in manifests_beside(output.parent):
        files = files_listed(manifest)
        if files is None:
            unreadable = manifest
        elif output.name in files:
            return manifest
    return unreadable


def _entries_of(output: Location) -> Sequence[Entry] | None:
    if output.path is not None and not os.path.lexists(output.path):
        raise VerificationError(f"{shown(output)}: does not exist")
    try:
        return output.entries()
    except CheckpointError as error:
        raise VerificationError(*error.problems) from None


def manifests_beside(folder: Location) -> list[Location]:
    """The manifests in a folder; none where it cannot be listed."""
    try:
        entries = folder.entries() or ()
    except CheckpointError:
        return []
    return [folder / entry.name for entry in entries if entry.name.endswith(SUFFIX)]


def files_listed(manifest: Location) -> set[str] | None:
    """The files that a manifest claims, whatever else is wrong with it; None: it cannot be read as one."""
    try:
        content = json.loads(manifest.content(MANIFEST))
    except (CheckpointError, ValueError, RecursionError):
        return None
    files = content.get("files") if is_manifest(content) else None
    return set(map(str, files)) if isinstance(files, dict) else None


def read_manifest(manifest: Location) -> Expected:
    """CheckpointError if it is damaged, or if its values are not of the types that this tool writes."""
    path = manifest.path
    content = parse_manifest(manifest.content(MANIFEST), manifest) if path is None else load_manifest(path)
    try:
        return _expected(manifest.name, content)
    except _Malformed as error:
        raise CheckpointError(f"{shown(manifest)}: is not laid out as a manifest of this tool: {error}") from None


def reason_of(error: BaseException) -> str:
    """What the operating system said, or else the exception's own words."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class _Malformed(Exception):
    pass


def _expected(name: str, content: Mapping[str, Any]) -> Expected:
    model = _section(content, "model")
    files = _entries(content, "files", _file)
    tensors = _entries(content, "tensors", _tensor)
    weights = _entries(content, "weights", partial(_weight, _section(content, "formats")))
    found = (*_missing_entries(name, files, tensors, weights), *_contradictions(name, files, tensors, weights))
    return Expected(
        target=_text(content, "target"),
        container=_text(content, "container"),
        adapter=_text(model, "adapter"),
        variant=_text(model, "variant"),
        recipe=_section(content, "recipe"),
        files=files,
        tensors=tensors,
        weights=weights,
        written_by=", ".join(f"{name} {text}" for name, text in sorted(_section(content, "versions").items())),
        findings=found,
        loras=_loras(content),
    )


def _loras(content: Mapping[str, Any]) -> tuple[str, ...]:
    listed = _section(content, "source").get("loras", [])
    if not isinstance(listed, list) or not all(isinstance(lora, dict) for lora in listed):
        raise _Malformed("loras is not a list of mappings")
    return tuple(_text(lora, "sha256") for lora in listed)


def _section(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = content.get(key, {})
    if not isinstance(section, dict):
        raise _Malformed(f"{key} is not a mapping")
    return section


def _text(content: Mapping[str, Any], key: str) -> str:
    text = content.get(key)
    if not isinstance(text, str | None):
        raise _Malformed(f"{key} is not a text")
    return text or ""


def _entries(content: Mapping[str, Any], key: str, parse: Callable[[str, Any], T]) -> dict[str, T]:
    parsed = {}
    for name, entry in _section(content, key).items():
        try:
            parsed[name] = parse(name, entry)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            raise _Malformed(f"the entry {shown(name)} of {key}") from None
    return parsed


def _file(name: str, entry: Any) -> Mapping[str, Any]:
    if not is_inside(name):
        raise ValueError(name)
    return dict(entry)


def _tensor(name: str, entry: Any) -> ExpectedTensor:
    crc32 = entry.get("crc32", "")
    if not isinstance(entry["file"], str) or not isinstance(crc32, str):
        raise TypeError(name)
    return ExpectedTensor(entry["file"], _spec(entry), crc32)


def _weight(formats: Mapping[str, Any], name: str, entry: Any) -> tuple[Stored, TensorSpec | None]:
    before, parts = entry.get("source"), entry["parts"]
    if not isinstance(entry["format"], str) or not all(isinstance(key, str) for key in parts.values()):
        raise TypeError(name)
    known = entry["format"] == UNQUANTIZED.name
    format = UNQUANTIZED if known else QuantFormat.from_facts(entry["format"], formats.get(entry["format"]))
    return Stored(format, dict(parts)), _spec(before) if before else None


def _spec(entry: Mapping[str, Any]) -> TensorSpec:
    shape = entry["shape"]
    if not isinstance(entry["dtype"], str) or not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(entry)
    block = entry.get("block")
    if block is not None and not (len(block) == 2 and all(type(size) is int and size > 0 for size in block)):
        raise ValueError(entry)
    spec = TensorSpec(entry["dtype"], tuple(shape), None if block is None else (block[0], block[1]))
    if spec.nbytes < 0:  # ValueError for what has no size
        raise ValueError(entry)
    return spec


def _missing_entries(
    name: str,
    files: Mapping[str, Mapping[str, Any]],
    tensors: Mapping[str, ExpectedTensor],
    weights: Mapping[str, tuple[Stored, TensorSpec | None]],
) -> Iterator[Problem]:
    for section, entries in (("files", files), ("tensors", tensors), ("weights", weights)):
        if not entries:
            yield Problem(name, "", f"lists no {section}")
    holders = Counter(tensor.file for tensor in tensors.values())
    for file, count in sorted(holders.items()):
        if file not in files:
            yield Problem(name, "", f"says that {file} holds {count:,} tensors, but does not list it under files")
    for file, entry in files.items():
        needed = "header_crc32" if file in holders or "header_crc32" in entry else "crc32"
        for fact in ("size", needed):
            if fact not in entry:
                yield Problem(file, "", f"has no {fact} in the manifest, so it cannot be checked in full")
    for key, tensor in tensors.items():
        if not tensor.crc32:
            yield Problem(tensor.file, key, "has no checksum in the manifest")


def _contradictions(
    name: str,
    files: Mapping[str, Mapping[str, Any]],
    tensors: Mapping[str, ExpectedTensor],
    weights: Mapping[str, tuple[Stored, TensorSpec | None]],
) -> Iterator[Problem]:
    owner: dict[str, str] = {}
    for weight, (stored, _) in weights.items():
        if not stored.keys:
            yield Problem(name, weight, "is a weight without parts")
        for role, key in stored.keys.items():
            if key in owner:
                yield Problem(name, key, f"is claimed twice: by {owner[key]} and by {weight} ({role})")
            elif key not in tensors:
                yield Problem(name, key, f"is the {role} of {weight}, but is not listed under tensors")
            owner[key] = weight
    if weights:
        for key, tensor in tensors.items():
            if key not in owner:
                yield Problem(tensor.file, key, "belongs to no weight that the manifest lists")
