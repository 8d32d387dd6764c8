"""How far a run is: a bar by bytes on a terminal, a line now and then elsewhere. Always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

from ..errors import printable
from ..sizes import format_bytes
from .log import Log

EVERY = 10.0
"""Seconds between lines."""

_BAR = 10
"""Columns that the bar keeps, however narrow the terminal is."""


class Event(Protocol):
    """done, total: bytes. resumed: those of ``done`` that an earlier run had done. weight: the latest one's name."""

    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def resumed(self) -> int: ...
    @property
    def weight(self) -> str: ...


Show = Callable[[Event], None]


class Pace:
    """Rate and time left, from what this run itself has done."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.started = now()

    def describe(self, event: Event) -> str:
        """``410.2 MiB/s, 0:02:21 left``."""
        return ", ".join(self.parts(event))

    def parts(self, event: Event) -> list[str]:
        """Rate and time left; neither if there is no rate yet."""
        rate = (event.done - event.resumed) / max(self.now() - self.started, 1e-9)
        if rate <= 0:
            return []
        left = timedelta(seconds=round((event.total - event.done) / rate))
        return [f"{format_bytes(round(rate))}/s", f"{left} left"]


@contextmanager
def progress(quiet: bool, log: Log) -> Iterator[Show | None]:
    """Something to call with every event; None if nothing is to be shown."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        yield _lines(log)


def _resumed(event: Event) -> str:
    return f"{format_bytes(event.resumed)} resumed" if event.resumed else ""


def _lines(log: Log, now: Callable[[], float] = time.monotonic) -> Show:
    pace = Pace(now)
    last = now()

    def show(event: Event) -> None:
        nonlocal last
        if now() - last < EVERY or not event.total:
            return
        last = now()
        parts = (
            f"{event.done / event.total:4.0%}  {format_bytes(event.done)} of {format_bytes(event.total)}",
            pace.describe(event),
            _resumed(event),
        )
        log.say(", ".join(part for part in parts if part))

    return show


@contextmanager
def _bar() -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    pace = Pace()
    console = Console(stderr=True, highlight=False)
    columns = (BarColumn(bar_width=None), TextColumn("{task.fields[text]}", markup=False))
    with Progress(*columns, console=console, transient=True, expand=True) as bar:
        task = bar.add_task("", total=None, text="")

        def show(event: Event) -> None:
            text = fit(event, pace, console.width - _BAR - 1)
            bar.update(task, completed=event.done, total=event.total, text=text)

        yield show


def fit(event: Event, pace: Pace, width: int) -> str:
    """What is said beside the bar: as much as there is room for, the most useful first."""
    percent = f"{event.done / event.total:4.0%}" if event.total else ""
    rate, left = pace.parts(event) or ("", "")
    size = f"{format_bytes(event.done)}/{format_bytes(event.total)}"
    weight = printable(event.weight)
    shown: set[str] = set()
    for part in (percent, left, size, rate, _resumed(event), weight):
        if part and sum(len(other) + 1 for other in shown) + len(part) <= width:
            shown.add(part)
    return " ".join(part for part in (percent, size, rate, left, _resumed(event), weight) if part in shown)
