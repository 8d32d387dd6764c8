"""Several recipes in one process, one after the other: what fails does not keep the others from being done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from . import exit_codes
from .asked import Asked
from .failures import failure_of
from .output import each_output, print_json, show_line

Run = Callable[..., dict[str, Any]]


def run_all(requests: Sequence[Asked], run: Run, *, resume: bool, quiet: bool, as_json: bool) -> int:
    """Exit code 1 if one failed. A line for each on stdout, or one JSON object for all."""
    found: list[dict[str, Any]] = []
    code = exit_codes.OK
    for asked in requests:
        name = str(asked.source)
        try:
            result = run(asked, resume=resume, quiet=quiet or as_json)
        except Exception as error:
            failure = failure_of(error)
            if failure is None:
                raise
            code = exit_codes.FAILED
            failure.show(f"{name}: ")
            found.append({"recipe": name, **failure.as_dict()})
            line = f"failed        {name}: {len(failure.problems)} problem{'s' if len(failure.problems) > 1 else ''}"
        else:
            found.append({"recipe": name, **result, "exit_code": exit_codes.OK})
            outputs = each_output(result)
            places = ", ".join(one["output"] for one in outputs)
            line = f"{outputs[-1]['status']:12}  {name} -> {places} ({result['seconds']:.1f} s)"
        if not (quiet or as_json):
            show_line(line)
    if as_json:
        print_json({"conversions": found, "exit_code": code})
    return code
