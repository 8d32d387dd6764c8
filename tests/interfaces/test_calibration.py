"""One calibration file for a recipe: found by name, shared, checked, and part of what a run is made of."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import converter_core
from converter_core.planning.slab_size import cut

from .conftest import Tiny
from .test_joints import Plain

DIM = 64
NAMES = ("layers.0.up", "layers.1.up")
EXAMPLE = Path(__file__).parents[2] / "examples" / "calibrate_with_hooks.py"


def save(path: Path, *layers: str, inputs: dict[str, str] | None = None, columns: int = DIM, **given: Any) -> Path:
    """Statistics of made-up inputs."""
    tensors = {}
    for layer in layers:
        draw = torch.Generator().manual_seed(len(layer))
        tensors[f"{layer}.mean_square"] = torch.randn(columns, generator=draw).exp().square()
        tensors[f"{layer}.absmax"] = torch.tensor(3.14159)
    metadata = {"format": "calibration", "version": "1", "inputs": json.dumps(inputs or {})}
    save_file({**tensors, **given}, path, metadata)
    return path


def asked(recipe: Any, method: str, file: Path, **options: Any) -> dict[str, Any]:
    made: dict[str, Any] = recipe(method, "plain", options)
    made["source"]["calibration"] = str(file)
    return made


def test_every_scheme_finds_it(load: Any, recipe: Any, tmp_path: Path) -> None:
    """Of the second layer under the name of the first, whose input it shares."""
    file = save(tmp_path / "c.safetensors", "layers.0.up", inputs={"layers.1.up": "layers.0.up"})
    registry = load()
    for method in ("int8", "fp8", "mxfp4", "nvfp4"):
        written = {}
        for rule in ("mse", "weighted"):
            one = asked(recipe, method, file, scale_rule=rule)
            one["output"] = {"path": str(tmp_path / f"{method}_{rule}"), "name": "x"}
            converter_core.convert(one, registry=registry)
            written[rule] = load_file(tmp_path / f"{method}_{rule}" / "x.safetensors")
        key = "layers.1.up.weight_scale"
        assert not torch.equal(written["mse"][key].view(torch.uint8), written["weighted"][key].view(torch.uint8))
        if method == "nvfp4":
            absmax = [tensor for name, tensor in written["mse"].items() if name.endswith("input_absmax")]
            assert [tensor.item() for tensor in absmax] == [3.140625, 3.140625]


def test_what_is_refused(load: Any, recipe: Any, tmp_path: Path) -> None:
    registry = load()

    def refused(file: Path | None, words: str, **options: Any) -> None:
        one = asked(recipe, "fp8", file or tmp_path / "none", **(options or {"scale_rule": "weighted"}))
        if file is None:
            del one["source"]["calibration"]
        with pytest.raises(converter_core.ConverterError, match=words):
            converter_core.make_plan(one, registry)

    refused(None, "give the file as source.calibration")
    refused(tmp_path / "missing.safetensors", "missing.safetensors")
    refused(save(tmp_path / "a.safetensors", "layers.0.up"), "layers.1.up.weight has no statistics in the calibration")
    both = ("layers.0.up", "layers.1.up")
    refused(save(tmp_path / "b.safetensors", *both, columns=32), "has 64 columns, and layers.0.up.mean_square .* 32")
    odd = {"layers.0.up.mean_square": torch.ones(DIM, dtype=torch.float16)}
    refused(save(tmp_path / "c.safetensors", *both, **odd), "as F16 .*; needs F32 of 1 dimensions")
    file = tmp_path / "d.safetensors"
    save_file({"layers.0.up.mean_square": torch.ones(DIM)}, file, {"inputs": "[1"})
    refused(file, 'metadata "inputs" is no JSON object')


def test_a_number_that_is_none_stops_the_run(load: Any, recipe: Any, tmp_path: Path) -> None:
    odd = torch.ones(DIM)
    odd[9] = torch.nan
    both = ("layers.0.up", "layers.1.up")
    file = save(tmp_path / "c.safetensors", *both, **{"layers.1.up.mean_square": odd})
    with pytest.raises(converter_core.ConversionError, match=r"c.safetensors: 'layers.1.up.mean_square': nan at \[9\]"):
        converter_core.convert(asked(recipe, "fp8", file, scale_rule="weighted"), registry=load())


def test_its_content_is_part_of_the_fingerprint(load: Any, recipe: Any, tmp_path: Path) -> None:
    both = ("layers.0.up", "layers.1.up")
    marks = set()
    one = save(tmp_path / "one.safetensors", *both).read_bytes()
    other = save(tmp_path / "other.safetensors", *both, **{"layers.1.up.mean_square": torch.ones(DIM)}).read_bytes()
    for number, content in enumerate((one, one, other)):
        file = tmp_path / f"{number}" / "c.safetensors"
        file.parent.mkdir()
        file.write_bytes(content)
        with converter_core.make_plan(asked(recipe, "fp8", file, scale_rule="weighted"), load()) as plan:
            marks.add(plan.outputs[0].fingerprint.value)
    assert len(marks) == 2


def test_the_example_writes_one(load: Any, recipe: Any, source: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("calibrate_with_hooks", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.ModuleDict({"up": nn.Linear(DIM, 96)}) for _ in range(2))})
    inputs = torch.randn(300, DIM, generator=torch.Generator().manual_seed(0)) + 1

    def run(model: nn.Module) -> None:
        for begin in (0, 100, 200):
            for layer in model["layers"]:  # type: ignore[index]
                layer["up"](inputs[begin : begin + 100].view(2, 50, DIM))

    file = tmp_path / "c.safetensors"
    example.collect(model, run, file)
    found = load_file(file)
    assert found["layers.1.up.count"].item() == 300
    assert torch.allclose(found["layers.1.up.mean"], inputs.mean(0), atol=1e-5)
    assert torch.allclose(found["layers.1.up.mean_square"], inputs.square().mean(0), rtol=1e-5)
    assert found["layers.1.up.absmax"] == inputs.abs().max()
    assert found["layers.1.up.tokens"].shape == (300, DIM)
    converter_core.convert(asked(recipe, "nvfp4", file, scale_rule="weighted"), registry=load())


@pytest.mark.parametrize("method", ["int8", "fp8", "mxfp4", "nvfp4"])
def test_the_bias_takes_up_the_mean_error(load: Any, recipe: Any, source: Path, tmp_path: Path, method: str) -> None:
    mean = torch.randn(DIM, generator=torch.Generator().manual_seed(4)) + 2
    file = save(tmp_path / "c.safetensors", "layers.0.up", "layers.1.up", **{"layers.0.up.mean": mean})
    with pytest.raises(converter_core.PlanError, match=r"layers.1.up.weight has no mean in the calibration file"):
        converter_core.make_plan(asked(recipe, method, file, bias_correction=True), load())
    file = save(
        tmp_path / "c.safetensors", "layers.0.up", inputs={"layers.1.up": "layers.0.up"}, **{"layers.0.up.mean": mean}
    )
    registry = load()
    converter_core.convert(asked(recipe, method, file, bias_correction=True), registry=registry)
    report = converter_core.verify(tmp_path / "out", source, registry=registry)
    assert report.ok, report.problems
    before, written = load_file(source / "model.safetensors"), load_file(tmp_path / "out" / "tiny.safetensors")
    quantizer = registry.quantizers[method]()
    for layer in ("layers.0.up", "layers.1.up"):
        weight = before[f"{layer}.weight"]
        restored = quantizer.dequantize(quantizer.quantize(weight, **quantizer.observe(weight)))
        change = (weight.double() - restored.double()) @ mean.double()
        exact = before[f"{layer}.bias"].double() + change
        got = written[f"{layer}.bias"]
        assert (got.double() - exact).abs().max() <= exact.abs().max() * 2**-8
        assert not torch.equal(got, before[f"{layer}.bias"])


class Respelt(Tiny):
    key_formats = ("original", "other")

    def rename(self, name: str, key_format: str) -> str:
        return f"model.{name}" if key_format == "other" else name


class OtherNames(Plain):
    key_format = "other"


def test_a_bias_under_the_names_of_the_target(load: Any, recipe: Any, source: Path, tmp_path: Path) -> None:
    registry = load(models=[Respelt], targets=[OtherNames])
    file = save(tmp_path / "c.safetensors", *NAMES, **{f"{name}.mean": torch.ones(DIM) for name in NAMES})
    one = asked(recipe, "int8", file, bias_correction=True)
    one["target"] = {"format": OtherNames.name}
    converter_core.convert(one, registry=registry)
    assert "model.layers.0.up.bias" in load_file(tmp_path / "out" / "tiny.safetensors")
    report = converter_core.verify(tmp_path / "out", source, registry=registry)
    assert report.ok, report.problems


def test_a_rule_with_the_names_of_the_model_is_read_back(load: Any, recipe: Any, source: Path, tmp_path: Path) -> None:
    """One scale for the whole weight, as the default options of the scheme would not have it."""
    registry = load(models=[Respelt], targets=[OtherNames])
    one = recipe("int8", OtherNames.name)
    options = {"per_channel": False}
    one["quantization"]["rules"] = [{"match": "layers.0.*", "method": "fp8", "options": options}]
    converter_core.convert(one, registry=registry)
    report = converter_core.verify(tmp_path / "out", source, registry=registry)
    assert report.ok, report.problems
    assert [weight.format for weight in report.weights] == ["fp8", "int8"]


def test_layers_without_a_bias_are_told(load: Any, recipe: Any, source: Path, tmp_path: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    del tensors["layers.1.up.bias"]
    save_file(tensors, source / "model.safetensors")
    means = {f"layers.{number}.up.mean": torch.ones(DIM) for number in range(2)}
    file = save(tmp_path / "c.safetensors", **means)
    with converter_core.make_plan(asked(recipe, "int8", file, bias_correction=True), load()) as plan:
        assert "1 weights have no bias that could take up their error, e.g. layers.1.up.weight" in " ".join(plan.notes)
        converter_core.convert(plan)


def test_gptq_prepares_each_input_once(
    load: Any, recipe: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.randn(128, DIM, generator=torch.Generator().manual_seed(1)).bfloat16()
    tokens[:, 1::2] = tokens[:, ::2] * 2 + 0.1 * tokens[:, 1::2]
    given = {"layers.0.up.tokens": tokens, "layers.0.up.mean": tokens.float().mean(0)}
    file = save(tmp_path / "c.safetensors", "layers.0.up", inputs={"layers.1.up": "layers.0.up"}, **given)
    registry = load()
    cls = registry.quantizers["int8"]
    calls: list[set[str]] = []
    prepare = cls.prepare

    def spy(self: Any, inputs: Any) -> Any:
        calls.append(set(inputs))
        return prepare(self, inputs)

    monkeypatch.setattr(cls, "prepare", spy)
    before, error = load_file(source / "model.safetensors"), {}
    for rounding in ("nearest", "gptq"):
        one = asked(recipe, "int8", file, rounding=rounding, bias_correction=True)
        one["output"] = {"path": str(tmp_path / rounding), "name": "x"}
        one["performance"]["max_memory"] = "1MiB"
        with converter_core.make_plan(one, registry) as plan:
            assert ("torch" in plan.outputs[0].distributions) == (rounding == "gptq")
            converter_core.convert(plan)
        written = load_file(tmp_path / rounding / "x.safetensors")
        report = converter_core.verify(tmp_path / rounding, source, calibration=file, registry=registry)
        assert report.ok, report.problems
        for layer, told in zip(("layers.0.up", "layers.1.up"), report.weights, strict=True):
            restored = written[f"{layer}.weight"].float() * written[f"{layer}.weight_scale"]
            exact = before[f"{layer}.weight"].float()
            outputs = (exact - restored) @ tokens[96:].float().t()
            error[rounding] = error.get(rounding, 0.0) + outputs.square().sum().item()
            relative = outputs.norm() / (exact @ tokens[96:].float().t()).norm()
            assert told.output_error == pytest.approx(relative.item(), rel=1e-4)
    assert calls == [{"mean"}, {"mean", "tokens"}]
    assert error["gptq"] < 0.6 * error["nearest"]


def test_gptq_needs_enough_tokens(load: Any, recipe: Any, tmp_path: Path) -> None:
    file = save(tmp_path / "c.safetensors", "layers.0.up", **{"layers.0.up.tokens": torch.ones(63, DIM)})
    with pytest.raises(converter_core.PlanError, match="63 tokens in the calibration file; rounding: gptq needs 64"):
        converter_core.make_plan(asked(recipe, "int8", file, rounding="gptq"), load())


def test_a_large_factor_does_not_starve_the_slabs(
    load: Any, recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts in the budget; a weight that takes more than there is runs alone, and still many rows at a time."""
    file = save(tmp_path / "c.safetensors", "layers.0.up", inputs={"layers.1.up": "layers.0.up"})
    save_file(
        {**load_file(file), "layers.0.up.tokens": torch.ones(64, DIM)},
        file,
        {"inputs": '{"layers.1.up": "layers.0.up"}'},
    )
    registry = load()
    monkeypatch.setattr(registry.quantizers["int8"], "prepared_bytes", lambda self, inputs: 1 << 40)
    one = asked(recipe, "int8", file, rounding="gptq")
    one["performance"]["max_memory"] = "4MiB"
    with converter_core.make_plan(one, registry) as plan:
        (job, *_) = [job for job in plan.jobs if job.info.kind == "linear"]
        made = cut(job, 1 << 20, 4 << 20)
        assert made.nbytes > 1 << 40
        assert made.span >= 64
        assert "take more than max_memory" in " ".join(plan.notes)
