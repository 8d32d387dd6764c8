"""The manifest: what an output consists of, written last, so that what it names is complete.

It is also what files belong to: a file that a manifest lists is replaced only together with its whole conversion.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

SUFFIX = ".manifest.json"
KIND = "model-converter manifest"
VERSION = 1


def manifest_name(name: str) -> str:
    return name + SUFFIX


def dump(content: Mapping[str, Any]) -> bytes:
    """Readable JSON with a checksum of itself: the crc32 of the same text with ``crc32`` empty."""
    body = {"kind": KIND, "version": VERSION, **content, "crc32": ""}
    text = json.dumps(body, indent=1, ensure_ascii=False)
    body["crc32"] = crc(text.encode())
    return (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode()


def crc(data: bytes | memoryview, start: int = 0) -> str:
    return f"{zlib.crc32(data, start):08x}"


def is_manifest(content: Any) -> bool:
    return isinstance(content, dict) and content.get("kind") == KIND


def load_manifest(path: Path) -> dict[str, Any]:
    """Raises CheckpointError if it is not a manifest, or if it was changed after it was written."""
    try:
        data = path.read_bytes()
        content: dict[str, Any] = json.loads(data)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as a manifest ({error})") from None
    if not is_manifest(content):
        raise CheckpointError(f"{path}: is not a manifest of this tool")
    if content.get("version") != VERSION:
        raise CheckpointError(f"{path}: manifest version {content.get('version')}; this tool reads {VERSION}")
    if dump({key: value for key, value in content.items() if key not in ("kind", "version", "crc32")}) != data:
        raise CheckpointError(f"{path}: its own checksum does not fit; it was changed after it was written")
    return content


def manifests_in(folder: Path) -> dict[str, dict[str, Any]]:
    """Readable manifests of a folder by file name; others' files that only look like one are left alone."""
    found = {}
    for path in sorted(folder.glob("*" + SUFFIX)):
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if is_manifest(content) and isinstance(content.get("files"), dict):
            found[path.name] = content
    return found
