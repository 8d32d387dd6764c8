"""One output of a run: its lock, staging folder, journal and checksums."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from ..api.tensors import raw
from ..output import journal as journals
from ..output import state as output_folder
from ..output.journal import Journal
from ..output.staging import StagedFile, Staging
from ..planning.jobs import Export, Job
from ..planning.plan import OutputPlan, Plan
from .publish import publish


class OutputRun:
    """``crc32``: of every tensor that is done, by key. Any number of threads may check and finish jobs."""

    def __init__(self, plan: OutputPlan, resume: bool) -> None:
        self.plan = plan
        self.crc32: dict[str, int] = {}
        folder = output_folder.staging_folder(plan.path, plan.name)
        self.staging = Staging(folder, plan.file_layouts, plan.weight_map)
        begun = journals.read(folder) if resume else None
        self.begun = begun if begun is not None and begun.fingerprint == plan.fingerprint.value else None
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Reserve the disk space, and write what the target adds."""
        plan, folder = self.plan, self.staging.folder
        folder.mkdir(exist_ok=True)
        if self.begun is None:
            self.journal = Journal.begin(folder, plan.fingerprint, plan.state.replaces)
            self.staging.clear()
        else:
            self.journal = Journal(folder)
        self.staging.reserve((*(self.begun.publishes if self.begun else ()), *plan.state.intact))
        for key, tensor in plan.constants.items():
            if key in plan.state.crc32:
                self.crc32[key] = plan.state.crc32[key]
                continue
            with self.staging.open(plan.weight_map[key]) as file:
                file.write(key, 0, raw(tensor.contiguous()))
                self.crc32.update(file.crc32)

    def has(self, job: Job, export: Export) -> bool:
        """Whether an earlier run has done this: the bytes are what its journal or manifest says. Notes checksums."""
        claim = self.begun.done.get(job.info.name) if self.begun else self._published(export)
        if claim is None or set(claim) != {tensor.key for tensor in export.tensors}:
            return False
        for tensor in export.tensors:
            file = self.plan.weight_map[tensor.key]
            if self.staging.checksum(file, tensor.key, tensor.spec.nbytes) != claim[tensor.key]:
                return False
        with self._lock:
            self.crc32.update(claim)
        return True

    def _published(self, export: Export) -> Mapping[str, int] | None:
        """The checksums of tensors in undamaged files of a finished output."""
        found = self.plan.state.crc32
        return {key: found[key] for tensor in export.tensors if (key := tensor.key) in found}

    def open(self, export: Export) -> StagedFile:
        return self.staging.open(self.plan.weight_map[export.tensors[0].key])

    def done(self, job: Job, export: Export, crc32: Mapping[str, int]) -> None:
        sums = {tensor.key: crc32.get(tensor.key, 0) for tensor in export.tensors}
        self.journal.done(job.info.name, sums)
        with self._lock:
            self.crc32.update(sums)

    def publish(self, plan: Plan) -> None:
        publish(plan, self.plan, self.staging, self.journal, self.crc32)

    def close(self) -> None:
        if hasattr(self, "journal"):
            self.journal.close()
