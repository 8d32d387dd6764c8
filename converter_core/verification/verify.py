"""Check an output: its files against the manifest, and its weights, as the runtime sees them, against their source."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from ..engine.worker_pool import Progress
from ..errors import CheckpointError, VerificationError, shown
from ..plugins.attribution import attribute_errors
from ..plugins.registry import Registry, load_plugins
from ..storage.location import Location, locate
from .beside import look_beside
from .expected import Expected, find_manifest, read_manifest
from .files import Output
from .folders import source_in
from .held_out import HeldOut
from .opened import OpenedOutput
from .result import Copied, Problem, Structure, Verification, WeightReport, Worst
from .runner import Run
from .structure import open_by_manifest, open_without_manifest

__all__ = ["Copied", "Problem", "Structure", "Verification", "WeightReport", "Worst", "verify"]


def verify(
    output: str | os.PathLike[str],
    against: str | os.PathLike[str] | None = None,
    *,
    calibration: str | os.PathLike[str] | None = None,
    registry: Registry | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Verification:
    """What is wrong with an output, as a report. Nothing is written.

    ``report.status`` is ``ok`` if everything that the manifest lists is there and right and no unfinished conversion of
    that name lies beside; without a manifest it is ``structure only``, or ``ok`` where all of it equals its source.

    output: a folder, one of its files, or a manifest. Every file, name, dtype, shape and checksum is compared with the
    manifest, and every quantized weight is read as the runtime reads it. against: the checkpoint it was made of, or the
    folder of several models that holds it; then each weight's error is measured, and what was copied must equal its
    source. calibration: a file of activation statistics; then the error of each layer's outputs is measured as well,
    for its held-out tokens. progress: called from this thread.
    Raises VerificationError if it is not clear what to check; what is found to be wrong is in the report.
    """
    started = time.monotonic()
    registry = registry or load_plugins()
    path = locate(output, registry.storages)
    manifest = find_manifest(path)
    empty = Verification(
        str(output), str(manifest) if manifest else None, str(against) if against is not None else None
    )
    with ExitStack() as stack:
        try:
            expected = read_manifest(manifest) if manifest else None
            files = stack.enter_context(_open(path, manifest, expected, registry))
        except CheckpointError as error:
            file = manifest.name if manifest else path.name
            prefix = f"{shown(manifest or path)}: "
            problems = tuple(Problem(file, "", problem.removeprefix(prefix)) for problem in error.problems)
            return replace(empty, problems=problems, seconds=time.monotonic() - started)
        stack.enter_context(attribute_errors(registry))
        opened = OpenedOutput(files, expected, registry)
        source = None
        if against is not None:
            component = source_in(against, expected.recipe if expected is not None else {}, registry)
            source = opened.open_source(component, stack)
            empty = replace(empty, against=str(component))
        held_out = None
        if calibration is not None:
            if source is None:
                raise VerificationError("calibration measures outputs against those of the source; give against too")
            held_out = HeldOut(Path(calibration), source.adapter, registry, stack)
        found = Run(opened, source, progress, held_out).run()
    return replace(
        found,
        output=empty.output,
        manifest=empty.manifest,
        against=empty.against,
        finished=datetime.now(timezone.utc).isoformat(" ", "seconds"),
        seconds=round(time.monotonic() - started, 3),
    )


def _open(path: Location, manifest: Location | None, expected: Expected | None, registry: Registry) -> Output:
    if manifest is None or expected is None:
        output = open_without_manifest(path, registry)
        suffixes = {suffix for file in output.files.values() for suffix in file.container.suffixes}
    else:
        name = expected.container or registry.containers.default()
        output = open_by_manifest(manifest.parent, expected, registry.containers[name]())
        suffixes = set(registry.containers[name].suffixes)
    look_beside(output, manifest, suffixes)
    return output
