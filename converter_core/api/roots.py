"""A folder as it was downloaded: a root in which one model or several lie."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True)
class SourceRoot:
    """files: paths relative to the root, with ``/``, a few folders deep. weights: those that hold tensors.

    pipeline: its ``model_index.json``.
    """

    files: tuple[str, ...]
    weights: tuple[str, ...] = ()
    pipeline: Mapping[str, Any] = field(default_factory=dict)

    def holds_weights(self, folder: str) -> bool:
        """Whether files of weights lie in a folder, not deeper."""
        return any(file.rpartition("/")[0] == folder for file in self.weights)

    def matching(self, *globs: str) -> list[str]:
        """Files of weights that match a glob, those of the first one first; ``*`` crosses no folder."""
        return [
            file
            for glob in globs
            for file in self.weights
            if file.count("/") == glob.count("/") and fnmatchcase(file, glob)
        ]

    def of_classes(self, classes: Collection[str]) -> dict[str, str]:
        """Folders of a diffusers pipeline whose model is of one of these classes, by name."""
        named = {name: value for name, value in self.pipeline.items() if isinstance(value, list) and len(value) == 2}
        return {name: name for name, value in named.items() if value[1] in classes and self.holds_weights(name)}
