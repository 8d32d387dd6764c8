"""What stands in an output folder already, whose it is, and whether a plan may write there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import journal
from .fingerprint import Fingerprint
from .manifest import crc, manifest_name, manifests_in

LARGEST_HEADER = 100_000_008
"""Bytes of a header that is compared."""


@dataclass(frozen=True)
class OutputState:
    """done: a finished output with the same fingerprint. replaces: files that give way when this plan is published.

    staged: bytes that an interrupted run of this plan has reserved already. resumes: that run's journal fits.
    damaged: files of a finished output with the same fingerprint that are missing, cut or changed, each with what is
    wrong. intact: the others. crc32: of the tensors in those, by key.
    """

    done: bool = False
    resumes: bool = False
    staged: int = 0
    replaces: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    intact: frozenset[str] = frozenset()
    crc32: Mapping[str, int] = field(default_factory=dict)


def staging_folder(output: Path, name: str) -> Path:
    return output / f".{name}.partial"


def check_apart(output: Path, source: Path, files: Iterable[Path]) -> list[str]:
    """The output must be neither the source nor inside it nor around it."""
    out, root = output.resolve(), source.resolve()
    if out == root:
        return [f"{output}: output and source are the same folder; choose another output.path"]
    if root.is_dir() and out.is_relative_to(root):
        return [f"{output}: lies inside the source folder {source}; choose another output.path"]
    if root.is_relative_to(out) or any(file.resolve().is_relative_to(out) for file in files):
        return [f"{output}: the source {source} lies inside it; choose another output.path"]
    return []


def output_state(
    output: Path, name: str, planned: Iterable[str], suffix: str, print_: Fingerprint, overwrite: bool
) -> OutputState:
    """planned: every file that would be published, the manifest included. suffix: of the weight files."""
    own = manifest_name(name)
    if output.exists() and not output.is_dir():
        return OutputState(problems=(f"{output}: is a file; output.path must be a folder",))
    if not output.is_dir():
        return OutputState()
    manifests = manifests_in(output)
    staging = staging_folder(output, name)
    begun = journal.read(staging)
    fingerprint = print_.value
    resumes = begun is not None and begun.fingerprint == fingerprint
    finished = own in manifests and manifests[own].get("fingerprint") == fingerprint and _is_empty(staging)
    damaged = _damaged(output, manifests[own]["files"]) if finished else {}
    if finished and not damaged:
        return OutputState(done=True)
    if finished:
        return _to_repair(output, manifests[own], damaged)

    owner = {file: manifest for manifest, content in manifests.items() for file in (*content["files"], manifest)}
    # what an interrupted run published, or was to replace, is that conversion's, though no manifest says so yet
    begun_with = {*begun.publishes, *begun.replaces} if begun else set()
    met: set[str] = set()
    problems = []
    owned = []
    for file in sorted(set(planned)):
        if not os.path.lexists(output / file) or (file in begun_with and resumes):
            continue
        if owner.get(file) == own and manifests[own].get("fingerprint") == fingerprint:
            continue  # an interrupted repair of this very conversion
        if file in begun_with or file in owner:
            met.add(owner.get(file, own))
            owned.append(file)
        else:
            problems.append(
                f"{output / file}: stands there and no manifest lists it; move it away or choose another output"
            )
    if owned and not overwrite:
        some = ", ".join(owned[:3]) + (f" and {len(owned) - 3} more" if len(owned) > 3 else "")
        problems.append(
            f"{output}: {some} would be replaced, of the conversion in "
            f"{', '.join(sorted(met))}; set output.overwrite: true to replace "
            "that whole conversion, or choose another output.path or output.name"
        )
    gone = {file for manifest in met if manifest in manifests for file in (*manifests[manifest]["files"], manifest)}
    gone |= begun_with
    others = sorted(set(manifests) - met - {own})
    warnings = []
    strays = sorted(path.name for path in output.glob(f"*{suffix}") if path.name not in gone)
    if others or strays:
        warnings.append(
            f"{output} also holds {', '.join((others or strays)[:3])}: a runtime that is given the folder may load "
            "every weight file in it, so give it the file, or use a folder for each conversion"
        )
    return OutputState(
        resumes=resumes,
        staged=_allocated(staging) if resumes else 0,
        replaces=tuple(sorted(gone)),
        problems=tuple(problems),
        warnings=tuple(warnings),
        changed=tuple(begun.differences(print_)) if begun and not resumes else (),
    )


def _damaged(output: Path, files: Mapping[str, Any]) -> dict[str, str]:
    """Files that are not what the manifest says, by size and header; what is wrong with each."""
    found = {}
    for name, entry in files.items():
        path = output / name
        size = entry.get("size") if isinstance(entry, dict) else None
        if not path.is_file():
            found[name] = "is missing"
        elif path.stat().st_size != size:
            found[name] = f"has {path.stat().st_size} bytes instead of {size}"
        elif "header_crc32" in entry and not _header_is(path, entry):
            found[name] = "has another header"
    return found


def _header_is(path: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a file begins with the header that the manifest says."""
    length = entry.get("header_size")
    if not isinstance(length, int) or not 0 <= length <= LARGEST_HEADER:
        return False
    with path.open("rb") as file:
        return crc(file.read(length)) == str(entry["header_crc32"])


def _to_repair(output: Path, manifest: Mapping[str, Any], damaged: Mapping[str, str]) -> OutputState:
    """Of a finished output with damaged files: they alone are made again, and nothing of anybody else is touched."""
    intact = frozenset(manifest["files"]) - damaged.keys()
    tensors = manifest.get("tensors", {})
    claims = {key: int(entry["crc32"], 16) for key, entry in tensors.items() if entry.get("file") in intact}
    told = [f"{name} {reason}" for name, reason in damaged.items()]
    return OutputState(
        warnings=tuple(f"{output}: {one}; it is made again" for one in told),
        damaged=tuple(told),
        intact=intact,
        crc32=claims,
    )


def free_disk(output: Path) -> int:
    """Bytes free for us where the output will be."""
    folder = output.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def disk_of(output: Path) -> int:
    """A number for the file system where the output will be."""
    folder = output.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder.stat().st_dev


def _is_empty(staging: Path) -> bool:
    """Not there, or all but removed by the run that published it."""
    return not staging.is_dir() or not any(staging.iterdir())


def _allocated(staging: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in staging.rglob("*") if path.is_file())
