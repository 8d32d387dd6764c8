"""Sends parts of staged files while others are still made, and gives their room on the disk back.

A part is sent when all that lies in it is journalled. It is read from the staged file, so that memory holds only the
parts under way; what of it belongs to which tensor is summed up on the way, and before a file is completed the sums of
its parts must give the checksum of every tensor again.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from .. import system
from ..api.values import FileLayout
from ..api.writers import PartWriter, UploadGone
from ..errors import ConversionError, shown
from ..folder import Folder
from ..output.parts import HEADER, Parts, part_bytes
from ..output.place import RemotePlace, asked
from ..output.sent import checksum_of
from ..output.upload_book import SentPart, UploadBook
from ..planning.pending import WAITING

T = TypeVar("T")


class UploadLost(Exception):
    """What was sent of a file cannot be gone on with; the run is begun again, and makes what is missing."""


class _Over(BaseException):
    """The run ends; nothing more is sent."""


class _File:
    """missing: pieces of each part that are not staged yet. staged: keys that are."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.missing = {number: len(pieces) for number, pieces in parts.pieces.items()}
        self.staged: set[str] = set()
        self.opening = threading.Lock()


class Uploader:
    def __init__(
        self,
        place: RemotePlace,
        writer: PartWriter,
        book: UploadBook,
        staged: Folder,
        layouts: Mapping[str, FileLayout],
        sizes: Mapping[str, int],
        at_once: int,
    ) -> None:
        """staged: the folder of the staged files. layouts: of those that are to be sent. at_once: parts."""
        self.place = place
        self.writer = writer
        self.book = book
        self.staged_files = staged
        self.files = {
            name: _File(Parts(layout, sizes, part_bytes(layout.size, writer))) for name, layout in layouts.items()
        }
        self._header = {name: zlib.crc32(layout.header) for name, layout in layouts.items()}
        self._room = threading.Condition()
        self._ready = 0
        self._most_ready = WAITING * at_once
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(at_once, "upload")
        self._futures: list[Future[None]] = []

    def start(self) -> None:
        """Take over what an earlier run has sent, as far as the store has it too. The headers are staged."""
        for name, file in self.files.items():
            self._confirm(name)
            empty = [number for number, pieces in file.parts.pieces.items() if not pieces]
            self._submit(name, [number for number in empty if not self._is_sent(name, number)])
            self.staged(name, [HEADER])

    def _confirm(self, name: str) -> bool:
        """Whether the store has all that the book says was sent; what it has not is struck out."""
        known, parts = self.book.files.get(name), self.files[name].parts
        if known is None or not known.id:
            return True
        if known.part != parts.part:
            self.forget(name)
            return False
        try:
            there = self._asked(name, lambda: self.writer.parts(self._url(name), known.id))
        except UploadGone:
            self.book.forgotten(name)
            return False
        lost = []
        for number, sent in known.parts.items():
            start, stop = parts.span(number)
            found = there.get(number)
            if found is None or (found.version, found.size) != (sent.version, stop - start):
                lost.append(number)
        for number in lost:
            self.book.dropped(name, number)
        return not lost

    def forget(self, name: str) -> None:
        """Away with an upload, here and in the store."""
        known = self.book.files.get(name)
        if known is not None and known.id:
            self._asked(name, lambda: self.writer.abort(self._url(name), known.id))
        self.book.forgotten(name)

    def staged_checksum(self, name: str, key: str) -> int:
        """crc32 of a tensor, of what is staged and of what was sent; -1 if it cannot be read."""
        return checksum_of(self.files[name].parts, key, self.book.files.get(name), self.staged_files, name)

    def staged(self, name: str, keys: Collection[str]) -> None:
        """These tensors are journalled. Sends what is complete; waits while too much is ready and not sent."""
        file = self.files[name]
        again, ready = [], []
        with self._room:
            for key in keys:
                if key in file.staged:
                    continue
                file.staged.add(key)
                for number in file.parts.numbers(key):
                    file.missing[number] -= 1
                    if self._is_sent(name, number):
                        again.append(number)
                    elif not file.missing[number]:
                        ready.append(number)
        if again:
            self._punch(name, again)
        self._submit(name, ready)
        with self._room:
            self._room.wait_for(
                lambda: self._ready <= self._most_ready or self._failure is not None or self._stop.is_set()
            )
        self._raise()

    def _submit(self, name: str, numbers: Iterable[int]) -> None:
        for number in numbers:
            with self._room:
                self._ready += 1
            self._futures.append(self._pool.submit(self._send, name, number))

    def finish(self) -> None:
        """Wait until all is sent, and prove that it is right. UploadLost."""
        for future in self._futures:
            future.result()
        self._raise()
        for name, file in self.files.items():
            if unsent := [number for number in file.parts.pieces if not self._is_sent(name, number)]:
                raise AssertionError(f"{name}: parts {unsent[:5]} were never ready")

    def prove(self, crc32: Mapping[str, int]) -> None:
        """After ``finish``: the parts give the checksums of the tensors, and the store has them. UploadLost."""
        for name, file in self.files.items():
            whole = self._confirm(name)
            claims = {HEADER: self._header[name], **crc32}
            for key in file.parts.places:
                if whole and self.staged_checksum(name, key) != claims[key]:
                    for number in file.parts.numbers(key):
                        self.book.dropped(name, number)
                    whole = False
            if not whole:
                raise UploadLost(f"{shown(self._url(name))}: what was sent of it is not what is in the store")

    def complete(self, name: str) -> str:
        """Publish a file; its version. UploadLost."""
        known = self.book.files[name]
        versions = {number: part.version for number, part in known.parts.items()}
        try:
            return self._asked(name, lambda: self.writer.complete(self._url(name), known.id, versions))
        except UploadGone as error:
            self.forget(name)
            raise UploadLost(f"{shown(self._url(name))}: {error}") from None

    def stop(self) -> None:
        """Let everyone through who waits; what is not being sent yet is not sent."""
        with self._room:
            self._stop.set()
            self._room.notify_all()

    def close(self) -> None:
        self.stop()
        self._pool.shutdown(cancel_futures=True)

    def _is_sent(self, name: str, number: int) -> bool:
        known = self.book.files.get(name)
        return known is not None and number in known.parts

    def _url(self, name: str) -> str:
        return self.place.text(name)

    def _asked(self, name: str, ask: Callable[[], T]) -> T:
        return asked(self._url(name), ask)

    def _send(self, name: str, number: int) -> None:
        """What goes wrong stops the run."""
        try:
            if not self._stop.is_set() and self._failure is None:
                self._send_part(name, number)
        except _Over:
            pass
        except BaseException as error:
            self._failure = self._failure or error
        finally:
            with self._room:
                self._ready -= 1
                self._room.notify_all()

    def _send_part(self, name: str, number: int) -> None:
        id = self._upload(name)
        start, stop = self.files[name].parts.span(number)
        data = bytearray(stop - start)
        fd = self.staged_files.open_file(name)
        try:
            if system.read_at(fd, memoryview(data), start) < len(data):
                raise ConversionError(f"{shown(self.staged_files.path / name)}: was cut short; run again")
        finally:
            os.close(fd)
        view = memoryview(data)
        pieces = self.files[name].parts.pieces[number]
        crc32 = {one.key: zlib.crc32(view[one.at - start : one.at - start + one.nbytes]) for one in pieces}
        version = self._asked(name, lambda: self._ask(name, id, number, data))
        self.book.sent(name, number, SentPart(version, crc32))
        self._punch(name, [number])

    def _ask(self, name: str, id: str, number: int, data: bytearray) -> str:
        if self._stop.is_set():
            raise _Over
        return self.writer.send(self._url(name), id, number, data)

    def _upload(self, name: str) -> str:
        """The id of a file's upload, which is begun with its first part."""
        with self.files[name].opening:
            known = self.book.files.get(name)
            if known is None or not known.id:
                self.book.opening(name)
                id = self._asked(name, lambda: self.writer.begin(self._url(name)))
                self.book.begun(name, id, self.files[name].parts.part)
            return self.book.files[name].id

    def _punch(self, name: str, numbers: Collection[int]) -> None:
        fd = self.staged_files.open_file(name, os.O_RDWR)
        try:
            for number in numbers:
                start, stop = self.files[name].parts.span(number)
                system.punch(fd, start, stop - start)
        finally:
            os.close(fd)

    def _raise(self) -> None:
        failure = self._failure
        if isinstance(failure, UploadGone):
            raise UploadLost(str(failure)) from None
        if failure is not None:
            raise failure
