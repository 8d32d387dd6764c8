"""The kit for storages that outputs can be written to."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from pathlib import Path

import pytest

from ..api.storages import Storage
from ..api.writers import PartWriter, StoredFile, UploadGone, Writer


class WriterConformance(ABC):
    """Subclass it with ``storage = MyStorage()`` and ``folder``, which returns the URL of an empty folder."""

    storage: Storage

    @abstractmethod
    def folder(self) -> str:
        """The URL of a folder that can be written to; another one for each test."""

    def test_a_file_is_put_listed_replaced_and_deleted(self, tmp_path: Path) -> None:
        url, path = self.folder(), tmp_path / "x.bin"
        writer = self.storage.writer(url)
        assert list(writer.listing(url)) == [], "something lies in an empty folder"
        path.write_bytes(b"first")
        first = writer.put(self._at(url, "x.bin"), str(path))
        assert self._listed(writer, url) == {"x.bin": StoredFile("x.bin", 5, first)}
        path.write_bytes(b"second")
        second = writer.put(self._at(url, "x.bin"), str(path))
        assert first != second, "another content has the same version"
        assert self._content(self._at(url, "x.bin")) == b"second"
        writer.delete(self._at(url, "x.bin"))
        writer.delete(self._at(url, "x.bin"))
        assert list(writer.listing(url)) == []

    def test_folders_are_listed(self, tmp_path: Path) -> None:
        url, path = self.folder(), tmp_path / "x.bin"
        writer = self.storage.writer(url)
        path.write_bytes(b"")
        for name in ("b.bin", "a.bin", "folder/c.bin"):
            writer.put(self._at(url, *name.split("/")), str(path))
        found = [(file.name, file.is_folder) for file in writer.listing(url)]
        assert found == [("a.bin", False), ("b.bin", False), ("folder", True)]

    def test_parts_in_any_order_make_a_file(self) -> None:
        url, writer = self._parted()
        file = self._at(url, "x.bin")
        content = random.Random(0).randbytes(2 * writer.smallest_part + 100)
        cut = {n + 1: content[n * writer.smallest_part : (n + 1) * writer.smallest_part] for n in range(3)}
        id = writer.begin(file)
        versions = {number: writer.send(file, id, number, bytearray(cut[number])) for number in (3, 1, 2)}
        versions[1] = writer.send(file, id, 1, bytearray(cut[1]))
        there = writer.parts(file, id)
        assert {number: (part.version, part.size) for number, part in there.items()} == {
            number: (versions[number], len(cut[number])) for number in cut
        }
        assert list(writer.listing(url)) == [], "an upload can be seen before it is complete"
        assert [(one.url, one.id) for one in writer.uploads(url)] == [(file, id)]
        version = writer.complete(file, id, versions)
        assert writer.complete(file, id, versions) == version, "a second request is answered otherwise"
        assert self._listed(writer, url)["x.bin"] == StoredFile("x.bin", len(content), version)
        assert self._content(file) == content
        assert list(writer.uploads(url)) == []

    def test_an_upload_that_is_gone(self) -> None:
        url, writer = self._parted()
        file = self._at(url, "x.bin")
        id = writer.begin(file)
        version = writer.send(file, id, 1, bytearray(b"1"))
        writer.abort(file, id)
        writer.abort(file, id)
        with pytest.raises(UploadGone):
            writer.send(file, id, 2, bytearray(b"2"))
        with pytest.raises(UploadGone):
            writer.parts(file, id)
        with pytest.raises(UploadGone):
            writer.complete(file, id, {1: version})
        assert list(writer.uploads(url)) == []

    def _parted(self) -> tuple[str, PartWriter]:
        url = self.folder()
        writer = self.storage.writer(url)
        if not isinstance(writer, PartWriter):
            pytest.skip("takes whole files alone")
        return url, writer

    def _at(self, url: str, *names: str) -> str:
        for name in names:
            url = self.storage.join(url, name)
        return url

    def _listed(self, writer: Writer, url: str) -> dict[str, StoredFile]:
        return {file.name: file for file in writer.listing(url)}

    def _content(self, url: str) -> bytes:
        source = self.storage.open(url)
        into = bytearray(source.size)
        source.read(0, memoryview(into))
        source.close()
        return bytes(into)
