"""Files that are not weights: which of a source folder are copied beside the output."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..api.contexts import SourceTensors
from ..api.models import ModelAdapter
from ..errors import CheckpointError, shown
from ..trusted import CONFIG as CONFIG_BYTES
from ..trusted import is_inside, read_file
from .manifest import SUFFIX as MANIFEST_SUFFIX

OTHER_WEIGHTS = frozenset(
    {".bin", ".ckpt", ".onnx", ".onnx_data", ".h5", ".msgpack"}
    | {".npz", ".npy", ".tflite", ".pb", ".pdparams", ".engine", ".mlmodel"}
)
CONFIG = "config.json"


@dataclass(frozen=True)
class SideFiles:
    """copies: name in the output -> file to copy. written: name -> content that replaces the source's file."""

    copies: dict[str, Path]
    written: dict[str, bytes]


def side_files(
    root: Path, adapter: ModelAdapter, tensors: SourceTensors, key_format: str, suffixes: Collection[str]
) -> SideFiles:
    """Every regular file of a folder but weights, indexes, manifests and what is hidden. Raises CheckpointError.

    suffixes: of weights, beside those that nothing here reads.
    A link is copied as the file it leads to if that lies in the folder or in the same cached repository's ``blobs``.
    """
    allowed = [root.resolve()]
    if root.resolve().parent.name == "snapshots":
        allowed.append(root.resolve().parent.parent / "blobs")
    copies: dict[str, Path] = {}
    problems = []
    for path in _walk(root, (*suffixes, *OTHER_WEIGHTS)):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            real = path.resolve()
            if not any(real.is_relative_to(folder) for folder in allowed):
                problems.append(f"{path}: is a link out of the source folder, to {real}; copy the file in or remove it")
                continue
            if real.is_dir():
                continue
        if not path.is_file():
            continue
        if not os.access(path, os.R_OK):
            problems.append(f"{path}: cannot be read, so it cannot be copied")
            continue
        if not is_inside(name) or not name.isprintable():
            problems.append(f"{shown(path)}: its name cannot be a file's name everywhere; rename or remove it")
            continue
        copies[name] = path
    written = {}
    if CONFIG in copies:
        try:
            config = json.loads(read_file(copies[CONFIG], CONFIG_BYTES))
        except OSError as error:
            problems.append(f"{shown(copies[CONFIG])}: cannot be read ({error.strerror})")
            config = None
        except (ValueError, RecursionError) as error:
            problems.append(f"{copies[CONFIG]}: is not JSON ({error})")
            config = None
        if isinstance(config, dict):
            translated = adapter.config(tensors, key_format)
            if translated is not tensors.config:
                written[CONFIG] = (json.dumps(translated, indent=2) + "\n").encode()
                del copies[CONFIG]
    if problems:
        raise CheckpointError(*problems)
    return SideFiles(copies, written)


def _walk(root: Path, weights: tuple[str, ...]) -> Iterator[Path]:
    for entry in sorted(root.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and not entry.is_symlink():
            yield from _walk(entry, weights)
        elif not entry.name.lower().endswith((".index.json", MANIFEST_SUFFIX, *weights)):
            yield entry
