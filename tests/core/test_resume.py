"""A crash costs time, never correctness."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from converter_core.engine import convert as conversion
from converter_core.engine.convert import convert
from converter_core.engine.worker_pool import Progress
from converter_core.errors import ConversionError, ConverterError, PlanError
from converter_core.folder import Folder
from converter_core.output import journal
from converter_core.output.unfinished import FILES
from converter_core.planning import outputs as planning
from converter_core.planning.planner import make_plan

DRIVER = Path(__file__).with_name("crash_driver.py")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def visible(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]


class Interrupted(Exception):
    pass


def interrupt_after(tensors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run fail once that many weights are journalled."""
    real = journal.Journal.done
    count = 0

    def done(self: journal.Journal, weight: str, crc32: Any, source: str) -> None:
        nonlocal count
        real(self, weight, crc32, source)
        count += 1
        if count == tensors:
            raise Interrupted

    monkeypatch.setattr(journal.Journal, "done", done)


def stop_publication_after(files: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run fail once that many files have their final names."""
    real = Folder.rename
    renamed = 0

    def rename(self: Folder, name: str, to: Folder, new: str) -> None:
        nonlocal renamed
        if self.path.name == FILES:
            if renamed == files:
                raise Interrupted
            renamed += 1
        real(self, name, to, new)

    monkeypatch.setattr(Folder, "rename", rename)


@pytest.fixture
def interrupted(asked: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A recipe whose conversion stopped after 40 weights, and what an undisturbed run writes."""
    recipe = asked("int8", **{"performance.num_workers": 1})
    out = Path(recipe["output"]["path"])
    convert(recipe)
    whole = contents(out)
    shutil.rmtree(out)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(40, patch)
        convert(recipe)
    assert not visible(out)
    return recipe, whole


def test_a_rerun_takes_over_what_was_done(interrupted: Any) -> None:
    recipe, whole = interrupted
    events: list[Progress] = []
    result = convert(recipe, progress=events.append)
    assert result.resumed["tensors"] == 40
    assert events[-1].resumed == result.resumed["bytes"] > 0
    assert contents(Path(recipe["output"]["path"])) == whole


def test_another_worker_count_resumes_too(interrupted: Any) -> None:
    recipe, whole = interrupted
    recipe["performance"] = {"device": "cpu", "num_workers": 3, "max_memory": "64MiB"}
    assert convert(recipe).resumed["tensors"] == 40
    assert contents(Path(recipe["output"]["path"])) == whole


def test_no_resume_starts_anew(interrupted: Any) -> None:
    recipe, whole = interrupted
    assert convert(recipe, resume=False).resumed["tensors"] == 0
    assert contents(Path(recipe["output"]["path"])) == whole


def test_a_torn_last_line_costs_one_tensor(interrupted: Any) -> None:
    recipe, whole = interrupted
    path = Path(recipe["output"]["path"]) / ".wan.partial" / journal.NAME
    path.write_bytes(path.read_bytes()[:-7])
    assert convert(recipe).resumed["tensors"] == 39
    assert contents(Path(recipe["output"]["path"])) == whole


def test_damaged_staged_bytes_are_found_and_redone(interrupted: Any) -> None:
    recipe, whole = interrupted
    with make_plan(recipe) as plan:
        job = plan.jobs[10]
        at = plan.outputs[0].file_layouts["wan.safetensors"].offsets[job.exports[0].tensors[0].key]
    staged = Path(recipe["output"]["path"]) / ".wan.partial" / FILES / "wan.safetensors"
    data = bytearray(staged.read_bytes())
    data[at] ^= 0x10
    staged.write_bytes(data)
    assert convert(recipe).resumed["tensors"] == 39
    assert contents(Path(recipe["output"]["path"])) == whole


def test_a_changed_source_starts_anew_and_says_so(interrupted: Any, wan_source: Path, tmp_path: Path) -> None:
    """Its headers are another's. Where they are the same, tests/output/test_other_times.py."""
    recipe, _ = interrupted
    other = tmp_path / "other"
    shutil.copytree(wan_source, other)
    shard = sorted(other.glob("*.safetensors"))[0]
    data = shard.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = json.dumps(header | {"__metadata__": {"other": "header"}}).encode()
    shard.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    recipe["source"]["path"] = str(other)
    with make_plan(recipe) as plan:
        assert not plan.outputs[0].state.resumes
        assert any(shard.name in warning for warning in plan.warnings)
    assert convert(recipe).resumed["tensors"] == 0


def test_another_plugin_version_starts_anew(interrupted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, _ = interrupted
    monkeypatch.setattr(planning, "version", lambda name: "99")
    with make_plan(recipe) as plan:
        assert any("version of model-converter" in warning for warning in plan.warnings)
    assert convert(recipe).resumed["tensors"] == 0


def test_a_changed_option_starts_anew(interrupted: Any) -> None:
    recipe, _ = interrupted
    recipe["quantization"]["options"] = {"per_channel": False}
    with make_plan(recipe) as plan:
        assert plan.as_dict()["status"] == "new"
        assert any("quantization" in warning for warning in plan.warnings)
    assert convert(recipe).resumed["tensors"] == 0


def drive(*arguments: str) -> Any:
    """What the crash driver says."""
    done = subprocess.run(
        [sys.executable, str(DRIVER), *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("layout", ["single_file", "by_block", "chunked"])
@pytest.mark.parametrize("scheme", ["int8", "nvfp4"])
def test_kill_9_at_random_moments(scheme: str, layout: str, asked: Any, tmp_path: Path) -> None:
    recipe = asked(scheme, **{"target.layout": layout, "output.copy_metadata": True})
    found = drive("at_random", json.dumps(recipe), "0", "9")
    assert found["problems"] == []
    assert found["killed"] >= 9


def test_kill_9_at_every_step(asked: Any, tmp_path: Path) -> None:
    before = tmp_path / "before"
    before.mkdir()
    found = drive("at_every_step", json.dumps(asked("int8", **{"target.layout": "by_block"})), str(before))
    assert found["problems"] == []
    assert found["points"] > 15


def test_kill_9_at_every_step_of_a_replacement(asked: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of another conversion, and of what a third left that was interrupted while it was published."""
    common = {"performance.num_workers": 1, "output.copy_metadata": True, "output.overwrite": True}
    convert(asked("int8", **common))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_publication_after(2, patch)
        convert(asked("mxfp4", **common, **{"target.layout": "by_block"}))
    before = tmp_path / "before"
    shutil.copytree(tmp_path / "out", before)
    found = drive("at_every_step", json.dumps(asked("fp8", **common, **{"target.layout": "by_block"})), str(before))
    assert found["problems"] == []
    assert found["points"] > 25


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_something_to_resume(number: int, code: int, asked: Any, tmp_path: Path) -> None:
    recipe = asked("int8", **{"performance.num_workers": 1})
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    slow = (
        "import time, converter_core.output.journal as j\n"
        "real = j.Journal.done\n"
        "def done(self, *a):\n"
        "    real(self, *a); time.sleep(0.05)\n"
        "j.Journal.done = done\n"
        "from converter_core.cli import main\n"
        f"import sys; sys.argv = ['model-converter', 'convert', '--config', {str(path)!r}]\n"
        "main()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", slow], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    journalled = tmp_path / "out" / ".wan.partial" / journal.NAME
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (journalled.exists() and journalled.stat().st_size > 4000):
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "the same command resumes" in err
    assert "Traceback" not in err
    assert not visible(tmp_path / "out")
    assert convert(recipe).resumed["tensors"] > 3


def test_two_processes_on_one_output(asked: Any) -> None:
    recipe = asked("int8")
    out = Path(recipe["output"]["path"])
    out.mkdir()
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import fcntl, os, time; fcntl.flock(os.open({str(out)!r}, 0), 2); print(1, flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        with pytest.raises(ConversionError, match="another conversion is writing there"):
            convert(recipe)
    finally:
        holder.kill()
        holder.communicate()
    assert convert(recipe).status == "done"


def test_an_interrupted_publication_is_finished_by_the_rerun(
    asked: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = asked("int8", **{"target.layout": "by_block", "output.copy_metadata": True})
    out = tmp_path / "out"
    convert(recipe)
    whole = contents(out)
    for stop in range(1, 7):
        shutil.rmtree(out)
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            stop_publication_after(stop, patch)
            convert(recipe)
        assert not (out / "wan.manifest.json").exists()
        with make_plan(recipe) as plan:
            assert plan.as_dict()["status"] == "resume"
        assert convert(recipe).status == "done"
        assert contents(out) == whole


def test_overwrite_replaces_the_whole_conversion(asked: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(asked("int8", **{"target.layout": "by_block"}))
    other = asked("fp8", **{"output.name": "other"})
    (out / "keep.txt").write_text("mine")
    with make_plan(other) as plan:
        assert any("folder" in warning for warning in plan.warnings)
    clash = asked("fp8", **{"target.layout": "by_block"})
    with pytest.raises(PlanError, match="overwrite"):
        make_plan(clash)
    clash = asked("fp8", **{"output.overwrite": True})
    convert(clash)
    assert sorted(contents(out)) == ["keep.txt", "wan.manifest.json", "wan.safetensors"]


def test_an_interrupted_replacement_keeps_whole_files_and_is_finished(
    asked: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    convert(asked("fp8", **{"target.layout": "by_block", "output.overwrite": True}))
    new = contents(out)
    shutil.rmtree(out)
    convert(asked("int8", **{"target.layout": "by_block"}))
    old = contents(out)
    clash = asked("fp8", **{"target.layout": "by_block", "output.overwrite": True})
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_publication_after(2, patch)
        convert(clash)
    halfway = {name: data for name, data in contents(out).items() if not name.startswith(".")}
    assert halfway.keys() == old.keys() - {"wan.manifest.json"}  # none speaks for old and new files together
    assert all(data in (old[name], new[name]) for name, data in halfway.items())
    assert halfway != old
    convert(clash)
    assert contents(out) == new


def test_a_file_that_nobody_owns_is_never_touched(asked: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "wan.safetensors").write_bytes(b"somebody's")
    for overwrite in (False, True):
        with pytest.raises(PlanError, match=r"wan\.safetensors.*no manifest lists it"):
            convert(asked("int8", **{"output.overwrite": overwrite}))
    assert contents(out) == {"wan.safetensors": b"somebody's"}


def test_output_and_source_must_lie_apart(asked: Any, wan_source: Path, tmp_path: Path) -> None:
    for output in (wan_source, wan_source / "out", wan_source.parent):
        with pytest.raises(PlanError, match="source"):
            make_plan(asked("int8", **{"output.path": str(output)}))
    link = tmp_path / "link"
    link.symlink_to(wan_source)
    with pytest.raises(PlanError, match="source"):
        make_plan(asked("int8", **{"output.path": str(link)}))


def test_a_full_disk_says_how_much_is_missing_and_where(
    asked: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    with (
        monkeypatch.context() as patch,
        pytest.raises(ConversionError, match=r"wan\.safetensors: the disk is full.*again"),
    ):
        patch.setattr(os, "posix_fallocate", full)
        convert(asked("int8"))
    real, left = os.pwrite, 2_000_000

    def pwrite(fd: int, data: Any, at: int) -> int:
        nonlocal left
        left -= len(data)
        if left < 0:
            raise OSError(28, "No space left on device")
        return real(fd, data, at)

    with monkeypatch.context() as patch, pytest.raises(ConversionError, match="the disk is full"):
        patch.setattr(os, "pwrite", pwrite)
        convert(asked("int8"))
    assert not visible(tmp_path / "out")
    assert convert(asked("int8")).resumed["tensors"] > 0


def test_too_little_disk_is_an_error_of_the_plan(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter_core.output.surroundings.free_disk", lambda output: 1000)
    with make_plan(asked("int8")) as plan:
        (problem,) = plan.problems
        assert re.search(r"needs [\d.]+ [KM]iB of disk and 1000 B are free", problem)
    with pytest.raises(PlanError, match=r"needs [\d.]+ [KM]iB of disk and 1000 B are free"):
        convert(asked("int8"))
    assert not Path(asked("int8")["output"]["path"]).exists()


@pytest.mark.parametrize("harm", ["cut", "deleted", "header", "index"])
def test_a_damaged_file_of_a_finished_output_is_made_again_alone(asked: Any, tmp_path: Path, harm: str) -> None:
    recipe = asked("int8", **{"target.layout": "by_block"})
    convert(recipe)
    whole, out = contents(tmp_path / "out"), tmp_path / "out"
    harmed = out / ("diffusion_pytorch_model.safetensors.index.json" if harm == "index" else "block_1.safetensors")
    if harm == "cut":
        os.truncate(harmed, 100)
    elif harm == "header":
        with harmed.open("r+b") as file:
            file.seek(20)
            file.write(b"####")
    else:
        harmed.unlink()
    before = {path.name: path.stat().st_ino for path in out.iterdir() if path != harmed}
    with make_plan(recipe) as plan:
        assert not plan.outputs[0].state.done
        assert [text for text in plan.warnings if harmed.name in text and "it is made again" in text]
    result = convert(recipe)
    assert result.status == "done"
    assert result.resumed["tensors"] == (119 if harm == "index" else 119 - 32)
    assert contents(out) == whole
    after = {path.name: path.stat().st_ino for path in out.iterdir() if path != harmed}
    weights = [name for name in before if name.endswith(".safetensors")]
    assert {name: before[name] for name in weights} == {name: after[name] for name in weights}
    assert convert(recipe).status == "already done"


def test_a_moved_output_and_another_spelling_of_its_path_are_the_same_conversion(
    asked: Any, wan_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(asked("int8"))
    (tmp_path / "out").rename(tmp_path / "moved")
    assert convert(asked("int8", **{"output.path": str(tmp_path / "moved")})).status == "already done"
    monkeypatch.chdir(tmp_path)
    assert convert(asked("int8", **{"output.path": "./moved/"})).status == "already done"
    relative = os.path.relpath(wan_source, tmp_path)
    assert convert(asked("int8", **{"output.path": "moved", "source.path": relative})).status == "already done"


def test_metadata_links(asked: Any, wan_source: Path, tmp_path: Path) -> None:
    source = tmp_path / "models--Wan" / "snapshots" / "abc"
    blobs = tmp_path / "models--Wan" / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in wan_source.rglob("*") if path.is_file())):
        blob = blobs / f"{number:064x}"
        shutil.copy(path, blob)
        link = source / path.relative_to(wan_source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    recipe = asked("int8", **{"source.path": str(source), "output.copy_metadata": True})
    convert(recipe)
    out = tmp_path / "out"
    assert (out / "config.json").read_bytes() == (wan_source / "config.json").read_bytes()
    assert not (out / "config.json").is_symlink()

    outside = tmp_path / "secret.txt"
    outside.write_text("secret")
    (source / "notes.txt").symlink_to(outside)
    (source / "folder").symlink_to(tmp_path)
    recipe["output"]["path"] = str(tmp_path / "other")
    with pytest.raises(ConverterError) as error:
        make_plan(recipe)
    assert "notes.txt" in str(error.value)
    (source / "notes.txt").unlink()
    (source / "folder").unlink()
    (source / "inside").symlink_to(source / "tokenizer")
    with make_plan(recipe) as plan:
        assert not any(name.startswith("inside") for name in plan.outputs[0].copies)


def test_a_source_replaced_while_it_is_read(asked: Any, wan_source: Path, tmp_path: Path) -> None:
    source = tmp_path / "copy"
    shutil.copytree(wan_source, source)
    with make_plan(asked("int8", **{"source.path": str(source)}), require_device=True) as plan:
        shard = sorted(source.glob("*.safetensors"))[0]
        data = shard.read_bytes()
        shard.unlink()
        shard.write_bytes(data)
        with pytest.raises(ConverterError, match=shard.name):
            conversion.convert(plan)
    assert not visible(tmp_path / "out")


def test_a_really_full_disk(asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.decode().strip()}")
    try:
        recipe = asked("int8", **{"output.path": str(small / "out")})
        with pytest.raises(PlanError, match=r"needs 4\.93 MiB"):
            convert(recipe)
        assert not (small / "out").exists()
        with monkeypatch.context() as patch:
            patch.setattr("converter_core.output.surroundings.free_disk", lambda output: 1 << 40)
            with pytest.raises(ConversionError, match=r"the disk is full, \d{7} more bytes are needed there"):
                convert(recipe)
        assert not visible(small / "out")
        subprocess.run(["mount", "-o", "remount,size=30m", str(small)], check=True)
        assert convert(recipe).status == "done"
    finally:
        subprocess.run(["umount", str(small)], check=True)
