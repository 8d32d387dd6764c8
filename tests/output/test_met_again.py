"""A conversion, finished or stopped, that is met again: what it is believed to be, and what is replaced."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from converter_core import ConverterError, Registry, convert, make_plan, verify
from converter_core.errors import PlanError
from converter_core.folder import Folder
from converter_core.output.journal import Journal
from converter_core.output.manifest import dump, load_manifest
from converter_core.output.unfinished import FILES

from .conftest import Asking


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.glob("*.safetensors")}


class Stop(Exception):
    pass


@contextmanager
def stopped_after(renames: int) -> Iterator[None]:
    """A run stops when that many files have their final names; with 0 before any weight is done."""
    real, count = Folder.rename, 0

    def rename(self: Folder, name: str, to: Folder, new: str) -> None:
        nonlocal count
        if self.path.name == FILES:
            if count == renames:
                raise Stop
            count += 1
        real(self, name, to, new)

    def done(self: Journal, weight: str, crc32: Any, source: str) -> None:
        raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Folder, "rename", rename)
        if not renames:
            patch.setattr(Journal, "done", done)
        yield


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def finished(ask: Asking, plugins: Registry, out: Path) -> dict[str, bytes]:
    """An int8 conversion in ``out``."""
    convert(ask("int8"), registry=plugins)
    return contents(out)


def test_a_flipped_bit_is_named_and_its_file_made_again_alone(
    ask: Asking, plugins: Registry, out: Path, finished: dict[str, bytes]
) -> None:
    harmed = out / "block_1.safetensors"
    before = inodes(out)
    data = bytearray(finished[harmed.name])
    data[-3] ^= 4
    harmed.write_bytes(data)
    with make_plan(ask("int8"), plugins) as plan:
        assert plan.outputs[0].status == "check"
        assert any("block_1.safetensors may have changed" in warning for warning in plan.warnings)
    result = convert(ask("int8"), registry=plugins)
    assert result.status == "done"
    assert any("block_1.safetensors was changed" in warning for warning in result.warnings)
    assert contents(out) == finished
    after = inodes(out)
    assert {name for name in after if after[name] != before[name]} <= {"block_1.safetensors"}
    assert convert(ask("int8"), registry=plugins).status == "already done"


@pytest.mark.parametrize("name", ["config.json", "tokenizer/vocab.json"])
def test_a_changed_side_file_is_made_again(
    ask: Asking, plugins: Registry, out: Path, finished: dict[str, bytes], name: str
) -> None:
    (out / name).write_bytes(finished[name][::-1])
    assert convert(ask("int8"), registry=plugins).status == "done"
    assert contents(out) == finished


def test_another_time_alone_changes_nothing(
    ask: Asking, plugins: Registry, out: Path, finished: dict[str, bytes]
) -> None:
    for path in out.rglob("*.*"):
        os.utime(path, ns=(1, hash(path.name) % 10**9))
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert convert(ask("int8"), registry=plugins).status == "already done"
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times


def test_all_files_have_the_time_of_the_manifest(out: Path, finished: dict[str, bytes]) -> None:
    assert len({(out / name).stat().st_mtime_ns for name in finished}) == 1


def test_a_finished_output_is_not_read_again(
    ask: Asking, plugins: Registry, out: Path, finished: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converter_core.engine.output_run.checksum", None)
    assert convert(ask("int8"), registry=plugins).status == "already done"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"files": {}}, "lists other files than this conversion makes"),
        ({"tensors": {}}, "lists other tensors than this conversion makes"),
        ({"files": None}, "files is not a mapping of mappings"),
        (None, "its own checksum does not fit"),
    ],
)
def test_a_manifest_that_lies_is_not_believed(
    ask: Asking, plugins: Registry, out: Path, finished: dict[str, bytes], change: Any, said: str
) -> None:
    manifest = out / "tiny.manifest.json"
    if change is None:
        manifest.write_bytes(manifest.read_bytes().replace(b'"adapter": "tiny"', b'"adapter": "ytin"'))
    else:
        content = {key: value for key, value in (load_manifest(manifest) | change).items() if value is not None}
        manifest.write_bytes(dump({key: content[key] for key in content if key not in ("kind", "version", "crc32")}))
    before = contents(out)
    for overwrite in (False, True):
        with pytest.raises(PlanError, match=said):
            convert(ask("int8", overwrite=overwrite), registry=plugins)
    assert contents(out) == before


def test_what_a_killed_run_was_to_replace_needs_agreement_again(
    ask: Asking, plugins: Registry, out: Path, finished: dict[str, bytes]
) -> None:
    with stopped_after(0):
        convert(ask("fp8", overwrite=True), registry=plugins)
    with pytest.raises(PlanError, match="overwrite"):
        convert(ask("mxfp4", layout="single_file"), registry=plugins)
    staged = {name for name in contents(out) if name.startswith(".")}
    assert {name: data for name, data in contents(out).items() if name not in staged} == finished
    assert convert(ask("int8"), registry=plugins).status == "already done"


def test_half_a_publication_of_another_conversion_needs_agreement(ask: Asking, plugins: Registry, out: Path) -> None:
    with stopped_after(2):
        convert(ask("fp8"), registry=plugins)
    half = contents(out)
    with pytest.raises(PlanError, match="overwrite"):
        convert(ask("int8", layout="single_file"), registry=plugins)
    assert contents(out) == half
    assert not verify(out, registry=plugins).ok
    convert(ask("int8", layout="single_file", overwrite=True), registry=plugins)
    assert not [name for name in contents(out) if name.startswith(("block", "."))]


def test_a_file_of_the_users_own_is_not_taken_for_a_published_one(ask: Asking, plugins: Registry, out: Path) -> None:
    with stopped_after(1):
        convert(ask("int8"), registry=plugins)
    (published,) = (path for path in out.iterdir() if not path.name.startswith("."))
    published.write_bytes(b"the user's own")
    with pytest.raises(ConverterError, match="is not what the interrupted run published there"):
        convert(ask("int8"), registry=plugins)
    assert published.read_bytes() == b"the user's own"


def test_wrong_bytes_under_a_final_name_are_found_before_the_rest_is_published(
    ask: Asking, plugins: Registry, out: Path, finished: dict[str, bytes]
) -> None:
    shutil.rmtree(out)
    with stopped_after(1):
        convert(ask("int8"), registry=plugins)
    (published,) = (path for path in out.iterdir() if path.suffix == ".safetensors")
    data = bytearray(published.read_bytes())
    data[-1] ^= 1
    published.write_bytes(data)
    assert convert(ask("int8"), registry=plugins).status == "done"
    assert contents(out) == finished


def test_the_survey_that_counts_is_taken_under_the_lock(ask: Asking, plugins: Registry, out: Path) -> None:
    with make_plan(ask("int8", overwrite=True), plugins, require_device=True) as plan:
        convert(ask("fp8", layout="single_file"), registry=plugins)
        convert(plan, registry=plugins)
    assert not (out / "tiny.safetensors").exists()
    assert verify(out, registry=plugins).ok


def test_a_plan_that_was_carried_out(ask: Asking, plugins: Registry, out: Path) -> None:
    with make_plan(ask("int8"), plugins, require_device=True) as plan:
        assert convert(plan, registry=plugins).status == "done"
        assert convert(plan, registry=plugins).status == "already done"
        (out / "block_0.safetensors").unlink()
        with pytest.raises(PlanError, match="make a new plan"):
            convert(plan, registry=plugins)


@pytest.mark.parametrize("empty", [True, False])
def test_nothing_is_left_beside_a_finished_output(
    ask: Asking, plugins: Registry, out: Path, finished: dict[str, bytes], empty: bool
) -> None:
    """A run that is killed when all is published leaves its staging folder; the next one removes it."""
    fingerprint = load_manifest(out / "tiny.manifest.json")["fingerprint"]
    (out / ".tiny.partial").mkdir()
    if not empty:
        (out / ".tiny.partial" / "journal.jsonl").write_text(json.dumps({"fingerprint": fingerprint, "made_of": {}}))
    assert convert(ask("int8"), registry=plugins).status == "already done"
    assert not (out / ".tiny.partial").exists()


def test_what_this_tool_did_not_put_into_the_staging_folder_stays(ask: Asking, plugins: Registry, out: Path) -> None:
    (out / ".tiny.partial" / "files").mkdir(parents=True)
    (out / ".tiny.partial" / "files" / "mine").write_text("mine")
    with pytest.raises(PlanError, match="holds files and no journal"):
        convert(ask("int8"), registry=plugins)
    (out / ".tiny.partial" / "files").rename(out / ".tiny.partial" / "kept")
    assert convert(ask("int8"), registry=plugins).status == "done"
    assert (out / ".tiny.partial" / "kept" / "mine").read_text() == "mine"


def test_a_failed_fsync_is_not_believed_later(
    ask: Asking, plugins: Registry, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fails(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink().name == "block_1.safetensors":
            raise OSError(5, "Input/output error")
        real(fd)

    with monkeypatch.context() as patch, pytest.raises(ConverterError, match=r"block_1.*the disk reports an error"):
        patch.setattr(os, "fsync", fails)
        convert(ask("int8"), registry=plugins)
    assert not (out / ".tiny.partial" / FILES / "block_1.safetensors").exists()
    assert convert(ask("int8"), registry=plugins).resumed["tensors"] == 3


def test_a_full_disk_under_the_journal_is_told(ask: Asking, plugins: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(ConverterError, match=r"journal\.jsonl.*No space left.*again"):
        patch.setattr(os, "write", full)
        convert(ask("int8"), registry=plugins)
    assert convert(ask("int8"), registry=plugins).status == "done"


def test_a_folder_is_never_replaced(ask: Asking, plugins: Registry, out: Path, finished: dict[str, bytes]) -> None:
    """Whatever a manifest says: one that claims a folder of the user's own, and a folder under a planned name."""
    (out / "mine").mkdir()
    (out / "mine" / "file").write_text("mine")
    manifest = out / "tiny.manifest.json"
    content = load_manifest(manifest)
    content["files"]["mine"] = {"size": 1}
    manifest.write_bytes(dump({key: content[key] for key in content if key not in ("kind", "version", "crc32")}))
    assert convert(ask("fp8", layout="single_file", overwrite=True), registry=plugins).status == "done"
    assert (out / "mine" / "file").read_text() == "mine"
    (out / "block_1.safetensors").mkdir()
    with pytest.raises(PlanError, match="it is a folder"):
        convert(ask("fp8", overwrite=True), registry=plugins)
