"""Outputs on an object store, over the protocol of S3: the bytes of a local conversion, whatever goes wrong."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import converter_core
from converter_core import ConversionError, ConverterError, PlanError, Registry, cli, system
from converter_core.engine.opening import locked
from converter_core.output import journal
from converter_core.verification.folders import outputs_in
from converter_plugins.storages._obstore_writer import ObstoreWriter
from converter_plugins.storages._s3_writer import S3Writer
from converter_plugins.storages.object_store import ObjectStore

from ..interfaces.conftest import tensors
from .conftest import PART, Asking
from .s3 import S3

SEND = r"^PUT .*partNumber"
COMPLETE = r"^POST .*uploadId"
BEGIN = r"^POST .*\?uploads"
CHANGES = r"^(PUT|POST|DELETE) "


def local(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored(url: str, within: str = "") -> dict[str, bytes]:
    """Every object below a URL."""
    writer, storage, found = S3Writer(), ObjectStore(), {}
    for file in writer.listing(f"{url}/{within}".rstrip("/")):
        name = f"{within}{file.name}"
        if file.is_folder:
            found |= stored(url, f"{name}/")
        else:
            source = storage.open(f"{url}/{name}")
            content = bytearray(source.size)
            source.read(0, memoryview(content))
            found[name] = bytes(content)
    return found


def same(there: Mapping[str, bytes], here: Mapping[str, bytes]) -> bool:
    """All but what a manifest says of paths and versions."""

    def plain(files: Mapping[str, bytes]) -> dict[str, Any]:
        found: dict[str, Any] = dict(files)
        for name in files:
            if name.endswith(".manifest.json"):
                found[name] = json.loads(files[name])
                del found[name]["crc32"], found[name]["recipe"]["output"]["path"]
                for file in found[name]["files"].values():
                    file.pop("version", None)
        return found

    return plain(there) == plain(here)


Converting = Callable[..., Any]


@pytest.fixture
def convert(plugins: Registry) -> Converting:
    def run(recipe: Mapping[str, Any], **options: Any) -> Any:
        return converter_core.convert(recipe, registry=plugins, **options)

    return run


@pytest.fixture
def right(ask: Asking, convert: Converting, tmp_path: Path) -> Callable[..., dict[str, bytes]]:
    """right("int8", layout=...): what a local conversion writes."""

    def make(*arguments: Any, **section: Any) -> dict[str, bytes]:
        folder = tmp_path / f"local-{len(list(tmp_path.glob('local-*')))}"
        convert(ask(folder, *arguments, **section))
        return local(folder)

    return make


class Interrupted(Exception):
    pass


def interrupt_after(tensors: int, s3: S3 | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run fail once that many weights are journalled, and something of them is sent."""
    real, count = journal.Journal.done, 0

    def done(self: journal.Journal, weight: str, crc32: Any, source: str) -> None:
        nonlocal count
        real(self, weight, crc32, source)
        count += 1
        if count == tensors:
            while s3 is not None and not s3.asked(SEND):
                time.sleep(0.01)
            raise Interrupted

    monkeypatch.setattr(journal.Journal, "done", done)


def state_of(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "state").rglob("*") if path.name != "model-converter"]


@pytest.mark.parametrize("layout", ["by_block", "single_file"])
def test_the_bytes_of_a_local_conversion(
    layout: str, s3: S3, url: str, ask: Asking, convert: Converting, right: Any, tmp_path: Path
) -> None:
    result = convert(ask(url, layout=layout))
    assert (result.status, result.output, result.manifest) == ("done", url, f"{url}/tiny.manifest.json")
    there = stored(url)
    assert same(there, right(layout=layout))
    assert len(there) > 3
    assert max(map(len, there.values())) > 2 * PART
    assert state_of(tmp_path) == []
    assert s3.longest <= 2 * PART + (16 << 10), "a request as large as a file"

    asked = s3.asked(CHANGES)
    sent = [number for number, line in enumerate(asked) if re.search(SEND, line)]
    seen = [number for number, line in enumerate(asked) if re.search(COMPLETE, line)]
    assert max(sent) < min(seen), "a file can be seen before all of the output is sent"
    assert "tiny.manifest.json" in asked[-1], "the manifest is not the last"
    assert not S3Writer().uploads(url)

    s3.log.clear()
    assert convert(ask(url, layout=layout)).status == "already done"
    assert s3.asked(CHANGES) == []
    assert stored(url) == there


