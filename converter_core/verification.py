"""Check an output: its files against the manifest, and its weights, as the runtime sees them, against their source."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from .errors import CheckpointError, shown
from .faults import of_plugins
from .memory import keep_freed_memory
from .registry import Registry, load_plugins
from .team import Progress
from .verification_files import Output
from .verification_report import Copied, Problem, Structure, Verification, WeightReport, Worst
from .verification_run import Run
from .verification_structure import (
    Expected,
    find_manifest,
    open_by_manifest,
    open_without_manifest,
    read_manifest,
)
from .verification_subject import Subject

__all__ = ["Copied", "Problem", "Structure", "Verification", "WeightReport", "Worst", "verify"]


def verify(
    output: str | os.PathLike[str],
    against: str | os.PathLike[str] | None = None,
    *,
    registry: Registry | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Verification:
    """What is wrong with an output; ``report.ok`` if nothing is. Nothing is written.

    output: a folder, one of its files, or a manifest. Every file, name, dtype, shape and checksum is compared with the
    manifest, and every quantized weight is read as the runtime reads it. against: the checkpoint it was made of; then
    each weight's error is measured, and what was copied must equal its source. progress: called from this thread.
    Raises VerificationError if it is not clear what to check; what is found to be wrong is in the report.
    """
    started = time.monotonic()
    path = Path(output)
    registry = registry or load_plugins()
    manifest = find_manifest(path)
    empty = Verification(
        str(output), str(manifest) if manifest else None, str(against) if against is not None else None
    )
    keep_freed_memory()
    with ExitStack() as stack:
        try:
            expected = read_manifest(manifest) if manifest else None
            opened = stack.enter_context(_open(path, manifest, expected, registry))
        except CheckpointError as error:
            file = manifest.name if manifest else path.name
            prefix = f"{shown(manifest or path)}: "
            problems = tuple(Problem(file, "", problem.removeprefix(prefix)) for problem in error.problems)
            return replace(empty, problems=problems, seconds=time.monotonic() - started)
        stack.enter_context(of_plugins(registry))
        subject = Subject(opened, expected, registry)
        source = subject.open_source(against, stack) if against is not None else None
        found = Run(subject, source, progress).run()
    return replace(
        found,
        output=empty.output,
        manifest=empty.manifest,
        against=empty.against,
        seconds=round(time.monotonic() - started, 3),
    )


def _open(path: Path, manifest: Path | None, expected: Expected | None, registry: Registry) -> Output:
    if manifest is None or expected is None:
        return open_without_manifest(path)
    name = str(expected.content.get("target"))
    return open_by_manifest(manifest.parent, expected, registry.targets[name].container)
