"""How a file is cut into parts, and checksums that are put together from those of pieces."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter_core import system
from converter_core.api import FileLayout, PartWriter
from converter_core.folder import Folder
from converter_core.output.crc import combined
from converter_core.output.destination import is_inside_url, state_folder, state_home
from converter_core.output.parts import HEADER, Parts, Piece, part_bytes
from converter_core.output.upload_book import SentPart, UploadBook, read


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_checksums_are_put_together(first: bytes, second: bytes) -> None:
    assert combined(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


def test_checksums_of_long_runs() -> None:
    first, second = b"a", bytes(range(256)) * (1 << 14)
    assert combined(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


def test_a_file_in_parts() -> None:
    """header 10 | a 30 | gap 5 | b 55: parts of 40."""
    parts = Parts(FileLayout(b"h" * 10, {"a": 10, "b": 45, "empty": 45}, 100), {"a": 30, "b": 55, "empty": 0}, 40)
    assert parts.pieces == {
        1: [Piece(HEADER, 0, 10), Piece("a", 10, 30)],
        2: [Piece("b", 45, 35)],
        3: [Piece("b", 80, 20)],
    }
    assert [parts.span(number) for number in (1, 2, 3)] == [(0, 40), (40, 80), (80, 100)]
    assert [list(parts.numbers(key)) for key in (HEADER, "a", "b", "empty")] == [[1], [1], [2, 3], []]


def test_the_size_of_a_part() -> None:
    mib = 1 << 20
    assert part_bytes(1, PartWriter) == 8 * mib  # type: ignore[arg-type]
    assert part_bytes(80_000 * mib, PartWriter) == 8 * mib  # type: ignore[arg-type]
    assert part_bytes(80_000 * mib + 1, PartWriter) == 9 * mib  # type: ignore[arg-type]


def test_what_a_book_of_uploads_says(tmp_path: Path) -> None:
    with Folder.open(tmp_path) as folder:
        book = UploadBook(folder, "s3://b/out", "mark")
        book.opening("x")
        book.begun("x", "id", 40)
        book.sent("x", 1, SentPart("v1", {"a": 1}))
        book.sent("x", 2, SentPart("v2", {"a": 2}))
        book.dropped("x", 1)
        book.opening("y")
        book.begun("z", "other", 40)
        book.forgotten("z")
        book.published("w", "v")
        book.close()
        with (tmp_path / "uploads.jsonl").open("ab") as file:
            file.write(b'{"what":"sent","file":"x","numb')  # torn
        again = UploadBook(folder, "s3://b/out", "mark")
        again.sent("x", 3, SentPart("v3", {}))
        again.close()
        told = read(folder)
        assert told is not None
        assert told.files.keys() == {"x", "y", "w"}
        assert (told.files["x"].id, dict(told.files["x"].parts)) == (
            "id",
            {2: SentPart("v2", {"a": 2}), 3: SentPart("v3", {})},
        )
        assert [told.files[name].unnoted for name in ("x", "y", "w")] == [False, True, False]
        UploadBook(folder, "s3://b/out", "another").close()
        assert read(folder).files == {}  # type: ignore[union-attr]


@pytest.mark.skipif(not system.can_punch(), reason="no holes here")
def test_room_is_given_back(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    try:
        os.write(fd, b"x" * (1 << 20))
        os.fsync(fd)
        if not system.punch(fd, 0, 1 << 19):
            pytest.skip("the file system has no holes")
        assert os.fstat(fd).st_size == 1 << 20
        assert os.fstat(fd).st_blocks * 512 <= (1 << 19) + (1 << 16)
        assert os.pread(fd, 1 << 20, 0) == bytes(1 << 19) + b"x" * (1 << 19)
    finally:
        os.close(fd)


def test_where_state_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_home() == tmp_path / "model-converter"
    assert state_folder("s3://b/out") == state_folder("S3://b/out/") != state_folder("s3://b/out2")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_home() == tmp_path / ".local/state/model-converter"
    assert is_inside_url("s3://b/out/a", "s3://b/out/")
    assert not is_inside_url("s3://b/out2", "s3://b/out")
