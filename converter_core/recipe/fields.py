"""What single keys of a recipe may be, where their type does not say it; a ValueError gives the reason."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from ..sizes import parse_bytes
from .schema import describe

LONGEST_MATCH = 512
"""Characters of a rule's glob. Names of weights are shorter, and a pattern of many brackets takes for ever."""


def memory(value: Any) -> int:
    """``"1GiB"`` or a number of bytes -> bytes; ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("must be a size such as 1GiB")
    size = parse_bytes(value) if isinstance(value, str) else value
    if size < 1:
        raise ValueError("must be at least 1 byte")
    return size


def workers(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be a whole number")
    if value < 1:
        raise ValueError("must be at least 1")
    return value


def finite(value: Any) -> float:
    """A number that is neither infinite nor NaN; ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError("must be a finite number")
    return float(value)


def folder(value: Any) -> str:
    """Text or a path object -> text, ``~`` expanded; ValueError."""
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError("must be a path")
    return str(Path(text).expanduser()) if text.startswith("~/") else text


def stem(value: Any) -> str:
    """A name that files can begin with; ValueError."""
    if not isinstance(value, str) or not value:
        raise ValueError("must be text")
    if "/" in value or "\0" in value or value.startswith("."):
        raise ValueError("must be the name of a file: without a slash, and not hidden by a dot in front")
    if len(value.encode("utf-8", "surrogateescape")) > 200:
        raise ValueError("must be shorter: file names have at most 255 bytes, and a suffix is added")
    return value


def glob(value: Any) -> str:
    """A pattern short enough to be matched in no time; ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"must be {describe(str)}")
    if len(value) > LONGEST_MATCH:
        raise ValueError(f"is a pattern of {len(value)} characters; at most {LONGEST_MATCH} are allowed")
    return value
