"""One output of a run that lies elsewhere: staged as any, sent part by part, and published by completing its uploads.

1. Nothing of it can be seen until all is sent and proved to be right.
2. The journal says, durably, which files are being published.
3. The manifests of conversions that give way go.
4. Every upload is completed, every side file put. What else gives way goes.
5. The manifest is put, with the version that the store gave each file; then the state of the output goes.

A rerun after a stop anywhere goes on by the journal, by the book of uploads and by what the store says.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from .. import system
from ..api.writers import PartWriter, UploadGone
from ..errors import ConversionError, shown
from ..folder import Folder
from ..output import upload_book
from ..output.manifest import SUFFIX, dump, manifest_name
from ..output.parts import part_bytes
from ..output.place import RemotePlace
from ..output.staging import Staging
from ..output.upload_book import Sent, UploadBook
from ..planning.jobs import Export, Job
from ..planning.pending import AT_ONCE
from ..planning.plan import OutputPlan, Plan
from ..sizes import format_bytes
from .output_run import OutputRun
from .publish import content, stage_side_files
from .uploader import Uploader


class RemoteRun(OutputRun):
    place: RemotePlace

    def __init__(self, plan: OutputPlan, folder: Folder, resume: bool, memory: int) -> None:
        """folder: the state of the output, locked. memory: bytes that parts under way may take."""
        super().__init__(plan, folder, resume)
        writer = plan.destination.writer
        assert writer is not None
        self.writer = writer
        self.staging = Staging(folder, plan.name, plan.file_layouts, sparse=plan.destination.takes_parts)
        self.memory = memory
        self.book: UploadBook | None = None
        self.uploader: Uploader | None = None

    def compare(self) -> None:
        self._open_book()
        super().compare()

    def _compare_sources(self) -> None:
        """Parts that were sent cannot be made again one by one."""
        super()._compare_sources()
        if self.claims.stale:
            self.begun = None

    def _open_book(self) -> UploadBook:
        if self.book is None:
            self.staging.make()
            # what another conversion has left there goes
            told, own = upload_book.read(self.staging.folder), (str(self.place), self.plan.fingerprint.value)
            if told is not None and (told.url, told.fingerprint) != own:
                self._abort(told.files)
            self.book = UploadBook(self.staging.folder, str(self.place), self.plan.fingerprint.value)
        return self.book

    def _is_right(self, name: str) -> bool:
        """What has the version that it got when it was published need not be read."""
        return self._has_its_version(name) or super()._is_right(name)

    def _has_its_version(self, name: str) -> bool:
        there, known = self.place.standing(name), self._open_book().files.get(name)
        return there is not None and known is not None and bool(known.version) and known.version == there.mark

    def begin(self) -> None:
        book = self._open_book()
        self._abort({name: sent for name, sent in book.files.items() if self.begun is None or sent.unnoted})
        if self.begun is None:
            self._forget(book)
        self._complete_what_was_begun(book)
        for name in book.files.keys() - self.standing:
            if book.files[name].version:  # published once, and not what lies there now
                book.forgotten(name)
        super().begin()
        self._check_disk()
        if isinstance(self.writer, PartWriter):
            layouts = {name: layout for name, layout in self.plan.file_layouts.items() if name not in self.standing}
            most = max((part_bytes(layout.size, self.writer) for layout in layouts.values()), default=1)
            at_once = min(AT_ONCE, max(1, self.memory // (2 * most)))  # the library that sends has a copy
            sizes = self.plan.tensor_sizes
            self.uploader = Uploader(self.place, self.writer, book, self.staging.files, layouts, sizes, at_once)
            self.uploader.start()
            self._note(self.crc32)

    def _check_disk(self) -> None:
        """Where the room of what is sent cannot be given back, all of the output needs it."""
        if not self.staging.sparse or self._gives_room_back():
            return
        needed, free = sum(self.plan.files.values()), shutil.disk_usage(self.folder.path).free
        if needed > free:
            raise ConversionError(
                f"{shown(self.folder.path)}: the file system cannot give back the room of what is sent, so all of the "
                f"output needs it: {format_bytes(needed)}, and {format_bytes(free)} are free; choose another "
                "output.state_folder"
            )

    def _gives_room_back(self) -> bool:
        fd = self.staging.folder.create_file("probe")
        try:
            os.ftruncate(fd, 1 << 16)
            return system.punch(fd, 0, 1 << 16)
        finally:
            os.close(fd)
            self.staging.folder.remove("probe")

    def _forget(self, book: UploadBook) -> None:
        for name in list(book.files):
            book.forgotten(name)

    def _abort(self, files: Mapping[str, Sent]) -> None:
        """Away with these uploads in the store, and with what was begun for these files and never noted."""
        if not isinstance(self.writer, PartWriter):
            return
        ids = {(self.place.text(name), sent.id) for name, sent in files.items() if sent.id}
        if unnoted := {self.place.text(name) for name, sent in files.items() if sent.unnoted}:
            pending = self.place.asked(partial(self.writer.uploads, str(self.place)))
            ids |= {(upload.url, upload.id) for upload in pending if upload.url in unnoted}
        for url, id in sorted(ids):
            self.place.asked(partial(self.writer.abort, url, id))

    def _complete_what_was_begun(self, book: UploadBook) -> None:
        """Files that an earlier run was completing when it was stopped: those that are there, whole, stay."""
        writer = self.writer
        if self.begun is None or not isinstance(writer, PartWriter):
            return
        for name in sorted((self.begun.publishes & self.plan.file_layouts.keys()) - self.standing):
            known = book.files.get(name)
            if known is None or not known.id or self.place.standing(name) is None:
                continue
            url, versions = self.place.text(name), {number: part.version for number, part in known.parts.items()}
            try:
                self.place.asked(partial(writer.parts, url, known.id))
            except UploadGone:
                with suppress(UploadGone):
                    book.published(name, self.place.asked(partial(writer.complete, url, known.id, versions)))
                    self.standing |= {name}

    def staged_checksum(self, file: str, key: str, at: int, nbytes: int) -> int:
        if self.uploader is None:
            return super().staged_checksum(file, key, at, nbytes)
        return self.uploader.staged_checksum(file, key)

    def has(self, job: Job, export: Export) -> bool:
        found = super().has(job, export)
        if found:
            self._note(tensor.key for tensor in export.tensors)
        return found

    def done(self, job: Job, export: Export, crc32: Mapping[str, int], source: str) -> None:
        super().done(job, export, crc32, source)
        self._note(tensor.key for tensor in export.tensors)

    def _note(self, keys: Iterable[str]) -> None:
        if self.uploader is None:
            return
        files: dict[str, list[str]] = {}
        for key in keys:
            files.setdefault(self.plan.weight_map[key], []).append(key)
        for name, several in files.items():
            if name not in self.standing:
                self.uploader.staged(name, several)

    def publish(self, plan: Plan) -> None:
        if self.uploader is not None:
            self.uploader.finish()
            self.uploader.prove(self.crc32)
        side, stay = stage_side_files(self.plan, self.staging, self.standing)
        manifest = manifest_name(self.plan.name)
        names = [*self.plan.file_layouts, *side]
        replaces = set(self.plan.state.replaces)
        self.journal.publishing([*names, manifest], replaces)
        self._delete(name for name in sorted(replaces) if name.endswith(SUFFIX))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            sent = dict(pool.map(self._published_now, (name for name in names if name not in stay)))
        self._delete(sorted(replaces - {*names, manifest}))
        versions = self._check(names, sent)
        self.staging.put(manifest, dump(content(plan, self.plan, self.crc32, self.sources, side, versions)))
        self._put(manifest)
        self.staging.remove()

    def _published_now(self, name: str) -> tuple[str, str]:
        if self.uploader is not None and name in self.uploader.files:
            version = self.uploader.complete(name)
        else:
            version = self._put(name)
        self._open_book().published(name, version)
        self.staging.files.remove(name)
        return name, version

    def _put(self, name: str) -> str:
        path = str(Path(self.staging.files.path, name))
        return self.place.asked(partial(self.writer.put, self.place.text(name), path))

    def _delete(self, names: Iterable[str]) -> None:
        for name in names:
            self.place.asked(partial(self.writer.delete, self.place.text(name)))

    def _check(self, names: Iterable[str], sent: Mapping[str, str]) -> dict[str, str]:
        """The version of every file, as the store lists it now. ConversionError if one is not what was put there."""
        place = RemotePlace(self.place.location, self.writer)
        sizes = {**self.plan.files, **self.plan.side_sizes}
        versions = {}
        for name in names:
            there = place.standing(name)
            if there is None or there.size != sizes[name] or there.mark != sent.get(name, there.mark):
                raise ConversionError(
                    f"{shown(place.text(name))}: is not what was put there a moment ago; does somebody else write "
                    "there? run the same command again when that is over"
                )
            versions[name] = str(there.mark)
        return versions

    def wake(self) -> None:
        if self.uploader is not None:
            self.uploader.stop()

    def tidy(self) -> None:
        self._abort(self._open_book().files)
        self.staging.remove()

    def close(self) -> None:
        if self.uploader is not None:
            self.uploader.close()
        if self.book is not None:
            self.book.close()
        super().close()
