"""The command line. Nothing here imports torch before a command needs it."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import typer

from . import exit_codes
from .app import NAME, app
from .failures import Failure, failure_of, report
from .output import print_json, print_json_line

_USAGE_ERROR = typer.BadParameter.__bases__[0]  # click's, or typer's own copy of it since 0.26


def main() -> NoReturn:
    gc.set_threshold(100_000)  # importing torch makes that many objects, which all stay
    # torch says so at import where there is no numpy; nothing here needs it
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy", category=UserWarning)
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
    """Run one command line; its exit code (``exit_codes``).

    What a user can act on is printed, and with ``--json`` it is an object on stdout too. Anything else that a command
    raises is a bug and shows its traceback.
    """
    words = sys.argv[1:] if args is None else args
    as_json = "--json" in words
    show = print_json_line if "batch" in words[:1] else print_json
    try:
        code = int(app(args, prog_name=NAME, standalone_mode=False) or exit_codes.OK)
    except (typer.Abort, KeyboardInterrupt):
        code = exit_codes.INTERRUPTED
    except Exception as error:
        if isinstance(error, _USAGE_ERROR):
            error.show()  # type: ignore[attr-defined]
            code = exit_codes.USAGE
            if as_json:
                show(Failure("UsageError", [error.format_message()], code).as_dict())  # type: ignore[attr-defined]
            return code
        failure = failure_of(error)
        if failure is None:
            raise
        return report(failure, show if as_json else None)
    if as_json and code in _STOPPED:
        show(Failure(_STOPPED[code], ["finished weights are kept, and the same command resumes"], code).as_dict())
    return code


_STOPPED = {exit_codes.INTERRUPTED: "Interrupted", exit_codes.TERMINATED: "Terminated"}
