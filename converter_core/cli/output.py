"""Results on stdout, messages on stderr, JSON as a switch."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import listed, printable_lines, shown
from ..sizes import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print the tables too.")]

IN_JSON = "; --json prints all"
"""What a list that was cut short says at its end."""

WIDTH = 120
"""Columns where there is no terminal to ask."""


def each_output(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a plan or a result says of each of its outputs, together with what it says of all."""
    shared = {key: item for key, item in value.items() if key != "outputs"}
    return [{**shared, **output} for output in value["outputs"]] if "outputs" in value else [dict(value)]


def message(text: str) -> None:
    print(printable_lines(text), file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def print_json_line(value: Any) -> None:
    """One of several, each on a line of its own, seen at once by what reads them."""
    print(json.dumps(value), flush=True)


def console() -> Console:
    """For results. Nothing in them is taken for markup: names come from strangers' files."""
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False, width=None if sys.stdout.isatty() else WIDTH)


def show_line(text: str) -> None:
    """A line of a result, not wrapped."""
    console().print(printable_lines(text), soft_wrap=True)


def show_facts(facts: Mapping[str, object]) -> None:
    """Lines of a name and a value; those without a value are left out. Never wrapped, so that paths stay whole."""
    from rich.text import Text

    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        if value not in (None, "", [], ()):
            line = Text.assemble((f"{shown(name):{width}}  ", "bold"), shown(in_words(value)))
            console().print(line, soft_wrap=True)


def in_words(value: object) -> str:
    """``yes`` and ``no`` for booleans."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def show_remarks(notes: Iterable[str], warnings: Iterable[str]) -> None:
    for note in listed(list(notes), rest=IN_JSON):
        console().print(f"note: {note}", soft_wrap=True)
    for warning in listed(list(warnings), rest=IN_JSON):
        console().print(f"warning: {warning}", style="yellow", soft_wrap=True)


def exact(count: int) -> str:
    """``15.97 GiB (17,150,000,123 bytes)``."""
    return f"{format_bytes(count)} ({count:,} bytes)"


def model_name(adapter: str, variant: str) -> str:
    """``wan_dit i2v_14b``; adapters call a size that they have no name for ``unknown``."""
    return f"{adapter}, no known variant" if variant == "unknown" else f"{adapter} {variant}".rstrip()
