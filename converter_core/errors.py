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

from collections.abc import Iterable
from difflib import get_close_matches


class ConverterError(Exception):
    """A problem, or several found together, told to the user as they stand: what a terminal would obey is escaped."""

    def __init__(self, *problems: str) -> None:
        self.problems: tuple[str, ...] = tuple(map(_harmless, problems))
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


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """``unknown layout 'by_blok'; did you mean 'by_block'? (known: ...)``"""
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {what} {name!r}; {hint}(known: {', '.join(names) or 'none'})"


def _harmless(text: str) -> str:
    """Names from files and recipes end up in messages; they may hold cursor movements, or what no encoding has."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def shown(name: object) -> str:
    """A file's name as it may stand in a message: escaped if it holds anything that a terminal would not print."""
    text = str(name)
    return text if text.isprintable() else repr(text)
