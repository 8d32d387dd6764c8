"""The index of a checkpoint in several files, in the Hugging Face form: which file each tensor is in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..api.json_text import load_json_object
from ..api.targets import INDEX_STEM
from ..errors import CheckpointError, shown


def preferred_index(names: Sequence[str]) -> str | None:
    """Of several indexes the one that diffusers would take; None: there is none of that name."""
    return next((name for name in names if name.startswith(f"{INDEX_STEM}.")), names[0] if len(names) == 1 else None)


def parse_index(text: bytes, path: object) -> Mapping[str, str]:
    """Key -> name of its file, from an index in the Hugging Face form; every name is one of a file beside the index.

    path: for messages.
    """
    where = load_json_object(text, shown(path), "this is no index").get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise CheckpointError(f"{shown(path)}: weight_map must map tensors to file names")
    if not where:
        raise CheckpointError(f"{shown(path)}: names no tensor")
    names = sorted(set(where.values()))
    outside = [name for name in names if name in ("", ".", "..") or set(name) & {"/", "\\", "\0"}]
    if outside:
        raise CheckpointError(f"{shown(path)}: {some(outside)} must be names of files in the same folder")
    return where


def some(names: Sequence[str], count: int = 3) -> str:
    """``'a', 'b', 'c' and 12 more``"""
    rest = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(map(repr, names[:count])) + rest
