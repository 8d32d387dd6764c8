"""How far a batch is: on a terminal a bar for each conversion under way; elsewhere nothing but lines for the log."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import printable
from .log import Log
from .progress import Event, Pace, fit

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_BAR = 10
_NAME = 24
"""Columns of a bar, and of the name beside it."""


class Shown:
    """Nothing is shown but what is logged."""

    def state(self, name: str, state: str) -> None:
        """Of one job."""

    def progress(self, name: str, event: Event) -> None:
        """Of one conversion, which may be several jobs'."""

    def log(self, log: Log, text: str) -> None:
        log.say(text)


class _Bars(Shown):
    def __init__(self, bars: Progress, total: int) -> None:
        self.bars = bars
        self.total = total
        self.ended = 0
        self.tasks: dict[str, tuple[TaskID, Pace]] = {}
        self.all = bars.add_task("", total=total, text=f"0 of {total} jobs")

    def state(self, name: str, state: str) -> None:
        if state in ("pending", "running"):
            return
        self.ended += 1
        self.bars.update(self.all, completed=self.ended, text=f"{self.ended} of {self.total} jobs")
        for running in [one for one in self.tasks if name in one.split(", ")]:
            self.bars.remove_task(self.tasks.pop(running)[0])

    def progress(self, name: str, event: Event) -> None:
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task("", total=None, text=""), Pace()
        task, pace = self.tasks[name]
        width = self.bars.console.width - _BAR - _NAME - 3
        text = f"{printable(name, _NAME):{_NAME}} {fit(event, pace, width)}"
        self.bars.update(task, completed=event.done, total=event.total, text=text)

    def log(self, log: Log, text: str) -> None:
        """The table at the end says it."""


@contextmanager
def batch_progress(total: int, quiet: bool) -> Iterator[Shown]:
    """total: jobs."""
    if quiet or not sys.stderr.isatty():
        yield Shown()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True, highlight=False)
    columns = (BarColumn(bar_width=None), TextColumn("{task.fields[text]}", markup=False))
    with Progress(*columns, console=console, transient=True, expand=True) as bars:
        yield _Bars(bars, total)
