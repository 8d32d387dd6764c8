"""Batches: one read for jobs of one source, the bytes of conversions alone, and failures that stay their job's."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from converter_core import ConversionError, convert, convert_batch
from converter_core.checkpoint.files import TensorFile
from converter_core.engine import batch as module


def job(source: Path, output: Path, method: str = "int8", **target: Any) -> dict[str, Any]:
    return {
        "source": {"path": str(source)},
        "quantization": {"method": method},
        "output": {"path": str(output)},
        "target": target,
        "performance": {"device": "cpu", "num_workers": 1},
    }


def contents(folder: Path) -> dict[str, Any]:
    """Of every file; a manifest without the folder that it tells, and without its own checksum."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        if path.name.endswith(".manifest.json"):
            told = json.loads(path.read_bytes())
            del told["recipe"]["output"]["path"], told["crc32"]
            found[path.relative_to(folder).as_posix()] = told
        elif path.is_file():
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def tensors_of(source: Path) -> dict[str, torch.Tensor]:
    files = sorted(source.glob("*.safetensors"))
    return {key: tensor for file in files for key, tensor in load_file(file).items()}


@pytest.fixture
def broken(wan_source: Path, tmp_path: Path) -> Path:
    """A checkpoint of one file that ends in the middle of a tensor."""
    whole = {
        key: tensor for file in sorted(wan_source.glob("*.safetensors")) for key, tensor in load_file(file).items()
    }
    whole["head.head.weight"] = torch.full_like(whole["head.head.weight"], torch.nan)
    save_file(whole, tmp_path / "broken.safetensors")
    return tmp_path / "broken.safetensors"


def test_each_output_is_what_a_conversion_of_its_own_gives(wan_source, tmp_path, monkeypatch):
    asked = {
        "int8": job(wan_source, tmp_path / "b/int8"),
        "nvfp4": job(wan_source, tmp_path / "b/nvfp4", "nvfp4", layout="by_block"),
        "plain": job(wan_source, tmp_path / "b/plain", "none", format="plain", layout="chunked", chunk_size=40),
    }
    reads: Counter[str] = Counter()
    read = TensorFile.read

    def counted(self: Any, key: str, *args: Any) -> None:
        reads[key] += 1
        read(self, key, *args)

    monkeypatch.setattr(TensorFile, "read", counted)
    result = convert_batch(list(asked.values()))
    together = reads.total()
    assert [(one.name, one.state) for one in result.jobs] == [(name, "done") for name in asked]
    assert result.jobs[0].read_with == ("nvfp4", "plain")
    assert [Path(one.outputs[0].output).name for one in result.jobs] == list(asked)
    reads.clear()
    for name, recipe in asked.items():
        alone = {**recipe, "output": {"path": str(tmp_path / "alone" / name)}}
        convert(alone)
        assert contents(tmp_path / "alone" / name) == contents(tmp_path / "b" / name), name
    assert together * 2 < reads.total()


def test_what_is_done_is_skipped_and_what_is_missing_made_again(wan_source, tmp_path):
    asked = [job(wan_source, tmp_path / "a"), job(wan_source, tmp_path / "b", "fp8")]
    convert_batch(asked)
    before = contents(tmp_path)
    assert [one.state for one in convert_batch(asked).jobs] == ["skipped", "skipped"]
    (lost,) = (tmp_path / "b").glob("*.safetensors")
    lost.unlink()
    assert [one.state for one in convert_batch(asked).jobs] == ["skipped", "done"]
    assert contents(tmp_path).keys() == before.keys()
    assert lost.read_bytes() == before[lost.relative_to(tmp_path).as_posix()]


