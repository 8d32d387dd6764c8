"""One output of a run: its staging folder, journal and checksums, and what of it is done already."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from ..api.tensors import raw
from ..containers.index import some
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
from .source_claims import SourceClaims


class OutputRun:
    """``crc32``: of every tensor that is done, by key. Any number of threads may check and finish jobs.

    claims: what finished weights were made of. standing: files that are right under their final names; they are kept.
    changed: files of the finished output that turned out to be others than were published, by their checksums.
    """

    def __init__(self, plan: OutputPlan, folder: Folder, resume: bool) -> None:
        """folder: the output's, locked."""
        self.plan = plan
        self.folder = folder
        self.place = plan.destination.place(folder)
        self.crc32: dict[str, int] = {}
        self.staging = Staging(folder, plan.name, plan.file_layouts)
        unfinished = look_for_unfinished(folder, plan.name)
        resumes = unfinished.begun is not None and unfinished.begun.resumes(plan.fingerprint)
        self.begun = unfinished.begun if resume and resumes else None
        self._publishes = unfinished.publishes if resumes else frozenset()
        self._staged = unfinished.files
        self.claims = SourceClaims(plan, self.begun)
        self.sources: dict[str, str] = {}
        self.changed: tuple[str, ...] = ()
        self.standing: frozenset[str] = frozenset()
        self._claims: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def is_done(self) -> bool:
        finished = self.plan.state.finished
        return finished is not None and not finished.damaged and not self.changed

    @property
    def warnings(self) -> tuple[str, ...]:
        path = shown(self.place)
        changed = (f"{path}: {shown(name)} was changed since the conversion; made again" for name in self.changed)
        stale = some(sorted(self.claims.stale), 10)
        return (*changed, *([f"{path}: the source of {stale} is another than it was; made again"] if stale else []))

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
        """Read what stands under final names already and may not be what it should; sets ``standing``, ``changed``.

        Before, ``claims.found`` has the checksums of all suspects.
        """
        self._compare_sources()
        self._claims = self._claimed()
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

    def _compare_sources(self) -> None:
        """What is finished is of another conversion if its source was another; of what is not, the rest is kept."""
        finished = self.plan.state.finished
        if finished is not None and (others := self.claims.others(finished)):
            self._replace_another(others)
        if self.begun is not None:
            kept = self.claims.kept(self.begun)
            self._check_half_published({key for name in self.claims.stale for key in self.begun.done[name]})
            self.begun = kept

    def _check_half_published(self, stale: Collection[str]) -> None:
        """What stands under a final name is of another conversion if its source was another."""
        files = {self.plan.weight_map[key] for key in stale if key in self.plan.weight_map} & self._publishes
        files = {name for name in files - self._staged if self.place.standing(name) is not None}
        if files and not self.plan.recipe.output.overwrite:
            raise PlanError(
                f"{shown(self.place)}: an interrupted run of another source with the same headers published "
                f"{some(sorted(files))}; set output.overwrite: true to replace that, or choose another output.path"
            )

    def _replace_another(self, others: Sequence[str]) -> None:
        if not self.plan.recipe.output.overwrite:
            raise PlanError(
                f"{shown(self.place)}: holds this conversion of another source with the same headers: "
                f"{some(others)} differ; set output.overwrite: true to replace it, or choose another output.path"
            )
        self.plan = replace(self.plan, state=self.plan.current_state(other_source=True))

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
            if self.claims.moved:
                self.journal.compared(plan.fingerprint.identity, self.claims.stale)
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
        name = job.info.name
        claims = self.begun.done.get(name, {}) if self.begun else {}
        source = self.begun.sources.get(name, "") if self.begun else ""
        found = {}
        for tensor in export.tensors:
            file, key = self.plan.weight_map[tensor.key], tensor.key
            if file in self.standing:
                found[key] = self._claims[key]
                source = self._standing_source(name)
                continue
            at = self.plan.file_layouts[file].offsets[key]
            if key not in claims or self.staged_checksum(file, key, at, tensor.spec.nbytes) != claims[key]:
                return False
            found[key] = claims[key]
        with self._lock:
            self.crc32.update(found)
            self.sources[name] = source
        return True

    def _standing_source(self, weight: str) -> str:
        """The checksum of the source of a weight in a file that stays."""
        finished = self.plan.state.finished
        sources = finished.sources if finished is not None else self.begun.sources if self.begun else {}
        return sources.get(weight, "")

    def staged_checksum(self, file: str, key: str, at: int, nbytes: int) -> int:
        """crc32 of a tensor's bytes in its staged file; -1 if they cannot be read."""
        return checksum(self.staging.files, file, at, nbytes)

    def open(self, export: Export) -> StagedFile:
        return self.staging.open(self.plan.weight_map[export.tensors[0].key])

    def done(self, job: Job, export: Export, crc32: Mapping[str, int], source: str) -> None:
        """source: the checksum of what was read for it."""
        sums = {tensor.key: crc32.get(tensor.key, 0) for tensor in export.tensors}
        self.journal.done(job.info.name, sums, source)
        with self._lock:
            self.crc32.update(sums)
            self.sources[job.info.name] = source

    def publish(self, plan: Plan) -> None:
        publish(plan, self.plan, self.staging, self.journal, self.crc32, self.sources, self.standing)

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
