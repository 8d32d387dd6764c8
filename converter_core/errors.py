"""What can go wrong in words a user can act on.

ConverterError            a message for the user; the command line prints it and exits with 1
├── RecipeError           what was asked for cannot be understood
├── CheckpointError       a file that is not what it should be
├── PluginError           a plugin that is unknown, broken, blocked or that broke its contract
├── PlanError             the recipe is clear but cannot be carried out on this checkpoint
├── ConversionError       something went wrong under way; what is finished is kept
└── VerificationError     an output is not what it should be
Refused                   raised by a plugin with a plain reason; the core adds weight, shape and rule

Anything else that is raised is a bug and shows its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

LONGEST_NAME = 300
"""Characters of a name that a message shows."""

LONGEST_LINE = 8000
"""Characters of a line of a message: a path (4096 bytes at most on Linux) and what is said of it."""

MOST_SHOWN = 20
"""Problems that a person reads before the count of the rest says more."""


class ConverterError(Exception):
    """A problem, or several found together, shown to the user as they stand: what a terminal would obey is escaped."""

    def __init__(self, *problems: str) -> None:
        self.problems: tuple[str, ...] = tuple(map(printable_lines, problems))
        super().__init__("\n".join(self.problems))


class RecipeError(ConverterError):
    pass


class CheckpointError(ConverterError):
    pass


class PluginError(ConverterError):
    pass


class PlanError(ConverterError):
    pass


class ConversionError(ConverterError):
    pass


class VerificationError(ConverterError):
    pass


class Refused(ConverterError):
    """A plugin's plain reason for not taking something, e.g. ``needs a multiple of 16 columns``."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant. Case does not count, nor whether words are joined by ``-`` or ``_``."""
    names = {_folded(one): one for one in known}
    near = get_close_matches(_folded(name), names, n=1)
    return names[near[0]] if near else None


def _folded(name: str) -> str:
    return name.casefold().replace("-", "_")


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """``unknown layout 'by_blok'; did you mean 'by_block'? (known: ...)``"""
    names = sorted(known)
    near = nearest(name, names)
    hint = f"; did you mean {near!r}?" if near else ""
    return f"unknown {what} {name!r}{hint} (known: {', '.join(names) or 'none'})"


def printable(text: object, limit: int = LONGEST_NAME) -> str:
    """Text that comes from a file, as it may stand in a message: no control characters, at most ``limit`` characters.

    A file may name its tensors, its metadata and even its neighbours as it likes: with escape sequences that a terminal
    obeys, with characters that no encoding has, or a gigabyte long. What is too long loses its middle, because the
    end of a name says as much as its beginning.
    """
    text = _shortened(str(text), limit)
    if text.isprintable():
        return text
    return _shortened("".join(char if char.isprintable() else repr(char)[1:-1] for char in text), limit)


def listed(items: Sequence[object], most: int = MOST_SHOWN, rest: str = "") -> list[str]:
    """Lines for the first ``most`` items, each printable, and one that says how many more there are."""
    lines = [printable(item, LONGEST_LINE) for item in items[:most]]
    return lines if len(items) <= most else [*lines, f"and {len(items) - most:,} more{rest}"]


def shown(name: object) -> str:
    """A file's name as it may stand in a message."""
    return printable(name, LONGEST_LINE)


def printable_lines(text: str) -> str:
    """``printable``, line by line: the core's own messages may have several."""
    return "\n".join(printable(line, LONGEST_LINE) for line in str(text).split("\n"))


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    head, tail = (limit - 1) // 2, (limit - 1) - (limit - 1) // 2
    return f"{text[:head]}…{text[len(text) - tail :]}"