def test_a_job_that_is_refused_keeps_no_other_from_being_done(wan_source, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/wan_dit_int8.safetensors").write_bytes(b"somebody's")
    states: list[tuple[int, str]] = []
    asked = [
        job(tmp_path / "nowhere", tmp_path / "a"),
        job(wan_source, tmp_path / "taken"),
        job(wan_source, tmp_path / "c", "fp8"),
        job(wan_source, tmp_path / "d", "mxfp4"),
    ]
    result = convert_batch(asked, changed=lambda number, job: states.append((number, job.state)))
    assert [one.state for one in result.jobs] == ["failed", "failed", "done", "done"]
    assert result.failed == result.jobs[:2]
    assert "nowhere: cannot be opened" in str(result.jobs[0].error)
    assert "exists and is not ours" in str(result.jobs[1].error)
    assert result.jobs[2].read_with == ("d",)
    assert [state for number, state in states if number == 3] == ["running", "running", "done"]
    assert (tmp_path / "taken/wan_dit_int8.safetensors").read_bytes() == b"somebody's"


def test_what_fails_under_way_is_told_of_each_job(broken, wan_source, tmp_path):
    asked = [job(broken, tmp_path / "a"), job(broken, tmp_path / "b", "fp8"), job(wan_source, tmp_path / "c")]
    result = convert_batch(asked)
    assert [one.state for one in result.jobs] == ["failed", "failed", "done"]
    for one in result.failed:
        assert isinstance(one.error, ConversionError)
        assert "head.head.weight': nan at [0, 0]" in str(one.error)
    assert not [path for path in tmp_path.glob("[ab]/*") if not path.name.startswith(".")]


def test_one_of_a_group_that_fails_under_way_is_left_out(wan_source, tmp_path):
    """A value that fits into bfloat16 and not into float16."""
    whole = {
        key: tensor for file in sorted(wan_source.glob("*.safetensors")) for key, tensor in load_file(file).items()
    }
    whole["head.head.weight"][0, 0] = 1e6
    save_file(whole, tmp_path / "large.safetensors")
    asked = [job(tmp_path / "large.safetensors", tmp_path / kind, dtype=kind) for kind in ("float16", "bfloat16")]
    result = convert_batch(asked)
    assert [one.state for one in result.jobs] == ["failed", "done"]
    assert "does not fit into F16" in str(result.jobs[0].error)


def test_a_bug_is_one_jobs_too(wan_source, tmp_path, monkeypatch):
    real = module.convert

    def convert_or_not(plans: Any, **more: Any) -> Any:
        if plans[0].outputs[0].path.name == "a":
            raise ZeroDivisionError("a bug")
        return real(plans, **more)

    monkeypatch.setattr(module, "convert", convert_or_not)
    other = {**job(wan_source, tmp_path / "b"), "performance": {"device": "cpu", "num_workers": 2}}
    result = convert_batch([job(wan_source, tmp_path / "a"), other])
    assert [one.state for one in result.jobs] == ["failed", "done"]
    assert result.jobs[0].as_dict()["error"] == {
        "kind": "ZeroDivisionError",
        "problems": ["ZeroDivisionError: a bug"],
    }


def test_side_by_side(wan_source, tmp_path):
    """Two conversions at a time: what each reports arrives one by one, and a failure stops nobody."""
    asked = []
    for number in range(3):
        recipe = job(wan_source, tmp_path / f"b/{number}")
        recipe["performance"]["num_workers"] = number + 1  # not to be merged
        asked.append(recipe)
    asked.append(job(tmp_path / "nowhere", tmp_path / "b/x"))
    seen: Counter[str] = Counter()
    result = convert_batch(asked, at_once=2, progress=lambda name, event: seen.update([name]))
    assert [one.state for one in result.jobs] == ["done", "done", "done", "failed"]
    assert set(seen) == {"0", "1", "2"}
    first = contents(tmp_path / "b/0")
    assert first == contents(tmp_path / "b/1") == contents(tmp_path / "b/2")


def test_an_interrupt_ends_those_side_by_side(wan_source, tmp_path):
    asked = []
    for number in range(4):
        recipe = job(wan_source, tmp_path / f"b/{number}")
        recipe["performance"]["num_workers"] = number + 1
        asked.append(recipe)
    states: dict[int, str] = {}

    def changed(number: int, job: Any) -> None:
        states[number] = job.state

    def interrupt(name: str, event: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_batch(asked, at_once=2, changed=changed, progress=interrupt)
    assert set(states.values()) == {"pending"}
    assert [one.state for one in convert_batch(asked).jobs] == ["done"] * 4
