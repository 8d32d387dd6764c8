"""Checksums of tensors of which some is sent and gone from the disk."""

from __future__ import annotations

from ..folder import Folder
from .crc import combined
from .parts import Parts
from .staging import checksum
from .upload_book import Sent


def checksum_of(parts: Parts, key: str, sent: Sent | None, staged: Folder, name: str) -> int:
    """crc32 of a tensor of a file: of its pieces in parts that were sent, and in the staged file; -1 if unreadable."""
    crc = 0
    for number in parts.numbers(key):
        piece = next(one for one in parts.pieces[number] if one.key == key)
        part = sent.parts.get(number) if sent is not None else None
        found = part.crc32.get(key) if part is not None else None
        if found is None:
            found = checksum(staged, name, piece.at, piece.nbytes)
        if found < 0:
            return -1
        crc = combined(crc, found, piece.nbytes)
    return crc
