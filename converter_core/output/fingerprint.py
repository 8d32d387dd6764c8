"""What a run is made of: two runs with the same fingerprint write the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..api.values import TensorSpec
from ..checkpoint.checkpoint import SourceFile
from ..errors import CheckpointError, shown
from ..trusted import open_regular


@dataclass(frozen=True)
class Fingerprint:
    """value: sha256 hex of ``made_of``, whose entries tell what changed when it differs.

    identity: of every source file [version], which is the time of its last change or an ETag, and of one on a disk of
    this machine its inode and the time of the last change of anything too. It is no part of the value: a copy has
    another one. Where it differs, checksums of what was read of the source decide.
    """

    value: str
    made_of: Mapping[str, Any]
    identity: Mapping[str, Sequence[int | str]] = field(default_factory=dict)

    def moved(self, identity: Mapping[str, Any], parts: int | None = None) -> tuple[str, ...]:
        """Source files that are not known to be the very same as then. parts: how much of an identity counts."""
        now = {name: list(known[:parts]) for name, known in self.identity.items()}
        return tuple(sorted(name for name, known in now.items() if identity.get(name) != known))


def digest(value: Any) -> str:
    """sha256 hex of a JSON value, whatever the order of its mappings."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()  # paths need not be Unicode


def fingerprint(
    recipe: Mapping[str, Any],
    sources: Iterable[SourceFile],
    inputs: Mapping[str, str],
    distributions: Mapping[str, str],
    copies: Mapping[str, str],
) -> Fingerprint:
    """recipe: as_dict(). inputs: of files that the recipe names, by path, ``content_hash``. copies: of those beside the
    weights, by name.

    Where source, inputs and output lie, and how their paths were typed, is no part of it; nor are times.
    """
    sources = tuple(sources)
    asked = {section: _without_paths(values, inputs) for section, values in recipe.items() if section != "performance"}
    for section, keys in _PLACES.items():
        for key in keys:
            asked.get(section, {}).pop(key, None)
    made_of = {
        **{f"recipe: {section}": values for section, values in asked.items()},
        **{f"source file {file.name}": [file.size, file.header_hash] for file in sources},
        **{f"file {Path(path).name}": content for path, content in inputs.items()},
        **{f"side file {name}": content for name, content in copies.items()},
        **{f"version of {name}": number for name, number in distributions.items()},
    }
    return Fingerprint(digest(made_of), made_of, {file.name: file.identity for file in sources})


_PLACES = {"source": ("path", "calibration", "on_unmatched"), "output": ("path", "overwrite", "state_folder")}


def _without_paths(value: Any, files: Mapping[str, str]) -> Any:
    """The same, with the name and the content in the place of every path of an input file."""
    if isinstance(value, Mapping):
        return {key: _without_paths(item, files) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_paths(item, files) for item in value]
    return [Path(value).name, files[value]] if isinstance(value, str) and value in files else value


def listing_hash(tensors: Mapping[str, TensorSpec]) -> str:
    """Of the sorted names, dtypes and shapes of a checkpoint."""
    return digest(sorted((key, spec.dtype, list(spec.shape)) for key, spec in tensors.items()))


def content_hash(path: str) -> str:
    """sha256 hex of a file. CheckpointError if it cannot be read."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            sha = hashlib.sha256()
            while block := file.read(1 << 20):
                sha.update(block)
    except OSError as error:
        raise CheckpointError(f"{shown(path)}: cannot be read ({error.strerror})") from None
    return sha.hexdigest()
