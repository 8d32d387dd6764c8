"""The command line. Nothing here imports torch before a command needs it."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import typer

from ..errors import ConverterError, shown
from .app import NAME, app

INTERRUPTED = 130

_USAGE_ERROR = typer.BadParameter.__bases__[0]  # click's, or typer's own copy of it since 0.26


def main() -> NoReturn:
    gc.set_threshold(100_000)  # importing torch makes that many objects, which all stay
    with Path(os.devnull).open("w") as nowhere:
        sys.stdout = sys.stdout or nowhere  # none where the caller closed it
        sys.stderr = sys.stderr or nowhere
        _run_and_end()


def _run_and_end() -> NoReturn:
    code = run()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # nobody listens any more; Python says so in its own way
        sys.exit(code)
    os._exit(code)  # taking torch's modules apart, object by object, takes a third of a second


def run(args: Sequence[str] | None = None) -> int:
    """The exit code: 0 done, 1 refused or failed, 2 not understood, 130 interrupted, 143 terminated.

    A ConverterError is printed, and so is what the system says of a file (no permission, not a folder); anything else
    that a command raises is a bug and shows its traceback.
    """
    try:
        return int(app(args, prog_name=NAME, standalone_mode=False) or 0)
    except ConverterError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {shown(error.filename)}: {error.strerror}", file=sys.stderr)
        return 1
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except Exception as error:
        if not isinstance(error, _USAGE_ERROR):
            raise
        error.show()  # type: ignore[attr-defined]
        return 2
