"""Outputs that are opened for a run: locked, and looked at again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from .. import system
from ..errors import ConversionError, shown
from ..folder import Folder, make_folder
from ..output.destination import Destination
from ..planning.plan import OutputPlan, Plan
from .output_run import OutputRun
from .remote_run import RemoteRun


def output_run(plan: Plan, output: OutputPlan, folder: Folder, resume: bool) -> OutputRun:
    """folder: locked. Looks at what stands in the output first. PlanError."""
    output = replace(output, state=output.current_state())
    if output.destination.location is None:
        return OutputRun(output, folder, resume)
    return RemoteRun(output, folder, resume, plan.resources.upload_memory // len(plan.outputs))


@contextmanager
def locked(output: Destination) -> Iterator[Folder]:
    """One process at a time writes to an output folder; the lock dies with its owner and leaves no file.

    To an output elsewhere: one of this machine, and its state is gone when it is empty.
    """
    with make_folder(output.folder) as folder:
        try:
            # where folders cannot be locked, two runs at once are the user's to avoid
            system.lock(folder.fileno())
        except BlockingIOError:
            raise ConversionError(
                f"{shown(output)}: another conversion is writing there; wait for it or stop it"
            ) from None
        except OSError:  # folders cannot even be held open here
            pass
        yield folder
        if output.location is not None:
            with suppress(OSError):
                output.folder.rmdir()
