"""What plugins say of themselves: the first line of their docstring, and their dataclass fields."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

from ..recipe.schema import describe as describe_type
from ..recipe.schema import hints, show

if TYPE_CHECKING:
    from collections.abc import Mapping

_ENTRY = re.compile(r"(\w+(?:, \w+)*): (.*)")


def _text(cls: type) -> str:
    """The docstring without the marks of its markup."""
    return inspect.cleandoc(cls.__doc__ or "").replace("``", "")


def summary(cls: type) -> str:
    """The first paragraph of the docstring, on one line; not that of a base class."""
    text = _text(cls).split("\n\n")[0]
    return "" if text.startswith(f"{cls.__name__}(") else " ".join(text.split())  # a dataclass makes up a docstring


def remarks(cls: type) -> Mapping[str, str]:
    """Option -> what the docstrings of the class and its bases say of it (``name: text``, continued by indenting)."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        names: list[str] = []
        for line in _text(base).splitlines():
            entry = _ENTRY.fullmatch(line)
            if entry:
                names = entry[1].split(", ")
                found.update(dict.fromkeys(names, entry[2]))
            elif names and line.startswith("    "):
                found.update({name: f"{found[name]} {line.strip()}" for name in names})
            else:
                names = []
    return found


def options(cls: type) -> list[dict[str, Any]]:
    """Name, type in words, default and remark of each."""
    from ..plugins.validation import default_of, options_of

    said = remarks(cls)
    return [
        {
            "name": option.name,
            "type": describe_type(hints(cls).get(option.name, Any)),
            "default": default_of(option),
            "description": said.get(option.name, ""),
        }
        for option in options_of(cls)
        if option.init
    ]


def in_yaml(value: Any) -> str:
    """A default as it would be written in a recipe."""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(in_yaml, value))}]"
    return "null" if value is None else show(value)
