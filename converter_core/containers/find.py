"""Which container a file is of: by the name that was given, by its suffix, by how it begins."""

from __future__ import annotations

from collections.abc import Iterable

from ..api.containers import ByteSource, Container
from ..errors import CheckpointError, shown
from ..plugins.registry import Catalogue

HEAD = 64
"""Bytes of a file that containers are shown."""


def ordered(containers: Catalogue[Container]) -> list[type[Container]]:
    """The default first, then by name."""
    return [containers[name] for name in sorted(containers, key=lambda name: (not containers[name].default, name))]


def has_suffix(name: str, suffixes: Iterable[str]) -> bool:
    return name.lower().endswith(tuple(suffixes))


def container_of_file(source: ByteSource, name: str, containers: Catalogue[Container]) -> Container:
    """By how it begins, and by the suffix of its name where that tells nothing, or where several begin so.

    CheckpointError if there is none.
    """
    known = ordered(containers)
    named = [cls for cls in known if has_suffix(name, cls.suffixes)]
    head = bytearray(min(HEAD, source.size))
    source.read(0, memoryview(head))
    marked = [cls for cls in (*named, *known) if cls.recognises(bytes(head))]
    if marked or named:
        return (marked or named)[0]()
    suffixes = " nor ".join(suffix for cls in known for suffix in cls.suffixes)
    raise CheckpointError(
        f"{shown(source.name)}: neither {suffixes}, nor does it begin like one; if it is one of them, say so by "
        "source.format"
    )
