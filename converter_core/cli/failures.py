"""What is said when a command cannot do its work: plain lines on stderr, and with ``--json`` an object on stdout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConverterError, listed, shown
from . import exit_codes
from .output import IN_JSON, message


@dataclass(frozen=True)
class Failure:
    """kind: the class of the error, e.g. ``PlanError``. problems: one sentence each."""

    kind: str
    problems: Sequence[str]
    exit_code: int = exit_codes.FAILED

    def as_dict(self) -> dict[str, Any]:
        return {"error": {"kind": self.kind, "problems": list(self.problems)}, "exit_code": self.exit_code}

    def show(self, prefix: str = "") -> None:
        for problem in listed(self.problems, rest=IN_JSON):
            message(f"error: {prefix}{problem}")


def failure_of(error: Exception) -> Failure | None:
    """A ConverterError, or what the system says of a file, as a Failure; None for anything else, which is a bug."""
    if isinstance(error, ConverterError):
        return Failure(type(error).__name__, error.problems)
    if isinstance(error, OSError) and error.filename is not None:
        return Failure(type(error).__name__, [f"{shown(error.filename)}: {error.strerror}"])
    return None


def report(failure: Failure, show: Callable[[Any], None] | None = None) -> int:
    """Print it, and with ``show`` as JSON values too; its exit code."""
    failure.show()
    if show is not None:
        show(failure.as_dict())
    return failure.exit_code
