"""A source with another inode or other times: what is finished is compared with it by checksums."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from converter_core import Registry, convert, make_plan, verify
from converter_core.engine.source_sums import SourceSums
from converter_core.errors import PlanError
from converter_core.native.checksum import Checksum
from converter_core.output.journal import NAME, Journal
from converter_core.output.manifest import load_manifest

from .conftest import Asking
from .test_met_again import Stop, contents, stopped_after

WEIGHTS = {"norm.weight", *(f"layers.{number}.up.{part}" for number in (0, 1) for part in ("weight", "bias"))}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def source(tiny_source: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    shutil.copytree(tiny_source, folder)
    return folder


@pytest.fixture
def recipe(ask: Asking, source: Path) -> Callable[..., dict[str, Any]]:
    def make(method: str = "int8", **given: Any) -> dict[str, Any]:
        return ask(method, **given) | {"source": {"path": str(source)}}

    return make


@contextmanager
def stopped_after_weights(count: int) -> Iterator[list[str]]:
    """A run stops when so many weights are done; which they were."""
    real, done_ = Journal.done, []

    def done(self: Journal, weight: str, crc32: Any, source: str) -> None:
        if len(done_) == count:
            raise Stop
        real(self, weight, crc32, source)
        done_.append(weight)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Journal, "done", done)
        yield done_


@contextmanager
def comparisons() -> Iterator[list[str]]:
    """Weights whose sources are read again."""
    real, seen = SourceSums._read, []

    def read(self: SourceSums, bound: Any, sums: Any) -> None:
        seen.append(bound.ref.key)
        real(self, bound, sums)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SourceSums, "_read", read)
        yield seen


def copied(source: Path) -> None:
    """The same content in other files, at another time."""
    shutil.copytree(source, source.with_name("copy"))
    shutil.rmtree(source)
    source.with_name("copy").rename(source)
    for path in source.rglob("*"):
        os.utime(path, ns=(0, 123_456_789))


def change(source: Path, names: set[str]) -> None:
    """Other values, the same header and size, the time set back."""
    file = source / "model.safetensors"
    status, tensors = file.stat(), load_file(file)
    for name in names:
        tensors[name][-1] *= 2
    header = file.read_bytes()[:200]
    save_file(tensors, file, {"format": "pt"})
    assert file.read_bytes()[:200] == header
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def weights_of(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name.endswith(".safetensors")}


def straight(recipe: dict[str, Any], plugins: Registry, tmp_path: Path) -> dict[str, bytes]:
    """The weights of an undisturbed run."""
    other = tmp_path / "straight"
    shutil.rmtree(other, ignore_errors=True)
    convert({**recipe, "output": recipe["output"] | {"path": str(other)}}, registry=plugins)
    return weights_of(contents(other))


def test_a_copied_source_is_compared_and_the_run_goes_on(
    recipe: Any, plugins: Registry, out: Path, source: Path, tmp_path: Path
) -> None:
    expected = straight(recipe(), plugins, tmp_path)
    with stopped_after_weights(3) as done:
        convert(recipe(), registry=plugins)
    copied(source)
    with make_plan(recipe(), plugins) as plan:
        assert plan.outputs[0].status == "resume"
        assert any("model.safetensors may be another source" in warning for warning in plan.warnings)
    with comparisons() as read:
        result = convert(recipe(), registry=plugins)
    assert sorted(read) == sorted(done)
    assert result.resumed["tensors"] == 3
    assert not any("made again" in warning for warning in result.warnings)
    assert weights_of(contents(out)) == expected
    assert verify(out, registry=plugins, against=source).ok


def test_the_same_files_are_not_read_again(recipe: Any, plugins: Registry) -> None:
    with stopped_after_weights(3):
        convert(recipe(), registry=plugins)
    with comparisons() as read:
        assert convert(recipe(), registry=plugins).resumed["tensors"] == 3
    assert read == []


def test_what_differs_is_made_again_and_named(
    recipe: Any, plugins: Registry, out: Path, source: Path, tmp_path: Path
) -> None:
    """Though size, header and modification time are the same."""
    with stopped_after_weights(4) as done:
        convert(recipe(), registry=plugins)
    change(source, {done[1], *(WEIGHTS - {*done})})
    result = convert(recipe(), registry=plugins)
    assert result.resumed["tensors"] == 3
    (warning,) = (warning for warning in result.warnings if "made again" in warning)
    assert f"the source of '{done[1]}' is another than it was" in warning
    assert weights_of(contents(out)) == straight(recipe(), plugins, tmp_path)


def test_another_source_starts_anew(recipe: Any, plugins: Registry, out: Path, source: Path, tmp_path: Path) -> None:
    with stopped_after_weights(3):
        convert(recipe(), registry=plugins)
    change(source, WEIGHTS)
    with stopped_after_weights(0):
        convert(recipe(), registry=plugins)
    journal = (out / ".tiny.partial" / NAME).read_text()
    assert '"weight"' not in journal  # it is a new one
    assert '"stale"' not in journal
    assert convert(recipe(), registry=plugins).resumed["tensors"] == 0
    assert weights_of(contents(out)) == straight(recipe(), plugins, tmp_path)


def test_what_was_compared_is_not_compared_again(
    recipe: Any, plugins: Registry, out: Path, source: Path, tmp_path: Path
) -> None:
    """And what was found to be made of another source is not believed after one more stop."""
    with stopped_after_weights(4) as done:
        convert(recipe(), registry=plugins)
    change(source, {done[2]})
    with stopped_after_weights(0):
        convert(recipe(), registry=plugins)
    with comparisons() as read:
        assert convert(recipe(), registry=plugins).resumed["tensors"] == 3
    assert read == []
    assert weights_of(contents(out)) == straight(recipe(), plugins, tmp_path)


def test_back_to_the_first_source(recipe: Any, plugins: Registry, out: Path, source: Path, tmp_path: Path) -> None:
    expected = straight(recipe(), plugins, tmp_path)
    with stopped_after_weights(3) as done:
        convert(recipe(), registry=plugins)
    first = tmp_path / "first"
    source.rename(first)
    shutil.copytree(first, source)
    change(source, {done[0]})
    with stopped_after_weights(1):
        convert(recipe(), registry=plugins)
    shutil.rmtree(source)
    first.rename(source)
    convert(recipe(), registry=plugins)
    assert weights_of(contents(out)) == expected


def test_the_comparison_is_durable_before_more_is_done(recipe: Any, plugins: Registry, source: Path) -> None:
    """Or after a power loss weights of the second source might be taken for weights of the first."""
    with stopped_after_weights(2):
        convert(recipe(), registry=plugins)
    copied(source)
    seen: list[str] = []
    fsync, write = os.fsync, os.write

    def synced(fd: int) -> None:
        seen.append(f"sync {Path(f'/proc/self/fd/{fd}').readlink().name}")
        fsync(fd)

    def written(fd: int, data: bytes) -> int:
        seen.extend(kind for kind in ("identity", "weight") if f'"{kind}":'.encode() in data)
        return write(fd, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", synced)
        patch.setattr(os, "write", written)
        convert(recipe(), registry=plugins)
    assert seen[:3] == ["identity", f"sync {NAME}", "weight"]


def test_an_interrupted_publication_of_a_copied_source_is_finished(
    recipe: Any, plugins: Registry, out: Path, source: Path, tmp_path: Path
) -> None:
    with stopped_after(1):
        convert(recipe(), registry=plugins)
    (published,) = (path for path in out.iterdir() if path.suffix == ".safetensors")
    inode = published.stat().st_ino
    copied(source)
    assert convert(recipe(), registry=plugins).resumed["tensors"] == 5
    assert published.stat().st_ino == inode
    assert weights_of(contents(out)) == straight(recipe(), plugins, tmp_path)


def test_what_another_source_published_needs_agreement(
    recipe: Any, plugins: Registry, out: Path, source: Path, tmp_path: Path
) -> None:
    with stopped_after(1):
        convert(recipe(), registry=plugins)
    (published,) = (path for path in out.iterdir() if path.suffix == ".safetensors")
    before = published.read_bytes()
    change(source, set(load_file(source / "model.safetensors")))
    with pytest.raises(PlanError, match=rf"another source.*published '{published.name}'.*overwrite"):
        convert(recipe(), registry=plugins)
    assert published.read_bytes() == before
    convert(recipe(overwrite=True), registry=plugins)
    assert weights_of(contents(out)) == straight(recipe(), plugins, tmp_path)
    assert verify(out, registry=plugins, against=source).ok


def test_a_finished_output_of_a_copied_source_is_done(recipe: Any, plugins: Registry, out: Path, source: Path) -> None:
    convert(recipe(), registry=plugins)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in out.rglob("*")}
    copied(source)
    with make_plan(recipe(), plugins) as plan:
        assert plan.outputs[0].status == "check"
        assert any("other modification times" in warning for warning in plan.warnings)
    with comparisons() as read:
        assert convert(recipe(), registry=plugins).status == "already done"
    assert {*read} == WEIGHTS
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in out.rglob("*")} == before


def test_a_finished_output_of_another_source_needs_agreement(
    recipe: Any, plugins: Registry, out: Path, source: Path, tmp_path: Path
) -> None:
    """Of another fine-tune for instance: names, shapes, sizes and headers are the same."""
    convert(recipe(), registry=plugins)
    before = contents(out)
    change(source, {"layers.1.up.bias"})
    os.utime(source / "model.safetensors", ns=(1, 2))
    with pytest.raises(PlanError, match=r"another source with the same headers: 'layers.1.up.bias' differ.*overwrite"):
        convert(recipe(), registry=plugins)
    assert contents(out) == before
    assert convert(recipe(overwrite=True), registry=plugins).status == "done"
    assert weights_of(contents(out)) == straight(recipe(), plugins, tmp_path) != weights_of(before)
    assert verify(out, registry=plugins, against=source).ok
    assert convert(recipe(), registry=plugins).status == "already done"


def test_a_damaged_output_is_not_mended_from_another_source(
    recipe: Any, plugins: Registry, out: Path, source: Path
) -> None:
    convert(recipe(), registry=plugins)
    whole = weights_of(contents(out))
    (out / "block_1.safetensors").unlink()
    copied(source)
    assert convert(recipe(), registry=plugins).status == "done"
    assert weights_of(contents(out)) == whole
    (out / "block_1.safetensors").unlink()
    change(source, {"layers.1.up.weight"})
    os.utime(source / "model.safetensors", ns=(1, 2))
    with pytest.raises(PlanError, match="another source"):
        convert(recipe(), registry=plugins)


def test_a_manifest_without_checksums_of_sources_is_of_another_source(
    recipe: Any, plugins: Registry, out: Path, source: Path
) -> None:
    from converter_core.output.manifest import dump

    convert(recipe(), registry=plugins)
    manifest = out / "tiny.manifest.json"
    content = load_manifest(manifest)
    del content["source"]["checksums"]["norm.weight"]
    manifest.write_bytes(dump({key: content[key] for key in content if key not in ("kind", "version", "crc32")}))
    copied(source)
    with pytest.raises(PlanError, match=r"same headers: 'norm\.weight' differ"):
        convert(recipe(), registry=plugins)


def test_neither_times_nor_places_are_in_the_fingerprint(recipe: Any, plugins: Registry, source: Path) -> None:
    with make_plan(recipe(), plugins) as plan:
        before = plan.outputs[0].fingerprint
    copied(source)
    with make_plan(recipe(), plugins) as plan:
        after = plan.outputs[0].fingerprint
    assert before.value == after.value
    assert before.identity != after.identity
    (source / "tokenizer" / "vocab.json").write_text('{"b": 0}')  # as long as it was
    with make_plan(recipe(), plugins) as plan:
        assert plan.outputs[0].fingerprint.value != before.value


@pytest.mark.parametrize("scheme", ["int8", "nvfp4", "none"])
@pytest.mark.parametrize("slab", [1, 1000, 5000, 1 << 20])
def test_the_checksums_are_of_all_that_was_read(
    recipe: Any, plugins: Registry, out: Path, source: Path, slab: int, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the tensors as they lie in the file, whatever the height of slabs and the number of passes."""
    data = (source / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    expected = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            one, all_ = Checksum(), Checksum()
            one.update(memoryview(data[8 + length :][begin:end]))
            all_.update(memoryview(one.value.to_bytes(8, "little")))
            expected[name] = f"{all_.value:016x}"
    monkeypatch.setattr("converter_plugins.devices.cpu.Cpu.slab_bytes", lambda self, device: slab)
    with comparisons() as read:
        convert(recipe(scheme), registry=plugins)
    assert read == []  # while it was converted, not once more
    assert load_manifest(out / "tiny.manifest.json")["source"]["checksums"] == expected
