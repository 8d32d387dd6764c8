"""One place opens files that others may have made."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from converter_core import folder as folders
from converter_core.errors import CheckpointError
from converter_core.folder import Folder
from converter_core.output.fingerprint import Fingerprint
from converter_core.output.journal import NAME, Begun, Journal, read
from converter_core.trusted import is_inside, open_regular, read_file


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_pipes_and_devices_are_refused_at_once(pipe: Path) -> None:
    for path in (pipe, Path("/dev/zero")):
        for flags in (os.O_RDONLY, os.O_RDWR):
            with pytest.raises(OSError, match="is not a regular file"):
                open_regular(path, flags)


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert read_file(tmp_path / "link", 5) == b"12345"
    with pytest.raises(OSError, match="has more than 4 bytes"):
        read_file(tmp_path / "file", 4)
    for name in ("no\0name", "\udcff\ud800"):
        with pytest.raises(OSError, match="is no file name"):
            read_file(name, 4)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/x", "../x", "a/../b", "a//b", "a/", "./a", "a\\b", "a\0b", "\ud800", 1, None, ["a"]]
)
def test_names_that_lead_out(name: object) -> None:
    assert not is_inside(name)


@pytest.mark.parametrize("name", ["a", "a/b.json", ".a", "a b", "é"])
def test_names_inside(name: str) -> None:
    assert is_inside(name)


@pytest.fixture(params=["by descriptors", "by paths"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    """In two ways: the second is that of systems without names relative to a folder."""
    monkeypatch.setattr(folders, "_RELATIVE", request.param == "by descriptors")
    (tmp_path / "in").mkdir()
    (tmp_path / "out" / "deep").mkdir(parents=True)
    (tmp_path / "out" / "victim").write_text("precious")
    with Folder.open(tmp_path / "in") as opened:
        yield opened


def test_nothing_is_written_or_deleted_through_links(folder: Folder, tmp_path: Path) -> None:
    outside = tmp_path / "out"
    (folder.path / "link").symlink_to(outside)
    (folder.path / "file").symlink_to(outside / "victim")
    (folder.path / "hard").hardlink_to(outside / "victim")
    for name in ("link/victim", "../out/victim", str(outside / "victim")):
        with pytest.raises(OSError, match=r"link|no name"):
            os.close(folder.create_file(name))
        with pytest.raises(OSError, match=r"link|no name"):
            folder.open_file(name)
    for name in ("file", "hard"):
        with pytest.raises(OSError, match=r"regular|hard link"):
            folder.open_file(name, os.O_RDWR)
        os.close(folder.create_file(name))
        assert (folder.path / name).read_bytes() == b""
    folder.remove("link/victim")
    folder.remove("link")
    assert not os.path.lexists(folder.path / "link")
    assert (outside / "victim").read_text() == "precious"
    assert (outside / "deep").is_dir()


def test_folders_files_and_names(folder: Folder) -> None:
    os.close(folder.create_file("a/b/c"))
    (folder.path / "a" / "loop").symlink_to(folder.path / "a")
    assert folder.names() == ["a"]
    status = folder.status("a/b/c")
    assert status is not None
    assert status.st_size == 0
    assert folder.status("a/none") is None
    folder.rename("a/b/c", folder, "x/y")
    folder.stamp("x/y", 10**9)
    assert (folder.path / "x" / "y").stat().st_mtime_ns == 10**9
    folder.remove("a")
    folder.sync()
    assert folder.names() == ["x"]


def test_a_torn_line_of_a_journal_swallows_no_other(folder: Folder) -> None:
    mark = Fingerprint("print", {})
    journal = Journal.begin(folder, Begun(mark.value, mark.made_of))
    journal.done("torn", {"torn": 1}, "a")
    journal.close()
    os.truncate(folder.path / NAME, (folder.path / NAME).stat().st_size - 5)
    journal = Journal(folder)
    journal.done("whole", {"whole": 2}, "b")
    journal.close()
    begun = read(folder)
    assert begun is not None
    assert begun.done == {"whole": {"whole": 2}}
    assert begun.sources == {"whole": "b"}


@pytest.mark.parametrize("names", [["../victim"], ["/etc/passwd"], ["a", 1], "a", {"a": 1}])
@pytest.mark.parametrize("what", ["replaces", "orphans", "publishes"])
def test_a_journal_that_names_files_outside_is_refused_whole(folder: Folder, names: object, what: str) -> None:
    head = {"fingerprint": "print", "made_of": {}}
    later = {"publishes": names if what == "publishes" else [], "replaces": names if what == "replaces" else []}
    for lines in ([head | {what: names}], [head, later] if what != "orphans" else [head | {what: names}]):
        (folder.path / NAME).write_text("\n".join(map(json.dumps, lines)))
        with pytest.raises(CheckpointError, match="names files outside of the output"):
            read(folder)


def test_a_file_system_that_cannot_sync_folders(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    number = errno.EINVAL
    folder.make("a").close()
    if folders._RELATIVE:
        number = errno.EIO
        with pytest.raises(OSError, match="Input/output error"):
            folder.sync()
