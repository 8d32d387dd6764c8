"""How much of an output that is sent part by part lies on the disk at a time, at most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..api.values import FileLayout
from ..api.writers import PartWriter
from ..output.parts import HEADER, Parts, part_bytes
from .jobs import Job
from .resources import MOST_WORKERS

AT_ONCE = 8
"""Parts of one output that are sent at a time."""

WAITING = 2
"""Parts that are ready for each that is being sent; then those who make them wait."""


def most_pending(
    jobs: Sequence[Job],
    number: int,
    layouts: Mapping[str, FileLayout],
    sizes: Mapping[str, int],
    weight_map: Mapping[str, str],
    constants: Iterable[str],
    writer: PartWriter,
) -> int:
    """Bytes. number: of the output. sizes: of its tensors.

    A part stays until all that lies in it is made. The jobs come in their order, but for as many as there are workers,
    and what is ready waits for the store until makers wait too.
    """
    files = {name: Parts(layout, sizes, part_bytes(layout.size, writer)) for name, layout in layouts.items()}
    missing = {name: {part: len(pieces) for part, pieces in parts.pieces.items()} for name, parts in files.items()}
    held: dict[tuple[str, int], int] = {}
    total = most = largest = 0

    def stage(name: str, key: str) -> int:
        """Bytes of the parts that a tensor lies in."""
        nonlocal total, most
        parts, touched = files[name], 0
        at, nbytes = parts.places[key]
        for part in parts.numbers(key):
            start, stop = parts.span(part)
            touched += stop - start
            piece = min(at + nbytes, stop) - max(at, start)
            held[name, part] = held.get((name, part), 0) + piece
            total += piece
            most = max(most, total)
            missing[name][part] -= 1
            if not missing[name][part]:
                total -= held.pop((name, part))
        return touched

    for name in files:
        stage(name, HEADER)
    for key in constants:
        stage(weight_map[key], key)
    for job in jobs:
        keys = [tensor.key for export in job.exports if export.output == number for tensor in export.tensors]
        largest = max(largest, sum(stage(weight_map[key], key) for key in keys))
    ready = (1 + WAITING) * AT_ONCE * max((parts.part for parts in files.values()), default=0)
    whole = sum(layout.size for layout in layouts.values())
    return min(whole, most + MOST_WORKERS * largest + ready)
