"""Several outputs of one read, each what a conversion of its own gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import converter_core
from converter_core.checkpoint.checkpoint import Checkpoint
from converter_core.engine.output_run import OutputRun
from converter_plugins.quantizers.int8 import Int8

from .conftest import tensors

PLANS: Mapping[str, dict[str, Any]] = {
    "rows": {"quantization": {"method": "int8"}, "target": {"format": "plain", "layout": "chunked", "chunk_size": 2}},
    "blocks": {"quantization": {"method": "nvfp4"}, "target": {"format": "plain"}},
    "copy": {"quantization": {"method": "none"}, "target": {"format": "plain", "dtype": "float32"}},
}


def single(source: Path, output: Path, name: str) -> dict[str, Any]:
    return {
        "source": {"path": str(source)},
        **PLANS[name],
        "output": {"path": str(output), "name": name},
        "performance": {"device": "cpu", "num_workers": 2},
    }


def several(source: Path, root: Path) -> dict[str, Any]:
    return {
        "source": {"path": str(source)},
        "outputs": [{**PLANS[name], "output": {"path": str(root / name), "name": name}} for name in PLANS],
        "performance": {"device": "cpu", "num_workers": 2},
    }


def weight_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(".manifest.json")}


def test_each_output_is_what_its_own_conversion_gives(
    load: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = load()
    for name in PLANS:
        converter_core.convert(single(source, tmp_path / "alone" / name, name), registry=registry)
    read: Counter[str] = Counter()
    original = Checkpoint.read

    def count(self: Checkpoint, key: str, start: int, into: memoryview) -> None:
        read[key] += len(into)
        original(self, key, start, into)

    monkeypatch.setattr(Checkpoint, "read", count)
    with converter_core.make_plan(several(source, tmp_path / "together"), registry) as plan:
        expected = {key: spec.nbytes for key, spec in plan.checkpoint.tensors.items()}
        result = converter_core.convert(plan)
    assert [output.status for output in result.outputs] == ["done"] * 3
    assert dict(read) == expected
    monkeypatch.undo()
    for name in PLANS:
        assert weight_files(tmp_path / "together" / name) == weight_files(tmp_path / "alone" / name)
        report = converter_core.verify(tmp_path / "together" / name, source, registry=registry)
        assert report.ok, report.problems


def test_a_resume_does_what_is_missing_of_each(
    load: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = load()
    done = OutputRun.done
    finished: list[str] = []

    def stop_at_the_third(self: OutputRun, job: Any, export: Any, crc32: Any, source: str) -> None:
        if len(finished) == 4:
            raise KeyboardInterrupt
        done(self, job, export, crc32, source)
        finished.append(export.quantizer.name)

    monkeypatch.setattr(OutputRun, "done", stop_at_the_third)
    recipe = several(source, tmp_path / "o")
    recipe["performance"]["num_workers"] = 1
    with pytest.raises(KeyboardInterrupt):
        converter_core.convert(recipe, registry=registry)
    assert not list((tmp_path / "o").glob("*/*.safetensors"))
    monkeypatch.undo()
    result = converter_core.convert(recipe, registry=registry)
    assert sum(output.resumed["tensors"] for output in result.outputs) == 4
    for name in PLANS:
        converter_core.convert(single(source, tmp_path / "alone" / name, name), registry=registry)
        assert weight_files(tmp_path / "o" / name) == weight_files(tmp_path / "alone" / name)
    again = converter_core.convert(recipe, registry=registry)
    assert [output.status for output in again.outputs] == ["already done"] * 3


def test_a_finished_output_is_not_made_again(load: Any, source: Path, tmp_path: Path) -> None:
    registry = load()
    converter_core.convert(several(source, tmp_path / "o"), registry=registry)
    kept = (tmp_path / "o" / "rows" / "rows.manifest.json").stat().st_mtime_ns
    for path in (tmp_path / "o" / "copy").iterdir():
        path.unlink()
    result = converter_core.convert(several(source, tmp_path / "o"), registry=registry)
    assert [output.status for output in result.outputs] == ["already done", "already done", "done"]
    assert (tmp_path / "o" / "rows" / "rows.manifest.json").stat().st_mtime_ns == kept


def test_what_one_output_refuses_stops_all(load: Any, source: Path, tmp_path: Path) -> None:
    recipe = several(source, tmp_path / "o")
    recipe["outputs"][1]["target"] = {"format": "lightx2v"}
    recipe["outputs"][1]["quantization"]["rules"] = [{"match": "*.0.up", "method": "int8"}]
    with pytest.raises(converter_core.PlanError, match="reads one scheme for all linear weights"):
        converter_core.convert(recipe, registry=load())
    assert not (tmp_path / "o").exists()


def test_a_rule_takes_the_names_of_the_model_and_of_the_target(load: Any, source: Path, tmp_path: Path) -> None:
    recipe = single(source, tmp_path / "o", "rows")
    recipe["quantization"]["rules"] = [{"match": "layers.0.*", "method": "none"}]
    with converter_core.make_plan(recipe, load()) as plan:
        assert [(rule.match, rule.matched) for rule in plan.outputs[0].rules] == [
            ("layers.0.*", 2),
            ("(target_modules)", 1),
        ]


class WholeWeights(Int8):
    name = "whole"
    row_block = None


@pytest.mark.parametrize("rows", [192, 128, 100])
def test_one_output_wants_whole_weights_and_another_blocks_of_rows(
    rows: int, load: Any, source: Path, tmp_path: Path
) -> None:
    """LightX2V's rows go by 128."""
    save_file(tensors(rows=rows), source / "model.safetensors")
    registry = load(quantizers=[WholeWeights])
    recipe = several(source, tmp_path / "o")
    recipe["outputs"] = [
        {
            "quantization": {"method": method},
            "target": {"format": target},
            "output": {"path": str(tmp_path / "o" / method), "name": "x"},
        }
        for method, target in (("whole", "plain"), ("int8", "lightx2v"))
    ]
    converter_core.convert(recipe, registry=registry)
    for method in ("whole", "int8"):
        report = converter_core.verify(tmp_path / "o" / method, source, registry=registry)
        assert report.ok, report.problems


@pytest.mark.parametrize(("other", "calls"), [({}, 1), ({"symmetric": False}, 2)])
def test_what_two_outputs_share_is_made_once(
    other: dict[str, Any], calls: int, load: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = load()
    made: Counter[str] = Counter()
    quantize = Int8.quantize

    def count(self: Int8, weight: Any, **given: Any) -> Any:
        if weight.is_cpu and weight.any():  # neither a dry run nor its zeros
            made["weights"] += 1
        return quantize(self, weight, **given)

    recipe = several(source, tmp_path / "o")
    recipe["outputs"] = [
        {
            "quantization": {"method": "int8", "options": options},
            "target": {"format": "plain", "layout": layout},
            "output": {"path": str(tmp_path / "o" / layout), "name": "rows"},
        }
        for layout, options in (("single_file", {}), ("by_block", other))
    ]
    with converter_core.make_plan(recipe, registry) as plan:
        monkeypatch.setattr(Int8, "quantize", count)
        converter_core.convert(plan)
    monkeypatch.undo()
    assert made["weights"] == 2 * calls
    for folder in ("single_file", "by_block"):
        report = converter_core.verify(tmp_path / "o" / folder, source, registry=registry)
        assert report.ok, report.problems
