"""Which weights of an interrupted run are done, with the checksums that prove it.

One JSON object to a line. The first is the header: the fingerprint of the run and what it was made of. A line may
outlive its data after a power loss, so a line is a claim that is checked against the staged bytes, and a line that
cannot be read (the last may be torn) claims nothing.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .fingerprint import Fingerprint

NAME = "journal.jsonl"


@dataclass(frozen=True)
class Begun:
    """What a journal says. done: weight -> key -> crc32. publishes: files that are being given their final names."""

    fingerprint: str
    made_of: Mapping[str, Any] = field(default_factory=dict)
    replaces: Sequence[str] = ()
    done: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    publishes: Sequence[str] = ()

    def differences(self, now: Fingerprint) -> list[str]:
        """Which ingredients of the fingerprint are not what they were, for a message."""
        keys = sorted({*self.made_of, *now.made_of})
        return [key for key in keys if self.made_of.get(key) != _jsonable(now.made_of.get(key))]


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value))


def read(staging: Path) -> Begun | None:
    """None: nothing was begun, or its header cannot be read."""
    try:
        lines = (staging / NAME).read_bytes().split(b"\n")
    except OSError:
        return None
    entries = [entry for entry in map(_parse, lines) if entry is not None]
    if not entries or not isinstance(entries[0].get("fingerprint"), str):
        return None
    head = entries[0]
    done = {}
    publishes: Sequence[str] = ()
    for entry in entries[1:]:
        if "weight" in entry and isinstance(entry.get("crc32"), dict):
            done[str(entry["weight"])] = entry["crc32"]
        elif isinstance(entry.get("publishes"), list):
            publishes = entry["publishes"]
    return Begun(head["fingerprint"], head.get("made_of", {}), head.get("replaces", ()), done, publishes)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


class Journal:
    """Appends to the journal of a staging folder; from any thread."""

    def __init__(self, staging: Path) -> None:
        self._fd = os.open(staging / NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._lock = threading.Lock()

    @classmethod
    def begin(cls, staging: Path, fingerprint: Fingerprint, replaces: Iterable[str]) -> Journal:
        """A new journal in the place of what stands there, whole from the first moment."""
        head = {"fingerprint": fingerprint.value, "made_of": fingerprint.made_of, "replaces": sorted(replaces)}
        new = staging / f"{NAME}.new"
        new.write_bytes(_line(head))
        new.replace(staging / NAME)
        return cls(staging)

    def done(self, weight: str, crc32: Mapping[str, int]) -> None:
        self._append({"weight": weight, "crc32": crc32})

    def publishing(self, files: Iterable[str]) -> None:
        """From here on files may stand under their final names."""
        self._append({"publishes": sorted(files)})
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)

    def _append(self, entry: Mapping[str, Any]) -> None:
        with self._lock:
            os.write(self._fd, _line(entry))


def _line(entry: Mapping[str, Any]) -> bytes:
    # a newline in front too: a torn line of an earlier run must not swallow this one
    return b"\n" + json.dumps(entry, separators=(",", ":")).encode() + b"\n"
