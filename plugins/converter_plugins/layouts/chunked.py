"""Files of a bounded size: for file systems, uploads and downloads that want them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from converter_core.api import LayoutWriter, PlannedWeight, Refused, hookimpl, parse_bytes


@dataclass(frozen=True)
class Chunked(LayoutWriter):
    """``{name}-00001-of-0000N.safetensors``, filled in the order of the weights' names, and an index.

    Numbers within names count as numbers (block 2 comes before block 10). How the source was cut into files does not
    show.

    chunk_size: bytes with a unit (``4GiB``; header not counted), or a count of tensors, where a weight and its scales
        count as one. A weight larger than the chunk has a file to itself. ``Refused`` for anything else.
    """

    name: ClassVar[str] = "chunked"
    flag: ClassVar[str] = "--chunk-size"
    indexed: ClassVar[bool] = True
    chunk_size: int | str = "4GiB"

    def __post_init__(self) -> None:
        self._limit()

    def files(self, name: str, weights: Sequence[PlannedWeight]) -> Mapping[str, Sequence[PlannedWeight]]:
        limit, in_bytes = self._limit()
        chunks: list[list[PlannedWeight]] = []
        room = 0
        for weight in sorted(weights, key=lambda weight: _natural(weight.name)):
            size = weight.nbytes if in_bytes else 1
            if not chunks or size > room:
                chunks.append([])
                room = limit
            chunks[-1].append(weight)
            room -= size
        return {f"{name}-{number:05d}-of-{len(chunks):05d}": chunk for number, chunk in enumerate(chunks, 1)}

    def _limit(self) -> tuple[int, bool]:
        """How much goes into a file, and whether that is bytes."""
        size: object = self.chunk_size
        if isinstance(size, str) and size.strip().isdecimal():
            size = int(size)
        if isinstance(size, int) and not isinstance(size, bool) and size > 0:
            return size, False
        if isinstance(size, str):
            try:
                return parse_bytes(size), True
            except ValueError as error:
                raise Refused(f"chunk_size: {error}; or a count of tensors, e.g. 100") from None
        raise Refused(
            f"chunk_size: {size!r} is neither bytes with a unit (4GiB) nor a count of tensors from 1; "
            "for everything in one file choose layout single_file"
        )


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sorts names so that numbers within them count as numbers; ``w01`` and ``w1``, equal so far, by their text."""
    runs = re.split(r"([0-9]+)", name)  # text, digits, text ...: each place compares like with like
    return [(int(run), "") if place % 2 else (0, run) for place, run in enumerate(runs)], name


@hookimpl
def converter_layouts() -> Sequence[type[LayoutWriter]]:
    return [Chunked]
