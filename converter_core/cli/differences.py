"""Two verifications side by side, in a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..sizes import format_bytes
from .output import message
from .tables import show_table

if TYPE_CHECKING:
    from ..verification.result import Verification

MOST = 10


def show_differences(one: Verification, other: Verification) -> None:
    """The weights whose errors differ most, and how many are better or worse in the second."""
    from ..report.difference import pairs, ratio

    known = {
        name: (first, second, found)
        for name, (first, second) in pairs(one, other).items()
        if first is not None and second is not None and (found := ratio(first, second)) is not None
    }
    furthest = sorted(known, key=lambda name: -max(known[name][2], 1 / (known[name][2] or 1e-300)))[:MOST]
    rows = [
        (
            name,
            first.format,
            second.format,
            f"{first.relative_error:.5f}",
            f"{second.relative_error:.5f}",
            f"{found:.3f}",
            f"{format_bytes(first.bytes_after)} / {format_bytes(second.bytes_after)}",
        )
        for name in furthest
        for first, second, found in [known[name]]
    ]
    if rows:
        columns = ("weight", "first", "second", "error", "second's", "ratio", "sizes")
        show_table("Where they differ most", columns, rows, numbers=4, optional=("sizes", "first", "second"))
        better = sum(found < 1 for _, _, found in known.values())
        worse = sum(found > 1 for _, _, found in known.values())
        message(f"the second is closer to the source in {better:,} weights, less close in {worse:,} of {len(known):,}")
    else:
        message("no errors to compare: give --against SOURCE, and two outputs of the same model")
