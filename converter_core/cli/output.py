"""Results on stdout, messages on stderr, JSON as a switch."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..sizes import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no messages; errors are still told.")]

WIDTH = 120
"""Columns where there is no terminal to ask."""


def message(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def console() -> Console:
    """For results. Nothing in them is taken for markup: names come from strangers' files."""
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False, width=None if sys.stdout.isatty() else WIDTH)


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], numbers: int = 0) -> None:
    """The last ``numbers`` columns are aligned to the right."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for position, column in enumerate(columns):
        right = position >= len(columns) - numbers
        table.add_column(column, justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row in rows:
        table.add_row(*map(str, row))
    console().print(table)


def show_facts(facts: Mapping[str, object]) -> None:
    """Lines of a name and a value; those without a value are left out. Never wrapped, so that paths stay whole."""
    from rich.text import Text

    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        if value not in (None, "", [], ()):
            console().print(Text.assemble((f"{name:{width}}  ", "bold"), in_words(value)), soft_wrap=True)


def in_words(value: object) -> str:
    """``yes`` and ``no`` for booleans."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def show_remarks(notes: Iterable[str], warnings: Iterable[str]) -> None:
    for note in notes:
        console().print(f"note: {note}", soft_wrap=True)
    for warning in warnings:
        console().print(f"warning: {warning}", style="yellow", soft_wrap=True)


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
    show_table(title, ("method", "kind", "module", "weights", "before", "after", "ratio"), rows, numbers=4)


def sizes(before: int, after: int) -> tuple[str, str, str]:
    return format_bytes(before), format_bytes(after), f"{after / before:.3f}" if before else ""


def exact(count: int) -> str:
    """``15.97 GiB (17,150,000,123 bytes)``."""
    return f"{format_bytes(count)} ({count:,} bytes)"
