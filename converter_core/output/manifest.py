"""The manifest: what an output consists of, written last, so that what it names is complete.

It is also what files belong to: a file that a manifest lists is replaced only together with its whole conversion.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import CheckpointError, shown
from ..trusted import MANIFEST, is_inside, read_file

SUFFIX = ".manifest.json"
KIND = "model-converter manifest"
VERSION = 1


def manifest_name(name: str) -> str:
    return name + SUFFIX


def dump(content: Mapping[str, Any]) -> bytes:
    """Readable JSON with a checksum of itself: the crc32 of the same text with ``crc32`` empty."""
    body = {"kind": KIND, "version": VERSION, **content, "crc32": ""}
    text = json.dumps(body, indent=1, ensure_ascii=False)
    body["crc32"] = crc(_bytes(text))
    return _bytes(json.dumps(body, indent=1, ensure_ascii=False) + "\n")


def _bytes(text: str) -> bytes:
    """What is no Unicode, a byte of a path for instance, becomes an escape, which JSON reads as the same again."""
    return text.encode("utf-8", "backslashreplace")


def crc(data: bytes | memoryview, start: int = 0) -> str:
    return f"{zlib.crc32(data, start):08x}"


def is_manifest(content: Any) -> bool:
    return isinstance(content, dict) and content.get("kind") == KIND


def load_manifest(path: Path) -> dict[str, Any]:
    """CheckpointError if it is not a manifest, if it was changed after it was written, or if it names files outside."""
    try:
        data = read_file(path, MANIFEST)
    except OSError as error:
        raise CheckpointError(f"{shown(path)}: cannot be read as a manifest ({error.strerror})") from None
    return parse_manifest(data, path)


def parse_manifest(data: bytes, path: object) -> dict[str, Any]:
    """The same, of a manifest's content. path: for messages."""
    try:
        return _parse(data)
    except _NoManifest as error:
        raise CheckpointError(f"{shown(path)}: {error}") from None


class _NoManifest(Exception):
    pass


def _parse(data: bytes) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(data)
    except ValueError as error:
        raise _NoManifest(f"cannot be read as a manifest ({error})") from None
    except RecursionError:
        raise _NoManifest("cannot be read as a manifest (its JSON is nested too deeply)") from None
    if not is_manifest(content):
        raise _NoManifest("is not a manifest of this tool")
    if content.get("version") != VERSION:
        raise _NoManifest(f"manifest version {content.get('version')}; this tool reads {VERSION}")
    if not _is_as_written(content, data):
        raise _NoManifest("its own checksum does not fit; it was changed after it was written")
    files = content.get("files")
    if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
        raise _NoManifest("is not laid out as a manifest of this tool: files is not a mapping of mappings")
    outside = [name for name in files if not is_inside(name)]
    if outside:
        raise _NoManifest(f"is not laid out as a manifest of this tool: the entry {shown(outside[0])} of files")
    return content


def _is_as_written(content: Mapping[str, Any], data: bytes) -> bool:
    try:
        return dump({key: value for key, value in content.items() if key not in ("kind", "version", "crc32")}) == data
    except RecursionError:  # nested too deeply to be written
        return False


@dataclass(frozen=True)
class Manifests:
    """Of a folder. read: file name -> content. refused: file name -> why nothing in it is believed."""

    read: Mapping[str, Mapping[str, Any]]
    refused: Mapping[str, str]


class _Readable(Protocol):
    """A folder, wherever it lies."""

    def names(self) -> list[str]: ...

    def read(self, name: str, limit: int) -> bytes: ...


def manifests_in(folder: _Readable) -> Manifests:
    """Others' files that only look like one are refused too, and left alone."""
    read, refused = {}, {}
    for name in folder.names():
        if name.endswith(SUFFIX):
            try:
                read[name] = _parse(folder.read(name, MANIFEST))
            except OSError as error:
                refused[name] = error.strerror or str(error)
            except _NoManifest as error:
                refused[name] = str(error)
    return Manifests(read, refused)
