"""Publication is a transaction: everything is durable before it is announced, and announced before it is cleaned up.

1. Data, headers, sizes and names of all staged files are on the disk.
2. The journal says which files are being published, durably.
3. The manifests of conversions that give way go. From here to step 6 no manifest speaks for these files, so where a
   manifest stands all that it lists is there: that, and that each name holds an old or a new file, whole, is what a
   loader of the folder is promised. Between two names an old and a new file may stand side by side.
4. Every file gets its final name.
5. What else gives way goes.
6. The manifest gets its name, once all of the above is durable.
7. The staging folder goes, its journal last.

A rerun after a stop anywhere goes on by the journal; what stands under a final name is compared with it first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePosixPath

from ..errors import ConversionError, shown
from ..folder import Folder
from .journal import Journal
from .manifest import SUFFIX
from .staging import Staging


def publish(
    staging: Staging, journal: Journal, names: Sequence[str], standing: Collection[str], replaces: Iterable[str]
) -> None:
    """names: every file of the output, the manifest last. standing: those that are right under their final names.

    replaces: files of other conversions that give way.
    """
    output, files = staging.output, staging.files
    staged = [name for name in names if name not in standing]
    manifest = names[-1]
    now = time.time_ns()
    for name in staged:
        _settle(files, name, now)
    _sync_holders(files, staged)
    given = set(replaces)
    journal.publishing(names, given)

    for name in sorted(given):
        if name.endswith(SUFFIX):
            output.remove_file(name)
    output.sync()
    for name in staged[:-1]:
        files.rename(name, output, name)
    for name in standing:
        output.stamp(name, now)
    for name in sorted(given - set(names)):
        output.remove_file(name)
    _sync_holders(output, names)
    files.rename(manifest, output, manifest)
    output.sync()
    staging.remove()


def _settle(files: Folder, name: str, now: int) -> None:
    """On the disk, with the modification time that all files of the output share.

    What the disk refused once it may claim to have later, because the pages in memory look clean: such a file goes.
    """
    fd = files.open_file(name, os.O_RDWR)
    try:
        os.utime(fd, ns=(now, now))
        os.fsync(fd)
    except OSError as error:
        files.remove(name)
        raise ConversionError(
            f"{shown(files.path / name)}: the disk reports an error ({error.strerror}), so what was written there "
            "cannot be trusted and was removed; look after the disk, then run the same command again"
        ) from error
    finally:
        os.close(fd)


def _sync_holders(folder: Folder, names: Iterable[str]) -> None:
    """The names in every folder that holds one of these, and the names of these folders."""
    holders = {parent for name in names for parent in PurePosixPath(name).parents}
    for holder in sorted(holders, reverse=True):
        with folder.holder(str(holder / "x")) as (found, _):
            found.sync()