def test_the_source_may_lie_there_too(
    s3: S3, url: str, ask: Asking, convert: Converting, right: Any, tiny_source: Path
) -> None:
    for name, content in local(tiny_source).items():
        path = tiny_source / name
        assert path.read_bytes() == content
        S3Writer().put(f"{url}-source/{name}", str(path))
    recipe = ask(url)
    recipe["source"]["path"] = f"{url}-source"
    recipe["output"]["copy_metadata"] = False
    convert(recipe)
    expected = {name: content for name, content in right().items() if name.endswith(".safetensors")}
    assert {name: content for name, content in stored(url).items() if name.endswith(".safetensors")} == expected
    recipe["output"]["path"] = f"{url}-source/inside"
    with pytest.raises(PlanError, match=r"inside: the source .* lies there, in it or around it"):
        convert(recipe)


def test_an_interrupted_run_goes_on(
    s3: S3,
    url: str,
    ask: Asking,
    convert: Converting,
    right: Any,
    plugins: Registry,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    recipe = ask(url, layout="single_file")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(8, s3, patch)
        convert(recipe)
    before = s3.asked(SEND)
    assert stored(url) == {}
    assert len(S3Writer().uploads(url)) == 1
    with converter_core.make_plan(recipe, plugins) as plan:
        assert plan.outputs[0].status == "resume"
    s3.log.clear()
    result = convert(recipe)
    assert result.resumed["tensors"] >= 8
    assert same(stored(url), right(layout="single_file"))
    assert set(before) & set(s3.asked(SEND)) == set(), "a part is sent again"
    assert before
    assert state_of(tmp_path) == []
    assert not S3Writer().uploads(url)


def test_what_was_begun_otherwise_is_aborted(
    s3: S3, url: str, ask: Asking, convert: Converting, right: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(8, s3, patch)
        convert(ask(url, layout="single_file"))
    assert convert(ask(url, "fp8", layout="single_file")).resumed["tensors"] == 0
    assert same(stored(url), right("fp8", layout="single_file"))
    assert not S3Writer().uploads(url)


def test_a_source_with_other_values_starts_anew(
    s3: S3,
    url: str,
    ask: Asking,
    convert: Converting,
    tiny_source: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Parts that were sent hold weights of the first source, under the same header."""
    source = tmp_path / "changing"
    shutil.copytree(tiny_source, source)
    recipe, here = (
        ask(place, layout="single_file") | {"source": {"path": str(source)}} for place in (url, tmp_path / "h")
    )
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(8, s3, patch)
        convert(recipe)
    for file in source.glob("*.safetensors"):
        data = bytearray(file.read_bytes())
        data[8 + int.from_bytes(data[:8], "little") :: 64] = bytes(
            len(data[8 + int.from_bytes(data[:8], "little") :: 64])
        )
        file.write_bytes(data)
    result = convert(recipe)
    assert result.resumed["tensors"] == 0
    assert any("is another than it was" in warning for warning in result.warnings)
    convert(here)
    assert same(stored(url), local(tmp_path / "h"))
    assert not S3Writer().uploads(url)


def test_some_faults_of_the_net(s3: S3, url: str, ask: Asking, convert: Converting, right: Any) -> None:
    faults = [("503", SEND), ("lost", SEND), ("lost", COMPLETE), ("slow", BEGIN), ("cut", r"^GET .*uploadId")]
    for kind, asked in [*faults, ("cut", r"^GET .*list-type"), ("503", r"^PUT .*manifest")]:
        s3.fail(kind, asked)
    convert(ask(url))
    assert [fault.times for fault in s3.faults] == [0] * 7
    assert same(stored(url), right())


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["503", "cut", "lost", "slow"])
@pytest.mark.parametrize("asked", [SEND, COMPLETE, BEGIN, r"^PUT .*manifest", r"^GET "])
def test_faults_of_the_net(
    kind: str, asked: str, s3: S3, url: str, ask: Asking, convert: Converting, right: Any
) -> None:
    s3.fail(kind, asked, 2)
    convert(ask(url))
    assert s3.faults[0].times < 2
    assert same(stored(url), right())


@pytest.mark.parametrize(
    ("kind", "asked"),
    [("gone", SEND), ("gone", r"^GET .*uploadId"), ("gone", COMPLETE), ("etag", SEND), ("503", r"^GET .*uploadId")],
)
def test_an_upload_that_is_lost_is_made_again(
    kind: str, asked: str, s3: S3, url: str, ask: Asking, convert: Converting, right: Any
) -> None:
    s3.fail(kind, asked)
    convert(ask(url))
    assert s3.faults[0].times == 0
    assert same(stored(url), right())
    assert sum("tiny.manifest.json" in line for line in s3.asked(r"^PUT ")) == 1


def test_an_upload_that_is_lost_again_and_again(s3: S3, url: str, ask: Asking, convert: Converting) -> None:
    s3.fail("gone", SEND, 1000)
    with pytest.raises(ConversionError, match=r"gone, 3 times; look after the store"):
        convert(ask(url))


def test_a_store_that_is_down_is_told(s3: S3, url: str, ask: Asking, convert: Converting, right: Any) -> None:
    s3.fail("503", SEND, 1000)
    with pytest.raises(ConversionError, match=r"the store does not answer as it should, also after 6 attempts .*again"):
        convert(ask(url))
    assert stored(url) == {}
    s3.faults.clear()
    convert(ask(url))
    assert same(stored(url), right())


def test_an_upload_that_expired_between_two_runs(
    s3: S3, url: str, ask: Asking, convert: Converting, right: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(10, s3, patch)
        convert(ask(url))
    uploads = S3Writer().uploads(url)
    S3Writer().abort(uploads[0].url, uploads[0].id)
    assert convert(ask(url)).resumed["tensors"] > 0
    assert same(stored(url), right())


def test_a_part_that_the_disk_gave_back_otherwise_is_made_again(
    s3: S3, url: str, ask: Asking, convert: Converting, right: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, reads = system.read_at, 0

    def read_at(fd: int, into: memoryview, at: int) -> int:
        nonlocal reads
        count = real(fd, into, at)
        if threading.current_thread().name.startswith("upload"):
            reads += 1
            if reads == 3:
                into[len(into) // 2] ^= 1
        return count

    monkeypatch.setattr(system, "read_at", read_at)
    convert(ask(url))
    assert reads > 3
    assert same(stored(url), right())


def test_files_of_nobody_and_of_others(
    s3: S3, url: str, ask: Asking, convert: Converting, right: Any, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.write_bytes(b"the user's own")
    S3Writer().put(f"{url}/tiny_block_0.safetensors", str(mine))
    names = right()
    (taken,) = [name for name in names if "0" in name and name.endswith(".safetensors")]
    S3Writer().put(f"{url}/{taken}", str(mine))
    with pytest.raises(PlanError, match=rf"{re.escape(taken)}: exists and is not ours"):
        convert(ask(url))
    S3Writer().delete(f"{url}/{taken}")
    S3Writer().put(f"{url}/notes.txt", str(mine))
    convert(ask(url))
    with pytest.raises(PlanError, match=r"output\.overwrite: true"):
        convert(ask(url, "fp8", layout="single_file"))
    s3.log.clear()
    convert(ask(url, "fp8", layout="single_file", overwrite=True))
    expected = right("fp8", layout="single_file", overwrite=True)
    there = stored(url)
    assert there.pop("notes.txt") == b"the user's own"
    assert there.pop("tiny_block_0.safetensors", b"") in (b"", b"the user's own")
    assert same(there, expected)
    asked = s3.asked(rf"{COMPLETE}|^DELETE|^PUT .*manifest")
    assert asked[0].startswith("DELETE")
    assert "tiny.manifest.json" in asked[0]
    assert "tiny.manifest.json" in asked[-1]


def test_a_finished_output_that_is_met_again(
    s3: S3, url: str, ask: Asking, convert: Converting, tmp_path: Path, plugins: Registry
) -> None:
    convert(ask(url))
    whole = stored(url)
    weights = [name for name in sorted(whole) if name.endswith(".safetensors")]

    copied = tmp_path / "copied"  # by another tool: in one part, so the ETag is another
    copied.write_bytes(whole[weights[0]])
    S3Writer().put(f"{url}/{weights[0]}", str(copied))
    assert convert(ask(url)).status == "already done"

    content = bytearray(whole[weights[0]])
    content[-1] ^= 1
    copied.write_bytes(content)
    S3Writer().put(f"{url}/{weights[0]}", str(copied))
    S3Writer().delete(f"{url}/{weights[1]}")
    with converter_core.make_plan(ask(url), plugins) as plan:
        assert plan.outputs[0].status == "check"
    found = {problem.file for problem in converter_core.verify(url, registry=plugins).problems}
    assert found == {weights[0], weights[1]}
    s3.log.clear()
    result = convert(ask(url))
    assert result.status == "done"
    assert any(weights[0] in warning for warning in result.warnings)
    assert same(stored(url), whole)
    assert {line.split("?")[0].rpartition("/")[2] for line in s3.asked(SEND)} == set(weights[:2])


def test_verify_and_inspect(
    s3: S3, url: str, ask: Asking, convert: Converting, plugins: Registry, tiny_source: Path
) -> None:
    convert(ask(url, layout="single_file"))
    report = converter_core.verify(url, tiny_source, registry=plugins)
    assert (report.status, report.manifest) == ("ok", f"{url}/tiny.manifest.json")
    assert len(report.weights) == 6
    assert converter_core.verify(f"{url}/tiny.manifest.json", registry=plugins).ok
    assert converter_core.verify(f"{url}/tiny.safetensors", registry=plugins).ok
    seen = converter_core.inspect(url, plugins)
    assert seen.model == "tiny"
    assert seen.quantized is not None
    assert seen.quantized.target == "plain"


def test_a_plan_writes_nothing_and_knows_the_disk(
    s3: S3, url: str, ask: Asking, plugins: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with converter_core.make_plan(ask(url), plugins) as plan:
        (output,) = plan.outputs
        told = plan.as_dict()
    assert (output.status, told["output"]) == ("new", url)
    assert Path(told["state_folder"]).parent == tmp_path / "state/model-converter"
    assert s3.asked(CHANGES) == []
    assert state_of(tmp_path) == []
    other = ask(url, state_folder=str(tmp_path / "elsewhere"))
    with converter_core.make_plan(other, plugins) as plan:
        assert plan.outputs[0].path.parent == tmp_path / "elsewhere"
        assert plan.outputs[0].fingerprint == output.fingerprint
    with pytest.raises(ConverterError, match=r"output\.state_folder: is for an output on a URL"):
        converter_core.make_plan(ask(tmp_path / "out", state_folder="x"), plugins)
    monkeypatch.setattr("converter_core.output.surroundings.free_disk", lambda output: 100)
    with converter_core.make_plan(ask(url), plugins) as plan:
        assert "or choose another output.state_folder" in plan.problems[0]


def test_several_outputs_of_one_read(
    s3: S3, url: str, ask: Asking, convert: Converting, right: Any, plugins: Registry, tmp_path: Path
) -> None:
    recipe = ask(url)
    sections = {key: recipe.pop(key) for key in ("quantization", "target", "output")}
    here = {**sections, "output": {**sections["output"], "path": str(tmp_path / "here")}}
    there = {**sections, "quantization": {"method": "fp8"}}
    recipe["outputs"] = [{**sections, "output": {**sections["output"], "path": f"{url}/a"}}, here]
    recipe["outputs"].append({**there, "output": {**sections["output"], "path": f"{url}/b"}})
    s3.fail("gone", SEND)
    assert [one.status for one in convert(recipe).outputs] == ["done"] * 3
    assert outputs_in(url, plugins) == [f"{url}/a", f"{url}/b"]
    assert same(stored(f"{url}/a"), right())
    assert same(stored(f"{url}/b"), right("fp8"))
    assert same(local(tmp_path / "here"), right())


def test_one_process_at_a_time(s3: S3, url: str, ask: Asking, convert: Converting, plugins: Registry) -> None:
    with converter_core.make_plan(ask(url), plugins) as plan:
        to = plan.outputs[0].destination
    with locked(to), pytest.raises(ConversionError, match="another conversion is writing there"):
        convert(ask(url))


def test_a_store_that_takes_whole_files(
    s3: S3, url: str, ask: Asking, convert: Converting, right: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe, put = ask(url.replace("s3://", "whole://")), []

    def fail(self: ObstoreWriter, url: str, path: str) -> str:
        if len(put) == 3:
            raise Interrupted
        put.append(url)
        return real(self, url, path)

    real = ObstoreWriter.put
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(ObstoreWriter, "put", fail)
        convert(recipe)
    assert "tiny.manifest.json" not in stored(url)
    assert convert(recipe).resumed["tensors"] > 0
    assert same(stored(url), right())
    assert state_of(tmp_path) == []
    s3.log.clear()
    assert convert(recipe).status == "already done"
    assert s3.asked(CHANGES) == []


def test_what_waits_lies_on_the_disk_and_no_more(
    s3: S3,
    url: str,
    ask: Asking,
    convert: Converting,
    plugins: Registry,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Room is given back in blocks of the file system, so this takes parts of 64 KiB."""
    rows = {"layers": 100, "rows": 1024}
    save_file(tensors(**rows), tmp_path / "model.safetensors")
    monkeypatch.setattr(S3Writer, "smallest_part", 64 << 10)
    s3.pause = 0.005
    recipe = ask(url, copy_metadata=False)
    recipe["source"]["path"] = str(tmp_path / "model.safetensors")
    with converter_core.make_plan(recipe, plugins) as plan:
        (output,) = plan.outputs
        needed = output.needed_disk
        assert needed < sum(output.files.values())
        state = output.path
    most = 0

    def look(event: Any) -> None:
        nonlocal most
        files = [path.stat().st_blocks * 512 for path in state.rglob("*") if path.is_file()]
        most = max(most, sum(files))

    convert(recipe, progress=look)
    assert 0 < most <= needed


def test_clean(
    s3: S3, url: str, ask: Asking, convert: Converting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(8, s3, patch)
        convert(ask(f"{url}/inside", layout="single_file"))
    writer = S3Writer()
    other = writer.begin(f"{url}/other.bin")

    def clean(*arguments: str) -> Any:
        assert cli.run(["clean", url, "--json", *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    told = clean()
    assert told["removed"] is False
    (one,) = told["unfinished"]
    assert (one["output"], one["name"], one["publishing"]) == (f"{url}/inside", "tiny", False)
    assert [upload["url"] for upload in one["uploads"]] == [f"{url}/inside/tiny.safetensors"]
    assert [upload["id"] for upload in told["others"]] == [other]
    assert cli.run(["clean", url]) == 1  # nobody to ask
    assert "add --yes" in capsys.readouterr().err
    assert len(writer.uploads(url)) == 2
    assert clean("--yes")["removed"] is True
    assert state_of(tmp_path) == []
    assert [upload.id for upload in writer.uploads(url)] == [other]
    assert clean("--yes")["removed"] is False
    assert clean("--yes", "--all")["removed"] is True
    assert not writer.uploads(url)


def test_clean_of_a_folder(
    ask: Asking, convert: Converting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    convert(ask(out, "fp8", name="finished"))
    finished = local(out)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(3, None, patch)
        convert(ask(out, layout="single_file", name="other", copy_metadata=False))
    (out / ".mine.partial").mkdir()
    (out / ".mine.partial" / "notes").write_text("the user's own")
    assert cli.run(["clean", str(out), "--yes"]) == 0
    assert "unfinished" in capsys.readouterr().out
    assert local(out) == finished | {".mine.partial/notes": b"the user's own"}
    assert cli.run(["clean", str(out / "nothing")]) == 1


def test_what_is_being_published_is_not_cleaned(
    s3: S3, url: str, ask: Asking, convert: Converting, right: Any, capsys: Any
) -> None:
    s3.fail("503", r"^PUT .*manifest", 100)
    with pytest.raises(ConversionError):
        convert(ask(url))
    assert cli.run(["clean", url, "--yes"]) == 0
    assert "run the same conversion again to finish it" in capsys.readouterr().out
    s3.faults.clear()
    convert(ask(url))
    assert same(stored(url), right())


def test_a_profile_is_enough_for_writing_and_for_reading(
    s3: S3, url: str, ask: Asking, convert: Converting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without variables that hold a key, both sides sign with that of the profile."""
    file = tmp_path / "credentials"
    file.write_text("[mine]\naws_access_key_id = of-the-profile\naws_secret_access_key = secret\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    convert(ask(url))
    assert cli.run(["verify", url]) == 0
    assert s3.keys == {"of-the-profile"}
