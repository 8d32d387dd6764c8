"""Where an output is to lie: apart from its source, on a disk with room for it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path


def check_apart(output: Path, source: Path, files: Iterable[Path]) -> list[str]:
    """The output must be neither the source nor inside it nor around it."""
    try:
        out, root = output.resolve(), source.resolve()
        around = root.is_relative_to(out) or any(file.resolve().is_relative_to(out) for file in files)
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, NUL
        return [f"{output}: is no folder that can be written to ({error})"]
    if out == root:
        return [f"{output}: output and source are the same folder; choose another output.path"]
    if root.is_dir() and out.is_relative_to(root):
        return [f"{output}: lies inside the source folder {source}; choose another output.path"]
    if around:
        return [f"{output}: the source {source} lies inside it; choose another output.path"]
    return []


def check_urls_apart(output: str, source: str) -> list[str]:
    """The same of two URLs."""
    out, root = output.rstrip("/") + "/", source.rstrip("/") + "/"
    if out.startswith(root) or root.startswith(out):
        return [f"{output}: the source {source} lies there, in it or around it; choose another output.path"]
    return []


def free_disk(output: Path) -> int:
    """Bytes free for us where the output will be."""
    return shutil.disk_usage(_existing(output)).free


def disk_of(output: Path) -> int:
    """A number for the file system where the output will be."""
    return _existing(output).stat().st_dev


def _existing(output: Path) -> Path:
    folder = output.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
