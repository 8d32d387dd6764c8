"""How far a run is: a bar by bytes on a terminal, a plain line now and then elsewhere. Always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

from ..sizes import format_bytes
from .output import message

EVERY = 10.0
"""Seconds between plain lines."""


class Event(Protocol):
    """done, total: bytes. taken_over: those of ``done`` that an earlier run had done. weight: the latest one's name."""

    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def taken_over(self) -> int: ...
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
        rate = (event.done - event.taken_over) / max(self.now() - self.started, 1e-9)
        if rate <= 0:
            return ""
        left = timedelta(seconds=round((event.total - event.done) / rate))
        return f"{format_bytes(round(rate))}/s, {left} left"


@contextmanager
def progress(quiet: bool) -> Iterator[Show | None]:
    """Something to call with every event; None if nothing is to be shown."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        yield _lines()


def _taken_over(event: Event) -> str:
    return f"{format_bytes(event.taken_over)} taken over from an earlier run" if event.taken_over else ""


def _lines(now: Callable[[], float] = time.monotonic) -> Show:
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
            _taken_over(event),
        )
        message(", ".join(part for part in parts if part))

    return show


@contextmanager
def _bar() -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    pace = Pace()
    columns = (
        BarColumn(),
        TextColumn(
            "{task.percentage:>3.0f}% {task.fields[size]} {task.fields[pace]} {task.fields[remark]}", markup=False
        ),
    )
    with Progress(*columns, console=Console(stderr=True, highlight=False), transient=True) as bar:
        task = bar.add_task("", total=None, size="", pace="", remark="")

        def show(event: Event) -> None:
            bar.update(
                task,
                completed=event.done,
                total=event.total,
                size=f"{format_bytes(event.done)}/{format_bytes(event.total)}",
                pace=pace.describe(event),
                remark=" ".join(filter(None, (_taken_over(event), event.weight))),
            )

        yield show
