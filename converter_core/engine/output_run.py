"""One output of a run: its staging folder, journal and checksums, and what of it is done already."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from ..api.tensors import raw
from ..errors import PlanError, shown
from ..folder import Folder
from ..output.finished import wrong_at_sight
from ..output.journal import Begun, Journal
from ..output.manifest import manifest_name
from ..output.staging import StagedFile, Staging, checksum
from ..output.unfinished import look_for_unfinished
from ..planning.jobs import Export, Job
from ..planning.plan import OutputPlan, Plan
from .publish import publish


class OutputRun:
    """``crc32``: of every tensor that is done, by key. Any number of threads may check and finish jobs.

    standing: files that are right under their final names; they are kept. changed: files of the finished output that
    turned out to be others than were published, by their checksums.
    """

    def __init__(self, plan: OutputPlan, folder: Folder, resume: bool) -> None:
        """folder: the output's, locked."""
        self.plan = plan
        self.folder = folder
        self.place = plan.destination.place(folder)
        self.crc32: dict[str, int] = {}
        self.staging = Staging(folder, plan.name, plan.file_layouts)
        unfinished = look_for_unfinished(folder, plan.name)
        same = unfinished.begun is not None and unfinished.begun.fingerprint == plan.fingerprint.value
        resumes = unfinished.begun is not None and unfinished.begun.resumes(plan.fingerprint)
        self.begun = unfinished.begun if resume and resumes else None
        self._publishes = unfinished.publishes if same else frozenset()
        self._staged = unfinished.files
        self._claims = self._claimed()
        self.changed: tuple[str, ...] = ()
        self.standing: frozenset[str] = frozenset()
        self._lock = threading.Lock()

    @property
    def is_done(self) -> bool:
        finished = self.plan.state.finished
        return finished is not None and not finished.damaged and not self.changed

    @property
    def warnings(self) -> tuple[str, ...]:
        path = shown(self.place)
        return tuple(f"{path}: {shown(name)} was changed since the conversion; made again" for name in self.changed)

    def _claimed(self) -> dict[str, int]:
        """The checksums of tensors under final names, by the manifest or else by the journal."""
        if self.plan.state.finished is not None:
            return dict(self.plan.state.finished.crc32)
        if self.begun is None:
            return {}
        claims = {key: crc32 for sums in self.begun.done.values() for key, crc32 in sums.items()}
        return claims | {key: zlib.crc32(data) for key, data in self._constants()}

    def _constants(self) -> Iterator[tuple[str, memoryview]]:
        for key, tensor in self.plan.constants.items():
            held = tensor.contiguous()  # its bytes are only there as long as it is
            yield key, raw(held)

    def compare(self) -> None:
        """Read what stands under final names already and may not be what it should; sets ``standing``, ``changed``."""
        finished = self.plan.state.finished
        if finished is None:
            self.standing = frozenset(self._right(self._published()))
            return
        listed = {*self.plan.published} - {manifest_name(self.plan.name)} - finished.damaged.keys()
        # where one file is damaged the others are not believed by their times
        suspects = listed if finished.damaged else set(finished.touched)
        right = set(self._right(suspects))
        self.changed = tuple(sorted(suspects - right))
        self.standing = frozenset(listed - suspects | right)

    def _published(self) -> list[str]:
        """Weight files that an interrupted run of this conversion gave their final names."""
        published, foreign = [], []
        for name in sorted((self.begun.publishes if self.begun else frozenset()) - self._staged):
            layout, there = self.plan.file_layouts.get(name), self.place.standing(name)
            if layout is None or there is None:
                continue
            if wrong_at_sight(self.place, name, there, layout.size, layout):
                foreign.append(name)
            else:
                published.append(name)
        if foreign and not self.plan.recipe.output.overwrite:
            path = shown(self.place.text(foreign[0]))
            raise PlanError(
                f"{path}: is not what the interrupted run published there; move it away, or set output.overwrite: true"
            )
        return published

    def _right(self, names: Iterable[str]) -> Iterable[str]:
        """Those whose bytes have the checksums that are claimed."""
        names = sorted(names)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(self._is_right, names))
        return [name for name, right in zip(names, found, strict=True) if right]

    def _is_right(self, name: str) -> bool:
        layout = self.plan.file_layouts.get(name)
        if layout is None:
            finished = self.plan.state.finished
            return finished is not None and self.place.checksum(name, 0, None) == finished.sides.get(name)
        sizes = self.plan.tensor_sizes
        return all(
            key in self._claims and self.place.checksum(name, at, sizes[key]) == self._claims[key]
            for key, at in layout.offsets.items()
        )

    def begin(self) -> None:
        """Reserve the disk space, and write what the target adds."""
        plan, staging = self.plan, self.staging
        staging.make()
        if self.begun is None:
            replaces, orphans = frozenset(plan.state.replaces), frozenset(plan.state.orphans)
            mark = plan.fingerprint
            begun = Begun(mark.value, mark.made_of, replaces, orphans, {}, self._publishes, mark.identity)
            self.journal = Journal.begin(staging.folder, begun)
            staging.clear()
        else:
            self.journal = Journal(staging.folder)
        staging.prepare(self.standing)
        for key, data in self._constants():
            if plan.weight_map[key] in self.standing:
                self.crc32[key] = self._claims[key]
                continue
            with staging.open(plan.weight_map[key]) as file:
                file.write(key, 0, data)
                self.crc32.update(file.crc32)

    def has(self, job: Job, export: Export) -> bool:
        """Whether an earlier run has done this: the bytes are what journal or manifest say. Notes their checksums."""
        claims = self.begun.done.get(job.info.name, {}) if self.begun else {}
        found = {}
        for tensor in export.tensors:
            file, key = self.plan.weight_map[tensor.key], tensor.key
            if file in self.standing:
                found[key] = self._claims[key]
                continue
            at = self.plan.file_layouts[file].offsets[key]
            if key not in claims or self.staged_checksum(file, key, at, tensor.spec.nbytes) != claims[key]:
                return False
            found[key] = claims[key]
        with self._lock:
            self.crc32.update(found)
        return True

    def staged_checksum(self, file: str, key: str, at: int, nbytes: int) -> int:
        """crc32 of a tensor's bytes in its staged file; -1 if they cannot be read."""
        return checksum(self.staging.files, file, at, nbytes)

    def open(self, export: Export) -> StagedFile:
        return self.staging.open(self.plan.weight_map[export.tensors[0].key])

    def done(self, job: Job, export: Export, crc32: Mapping[str, int]) -> None:
        sums = {tensor.key: crc32.get(tensor.key, 0) for tensor in export.tensors}
        self.journal.done(job.info.name, sums)
        with self._lock:
            self.crc32.update(sums)

    def publish(self, plan: Plan) -> None:
        publish(plan, self.plan, self.staging, self.journal, self.crc32, self.standing)

    def wake(self) -> None:
        """The run is over: let everyone through who waits here."""

    def tidy(self) -> None:
        """Away with what a finished output needs no longer."""
        if self.plan.state.leftover:
            self.staging.make()
            self.staging.remove()

    def close(self) -> None:
        if hasattr(self, "journal"):
            self.journal.close()
        self.staging.close()
