"""Ctrl-C and SIGTERM end a conversion in good order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import typer

from .exit_codes import INTERRUPTED, TERMINATED
from .output import message


class Terminated(BaseException):
    """SIGTERM, raised where the main thread happens to be."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


@contextmanager
def resumable() -> Iterator[None]:
    """Exit with 130 after Ctrl-C and with 143 after SIGTERM, and say that nothing is lost."""
    handles = threading.current_thread() is threading.main_thread()  # elsewhere python takes no handlers
    before = signal.signal(signal.SIGTERM, _terminate) if handles else None
    try:
        yield
    except (KeyboardInterrupt, Terminated) as stop:
        code, word = (TERMINATED, "terminated") if isinstance(stop, Terminated) else (INTERRUPTED, "interrupted")
        message(f"{word}; finished weights are kept, and the same command resumes")
        raise typer.Exit(code) from None
    finally:
        if handles:
            signal.signal(signal.SIGTERM, before)
