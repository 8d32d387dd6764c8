"""Tables that are never wider than the terminal, and never so narrow that a name is written one letter per line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import shown
from ..sizes import format_bytes
from .output import console

LONGEST_WORD = 36
"""Columns that a word may claim. What is longer (an absolute path) is folded."""

_GAP = 3
_ORDER = re.compile(r"(\d+)")


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sorts ``block_2`` before ``block_10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in _ORDER.split(name) if part]


def show_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    numbers: int = 0,
    optional: Sequence[str] = (),
) -> None:
    """Print a table. The last ``numbers`` columns are aligned to the right.

    On a narrow terminal the ``optional`` columns are dropped, the first named first. Where that is not enough each
    row becomes a paragraph.
    """
    texts = [[shown(value) for value in row] for row in rows]
    right = set(columns[len(columns) - numbers :])
    out = console()
    kept = list(range(len(columns)))
    least = [_least(columns[at], [row[at] for row in texts], columns[at] in right) for at in kept]
    for name in optional:
        if _total(least, kept) <= out.width:
            break
        kept.remove(columns.index(name))
    if _total(least, kept) > out.width:
        _show_paragraphs(title, columns, texts)
        return
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for at in kept:
        number = columns[at] in right
        table.add_column(
            columns[at],
            justify="right" if number else "left",
            overflow="fold",
            no_wrap=number,
            min_width=least[at],
        )
    for row in texts:
        table.add_row(*(row[at] for at in kept))
    out.print(table)


def _least(header: str, cells: Sequence[str], number: bool) -> int:
    """The narrowest that a column can be read at: its longest word, or all of a number."""
    if number:
        return max(map(len, (header, *cells)))
    words = (word for text in (header, *cells) for word in text.split())
    return min(LONGEST_WORD, max(map(len, words), default=1))


def _total(least: Sequence[int], kept: Sequence[int]) -> int:
    return sum(least[at] + _GAP for at in kept)


def _show_paragraphs(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.text import Text

    out = console()
    out.print(f"\n{title}", style="bold")
    for row in rows:
        out.print(Text(row[0] or "-"), soft_wrap=True)
        for column, value in zip(columns[1:], row[1:], strict=True):
            if value:
                out.print(Text(f"  {column}: {value}"))
    out.print()


def show_groups(title: str, groups: Sequence[Mapping[str, Any]]) -> None:
    """How each group of weights is treated, with a total."""
    before = sum(group["bytes_before"] for group in groups)
    after = sum(group["bytes_after"] for group in groups)
    rows = [
        (
            group["method"],
            group["kind"],
            group["module"],
            f"{group['count']:,}",
            *sizes(group["bytes_before"], group["bytes_after"]),
        )
        for group in groups
    ]
    rows.append(("total", "", "", f"{sum(group['count'] for group in groups):,}", *sizes(before, after)))
    columns = ("method", "kind", "module", "weights", "before", "after", "ratio")
    show_table(title, columns, rows, numbers=4, optional=("kind", "ratio"))


def sizes(before: int, after: int) -> tuple[str, str, str]:
    return format_bytes(before), format_bytes(after), f"{after / before:.3f}" if before else ""
