"""How a file is cut into the parts of an upload, and what of it each part holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..api.values import FileLayout
from ..api.writers import PartWriter

HEADER = ""
"""Stands for the header among the keys of a file."""

_MIB = 1 << 20


def part_bytes(size: int, writer: PartWriter) -> int:
    """Of every part but the last of a file of ``size`` bytes: as small as the store allows, or some MiB more."""
    if size <= writer.smallest_part * writer.most_parts:
        return writer.smallest_part
    return -(-size // (writer.most_parts * _MIB)) * _MIB


@dataclass(frozen=True)
class Piece:
    """What of a tensor, or of the header, lies in one part. at: in the file."""

    key: str
    at: int
    nbytes: int


class Parts:
    """Of one file; numbers begin with 1. What lies between tensors belongs to no piece, and is zero."""

    def __init__(self, layout: FileLayout, sizes: Mapping[str, int], part: int) -> None:
        """sizes: bytes of every tensor. part: bytes of a part."""
        self.size = layout.size
        self.part = part
        self.count = max(1, -(-layout.size // part))
        self.places = {HEADER: (0, len(layout.header))}
        self.places |= {key: (at, sizes[key]) for key, at in layout.offsets.items()}
        self.pieces: dict[int, list[Piece]] = {number: [] for number in range(1, self.count + 1)}
        for key, (at, nbytes) in sorted(self.places.items(), key=lambda item: item[1]):
            for number in self.numbers(key):
                start, stop = self.span(number)
                first = max(at, start)
                self.pieces[number].append(Piece(key, first, min(at + nbytes, stop) - first))

    def numbers(self, key: str) -> range:
        """The parts that a tensor lies in; none where it has no bytes."""
        at, nbytes = self.places[key]
        return range(at // self.part + 1, (at + nbytes - 1) // self.part + 2) if nbytes else range(0)

    def span(self, number: int) -> tuple[int, int]:
        """First byte of a part, and of the next."""
        return (number - 1) * self.part, min(number * self.part, self.size)
