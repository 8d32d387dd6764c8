"""Which weights of an interrupted run are done, with the checksums that prove it.

One JSON object to a line. The first is the header: the fingerprint of the run and what it was made of. A line may
outlive its data after a power loss, so a line is a claim that is checked against the bytes, and a line that cannot be
read (the last may be torn) claims nothing. A journal that names files outside of its output is no journal of this tool.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import CheckpointError, ConversionError, shown
from ..folder import Folder
from ..trusted import JOURNAL, is_inside
from .fingerprint import Fingerprint

NAME = "journal.jsonl"
NEW = f"{NAME}.new"


@dataclass(frozen=True)
class Begun:
    """What a journal says. done: weight -> key -> crc32. sources: weight -> checksum of what was read of the source for
    it. publishes: files that are being given their final names.

    replaces: files of other conversions that the run was told to replace. orphans: those of them that had no manifest
    any more when it began, because an earlier run was interrupted while it replaced them. identity: of the sources.
    """

    fingerprint: str
    made_of: Mapping[str, Any] = field(default_factory=dict)
    replaces: frozenset[str] = frozenset()
    orphans: frozenset[str] = frozenset()
    done: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    publishes: frozenset[str] = frozenset()
    identity: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    def resumes(self, now: Fingerprint) -> bool:
        """The same conversion, of files with the same headers."""
        return self.fingerprint == now.value

    def differences(self, now: Fingerprint) -> list[str]:
        """Which ingredients of the fingerprint are not what they were, for a message."""
        keys = sorted({*self.made_of, *now.made_of})
        return [key for key in keys if self.made_of.get(key) != _jsonable(now.made_of.get(key))]


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value))


def read(staging: Folder) -> Begun | None:
    """None: nothing was begun, or its header cannot be read. CheckpointError if it cannot be one of this tool's."""
    path = shown(staging.path / NAME)
    try:
        lines = staging.read(NAME, JOURNAL).split(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; this is no journal: remove it") from None
    head, *entries = [entry for entry in map(_parse, lines) if entry is not None] or [{}]
    if not isinstance(head.get("fingerprint"), str) or not isinstance(head.get("made_of"), dict):
        return None
    named = {what: [head.get(what, [])] for what in ("replaces", "orphans", "publishes")}
    done: dict[str, dict[str, int]] = {}
    sources: dict[str, str] = {}
    identity = head.get("identity")
    for entry in entries:
        if "publishes" in entry:
            named["publishes"].append(entry["publishes"])
            named["replaces"].append(entry.get("replaces", []))
        elif isinstance(entry.get("weight"), str) and _are_checksums(entry.get("crc32")):
            done[entry["weight"]] = entry["crc32"]
            sources[entry["weight"]] = str(entry.get("source", ""))
        elif "identity" in entry and isinstance(entry.get("stale"), list):
            identity = entry["identity"]
            for weight in filter(done.__contains__, map(str, entry["stale"])):
                del done[weight], sources[weight]
    for names in (names for several in named.values() for names in several):
        if not isinstance(names, list) or not all(map(is_inside, names)):
            raise CheckpointError(
                f"{path}: names files outside of the output, so this tool did not write it; nothing is done with it: "
                f"remove {shown(staging.path)}"
            )
    files = {what: frozenset[str]().union(*several) for what, several in named.items()}
    identity = identity if isinstance(identity, dict) else {}
    return Begun(head["fingerprint"], head["made_of"], done=done, identity=identity, sources=sources, **files)


def _are_checksums(value: Any) -> bool:
    return isinstance(value, dict) and all(type(crc32) is int for crc32 in value.values())


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


class Journal:
    """Appends to the journal of a staging folder; from any thread. ConversionError if the disk does not take it."""

    def __init__(self, staging: Folder) -> None:
        self._path = shown(staging.path / NAME)
        self._fd = staging.open_file(NAME, os.O_WRONLY | os.O_APPEND)
        self._lock = threading.Lock()

    @classmethod
    def begin(cls, staging: Folder, begun: Begun) -> Journal:
        """A new journal in the place of what stands there, whole and durable from the first moment."""
        names = {"replaces": begun.replaces, "orphans": begun.orphans, "publishes": begun.publishes}
        head = {"fingerprint": begun.fingerprint, "made_of": begun.made_of, "identity": begun.identity}
        head |= {what: sorted(files) for what, files in names.items() if files}
        fd = staging.create_file(NEW)
        try:
            _write(fd, _line(head), shown(staging.path / NAME))
            os.fsync(fd)
        finally:
            os.close(fd)
        staging.rename(NEW, staging, NAME)
        staging.sync()
        return cls(staging)

    def done(self, weight: str, crc32: Mapping[str, int], source: str) -> None:
        self._append({"weight": weight, "crc32": crc32, "source": source})

    def compared(self, identity: Mapping[str, Any], stale: Iterable[str]) -> None:
        """The weights so far are of these source files too, but for the stale ones, which are done no longer."""
        self._append({"identity": identity, "stale": sorted(stale)})
        os.fsync(self._fd)  # before a weight that is made of these files can be believed to be made of others

    def publishing(self, files: Iterable[str], replaces: Iterable[str]) -> None:
        """From here on files may stand under their final names, and those that they replace may be gone."""
        self._append({"publishes": sorted(files), "replaces": sorted(replaces)})
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)

    def _append(self, entry: Mapping[str, Any]) -> None:
        with self._lock:
            _write(self._fd, _line(entry), self._path)


def _write(fd: int, data: bytes, path: str) -> None:
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError as error:
        raise ConversionError(
            f"{path}: cannot be written ({error.strerror}); make room and run the same command again, it goes on where "
            "it stopped"
        ) from error


def _line(entry: Mapping[str, Any]) -> bytes:
    # a newline in front too: a torn line of an earlier run must not swallow this one
    return b"\n" + json.dumps(entry, separators=(",", ":")).encode() + b"\n"
