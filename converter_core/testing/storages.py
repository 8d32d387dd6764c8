"""The kit for storages."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest

from ..api.containers import ByteSource
from ..api.storages import Entry, Storage
from ..errors import CheckpointError
from .options import check_class


class StorageConformance(ABC):
    """Subclass it with ``storage = MyStorage()`` and ``put``, which makes files and returns the URL of their folder.

    lists: whether it can say what lies in a folder.
    """

    storage: Storage
    lists: ClassVar[bool] = True

    @abstractmethod
    def put(self, files: Mapping[str, bytes]) -> str:
        """Make a folder with these files (``name`` or ``folder/name``) alone; another one for each test."""

    def test_it_is_a_plugin(self) -> None:
        check_class(self.storage, Storage)

    def test_any_range_is_read(self) -> None:
        content = random.Random(0).randbytes(100_000)
        source = self._opened({"x.bin": content}, "x.bin")
        assert source.size == len(content), f"size is {source.size} of {len(content)} bytes"
        for at, count in ((0, 1), (0, 100_000), (99_999, 1), (50_000, 0), (100_000, 0), (12_345, 54_321)):
            into = bytearray(count)
            source.read(at, memoryview(into))
            assert bytes(into) == content[at : at + count], f"other bytes at {at}"
        source.will_need(0, 100_000)
        source.close()

    def test_many_threads_read_at_once(self) -> None:
        content = random.Random(1).randbytes(100_000)
        source = self._opened({"x.bin": content}, "x.bin")

        def part(number: int) -> bool:
            into = bytearray(2000)
            source.read(number * 1999, memoryview(into))
            return bytes(into) == content[number * 1999 : number * 1999 + 2000]

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(part, range(40))), "threads get each other's bytes"
        source.close()

    def test_no_byte_beyond_the_end(self) -> None:
        source = self._opened({"x.bin": b"12345"}, "x.bin")
        with pytest.raises(CheckpointError):
            source.read(3, memoryview(bytearray(3)))
        source.close()

    def test_an_empty_file(self) -> None:
        source = self._opened({"x.bin": b""}, "x.bin")
        assert source.size == 0
        source.read(0, memoryview(b""))
        source.close()

    def test_what_is_not_there_is_refused_by_name(self) -> None:
        url = self.storage.join(self.put({"x.bin": b"1"}), "nothing.bin")
        with pytest.raises(CheckpointError, match=r"nothing\.bin"):
            self.storage.open(url)

    def test_an_unchanged_file(self) -> None:
        source = self._opened({"x.bin": b"1"}, "x.bin")
        source.check_unchanged()
        again = self._opened({"x.bin": b"12"}, "x.bin")
        assert (source.size, source.version) != (again.size, again.version)
        source.close()
        again.close()

    def test_entries(self) -> None:
        if not self.lists:
            return
        url = self.put({"b.bin": b"1", "a.bin": b"2", "folder/c.bin": b"3"})
        found = self.storage.entries(url)
        assert found is not None, "entries of a folder are None"
        expected = [Entry("a.bin"), Entry("b.bin"), Entry("folder", True)]
        assert list(found) == expected, f"entries are {found}, not {expected}"
        assert list(self.storage.entries(f"{url}/") or ()) == expected, "other entries with a / at the end"
        inside = self.storage.entries(self.storage.join(url, "folder"))
        assert inside is not None
        assert [entry.name for entry in inside] == ["c.bin"]
        assert self.storage.entries(self.storage.join(url, "a.bin")) is None, "a file has entries"
        with pytest.raises(CheckpointError, match="nothing"):
            self.storage.entries(self.storage.join(url, "nothing"))

    def test_names(self) -> None:
        url = self.put({"x.bin": b"1"})
        file = self.storage.join(url, "x.bin")
        assert self.storage.basename(file) == "x.bin"
        assert self.storage.parent(file).rstrip("/") == url.rstrip("/")
        assert self.storage.join(f"{url}/", "x.bin") == file, "other URLs with a / at the end of the folder's"

    def _opened(self, files: Mapping[str, bytes], name: str) -> ByteSource:
        return self.storage.open(self.storage.join(self.put(files), name))
