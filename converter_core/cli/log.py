"""Messages of a run: plain on a terminal; with time and name in the log of a run that nobody watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from .output import message


@dataclass
class Ending:
    """status: what the last line of the log says."""

    status: str = "failed"


@dataclass
class Log:
    """name: what is converted, once that is known."""

    quiet: bool = False
    name: str = ""
    started: float = field(default_factory=time.monotonic)
    began: bool = False

    def begin(self, source: str, output: str) -> None:
        """The first line; none where the recipe does not say from where to where."""
        self.began = bool(source and output)
        if self.began:
            self.say(f"converting {source} to {output}")

    def say(self, text: str) -> None:
        if self.quiet:
            return
        message(text if sys.stderr.isatty() else f"{_now()} {f'[{self.name}] ' if self.name else ''}{text}")

    @contextmanager
    def ending(self) -> Iterator[Ending]:
        """A last line for the log, whatever happens; a terminal shows the result instead."""
        end = Ending()
        try:
            yield end
        except BaseException as error:
            if not isinstance(error, Exception):  # a signal
                end.status = "interrupted"
            raise
        finally:
            if self.began and not sys.stderr.isatty():
                self.say(f"{end.status}, after {time.monotonic() - self.started:.1f} s")


def _now() -> str:
    return datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
