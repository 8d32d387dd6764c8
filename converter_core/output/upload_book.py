"""What of an output that lies elsewhere is sent already: a second journal beside that of the weights.

One JSON object to a line; the first names the URL and the fingerprint. A line may outlive a power loss that its weights
do not: a part that is up stays up, and that its bytes are right is proved before its file is completed.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConversionError, shown
from ..folder import Folder
from ..trusted import JOURNAL

NAME = "uploads.jsonl"


@dataclass(frozen=True)
class SentPart:
    """version: as the store told it. crc32: of each piece, by the tensor's key."""

    version: str
    crc32: Mapping[str, int]


@dataclass
class Sent:
    """Of one file. id: of its upload, empty where none was noted. version: of the file, once it was published."""

    id: str = ""
    part: int = 0
    parts: dict[int, SentPart] = field(default_factory=dict)
    version: str = ""

    @property
    def unnoted(self) -> bool:
        """The run was stopped between asking for an upload and noting its id."""
        return not self.id and not self.version


@dataclass(frozen=True)
class Told:
    """What a book says."""

    url: str
    fingerprint: str
    files: Mapping[str, Sent]


def read(staging: Folder) -> Told | None:
    """None: there is no book, or its first line cannot be read."""
    try:
        lines = staging.read(NAME, JOURNAL).split(b"\n")
    except OSError:
        return None
    head, *entries = [entry for entry in map(_parse, lines) if entry is not None] or [{}]
    if not isinstance(head.get("url"), str) or not isinstance(head.get("fingerprint"), str):
        return None
    files: dict[str, Sent] = {}
    for entry in entries:
        try:
            _take(files, entry)
        except (KeyError, TypeError, ValueError):
            continue
    return Told(head["url"], head["fingerprint"], files)


def _take(files: dict[str, Sent], entry: Mapping[str, Any]) -> None:
    name = str(entry["file"])
    what = entry["what"]
    if what == "opening":
        files[name] = Sent()
    elif what == "begun":
        files[name] = Sent(str(entry["id"]), int(entry["part"]))
    elif what == "forgotten":
        files.pop(name, None)
    elif what == "sent":
        crc32 = {str(key): int(value) for key, value in entry["crc32"].items()}
        files[name].parts[int(entry["number"])] = SentPart(str(entry["version"]), crc32)
    elif what == "dropped":
        files[name].parts.pop(int(entry["number"]), None)
    elif what == "published":
        files.setdefault(name, Sent()).version = str(entry["version"])


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


class UploadBook:
    """Reads and appends; from any thread. ``files``: what it says now."""

    def __init__(self, staging: Folder, url: str, fingerprint: str) -> None:
        """What stands there is gone on with where it is of the same conversion to the same URL."""
        self._path = shown(staging.path / NAME)
        self._lock = threading.Lock()
        told = read(staging)
        known = told is not None and (told.url, told.fingerprint) == (url, fingerprint)
        self.files: dict[str, Sent] = dict(told.files) if known and told is not None else {}
        self._fd = staging.open_file(NAME, os.O_WRONLY | os.O_APPEND) if known else staging.create_file(NAME)
        if not known:
            self._append({"url": url, "fingerprint": fingerprint})

    def opening(self, name: str) -> None:
        """An upload is about to be begun."""
        self._tell({"what": "opening", "file": name})
        os.fsync(self._fd)

    def begun(self, name: str, id: str, part: int) -> None:
        self._tell({"what": "begun", "file": name, "id": id, "part": part})

    def sent(self, name: str, number: int, part: SentPart) -> None:
        self._tell({"what": "sent", "file": name, "number": number, "version": part.version, "crc32": dict(part.crc32)})

    def dropped(self, name: str, number: int) -> None:
        """A part is not there, or is not what was sent."""
        self._tell({"what": "dropped", "file": name, "number": number})

    def forgotten(self, name: str) -> None:
        """The upload is gone, and what it had."""
        self._tell({"what": "forgotten", "file": name})

    def published(self, name: str, version: str) -> None:
        self._tell({"what": "published", "file": name, "version": version})

    def close(self) -> None:
        os.close(self._fd)

    def _tell(self, entry: Mapping[str, Any]) -> None:
        with self._lock:
            self._append(entry)
            _take(self.files, entry)

    def _append(self, entry: Mapping[str, Any]) -> None:
        data = b"\n" + json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            raise ConversionError(
                f"{self._path}: cannot be written ({error.strerror}); make room and run the same command again, it "
                "goes on where it stopped"
            ) from error
