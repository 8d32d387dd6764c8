"""A finished output of this very conversion that is met again: whether it is still what was published.

On a disk every file gets the modification time of the manifest when it is published; elsewhere the manifest says which
ETag each file got. A file with that time or ETag, its planned size and its planned header was not written since; one
with another (it was copied, or changed) is compared by checksums.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..api.values import FileLayout
from ..errors import CheckpointError
from .fingerprint import Fingerprint
from .place import Place, Standing

VERSION = "version"
"""What a manifest calls the ETag of a file that lies elsewhere."""


@dataclass(frozen=True)
class Finished:
    """damaged: file -> what is wrong with it. touched: files with another modification time or ETag, in order.

    crc32: tensor -> checksum. sides: file that is not weights -> checksum. moved: source files that have another time
    (or ETag) than those it was made of. sources: weight -> checksum of what was read of the source for it.
    """

    damaged: Mapping[str, str]
    touched: tuple[str, ...]
    crc32: Mapping[str, int]
    sides: Mapping[str, int]
    moved: tuple[str, ...]
    sources: Mapping[str, str]

    @property
    def is_right(self) -> bool:
        """Nothing shows that a file of it or of its source changed since."""
        return not (self.damaged or self.touched or self.moved)


def meet(
    folder: Place,
    own: str,
    manifest: Mapping[str, Any],
    layouts: Mapping[str, FileLayout],
    planned: Collection[str],
    now: Fingerprint,
) -> Finished | str:
    """own: the manifest's name. planned: every file of the conversion. Text: why the manifest is not believed."""
    files: Mapping[str, Mapping[str, Any]] = manifest["files"]
    if set(files) != set(planned) - {own}:
        return "lists other files than this conversion makes"
    try:
        crc32 = {key: int(entry["crc32"], 16) for key, entry in manifest["tensors"].items()}
        sides = {name: int(entry["crc32"], 16) for name, entry in files.items() if name not in layouts}
        sizes = {name: layouts[name].size if name in layouts else int(entry["size"]) for name, entry in files.items()}
        versions = {name: [entry[1]] for name, entry in manifest["source"]["files"].items()}
        sources = {str(weight): str(sums) for weight, sums in manifest["source"]["checksums"].items()}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return "is not laid out as a manifest of this tool"
    if any(key not in crc32 for layout in layouts.values() for key in layout.offsets):
        return "lists other tensors than this conversion makes"
    published = folder.standing(own)
    time = published.mark if published else 0
    damaged, touched = {}, []
    for name, size in sizes.items():
        there = folder.standing(name)
        reason = wrong_at_sight(folder, name, there, size, layouts.get(name))
        if reason:
            damaged[name] = reason
        elif there is not None and there.mark != files[name].get(VERSION, time):
            touched.append(name)
    return Finished(damaged, tuple(touched), crc32, sides, now.moved(versions, 1), sources)


def wrong_at_sight(folder: Place, name: str, there: Standing | None, size: int, layout: FileLayout | None) -> str:
    """What size and header tell of a file under its final name; empty: nothing is wrong with these."""
    if there is None:
        return "is missing"
    try:
        length, header = folder.begins(name, len(layout.header) if layout is not None else 0)
    except OSError as error:
        return f"cannot be opened ({error.strerror})"
    except CheckpointError as error:
        return f"cannot be opened ({'; '.join(error.problems)})"
    if length != size:
        return f"has {length} bytes instead of {size}"
    return "has another header" if layout is not None and header != layout.header else ""
