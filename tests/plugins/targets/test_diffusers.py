"""Files of target diffusers, opened by diffusers itself, by sdnq and by torchao."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import converter_core
from converter_core.errors import ConverterError

from . import small_wan

NAMINGS = ("original", "diffusers")
STYLES: Mapping[str, tuple[str, dict[str, str], float]] = {
    "int8": ("int8", {}, 0.01),
    "fp8": ("fp8", {}, 0.04),
    "torchao-int8": ("int8", {"style": "torchao"}, 0.01),
    "torchao-w8a8": ("int8", {"style": "torchao", "activations": "dynamic"}, 0.02),
    "torchao-fp8": ("fp8", {"style": "torchao"}, 0.04),
    "bfl": ("fp8", {"style": "bfl"}, 0.04),
}
"""Case -> method, target options, by how much a step may differ from the source's."""


def recipe(source: Path, output: Path, method: str, options: Mapping[str, str], **target: Any) -> dict[str, Any]:
    return {
        "source": {"path": str(source)},
        "quantization": {"method": method},
        "target": {"format": "diffusers", "options": dict(options), **target},
        "output": {"path": str(output)},
        "performance": {"device": "cpu"},
    }


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("wan")
    return {naming: small_wan.save(root / naming, naming) for naming in NAMINGS}


@pytest.fixture(scope="module", autouse=True)
def readers() -> Iterator[Any]:
    """diffusers; what it and what it imports warn of is not ours."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setenv("SDNQ_USE_TORCH_COMPILE", "0")  # seconds of compiling, and the same values
        for package in ("torchao", "accelerate"):
            pytest.importorskip(package)
        yield pytest.importorskip("diffusers")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def expected(readers: Any, sources: Mapping[str, Path]) -> torch.Tensor:
    """A step of the source as diffusers' own class takes it."""
    return small_wan.step(load(readers, sources["diffusers"]))


def load(readers: Any, folder: Path, style: str = "") -> Any:
    cls = readers.WanTransformer3DModel
    if style != "bfl":
        return cls.from_pretrained(folder, torch_dtype=torch.bfloat16)
    (file,) = folder.glob("*.safetensors")
    config = readers.BFLQuantizationConfig()
    return cls.from_single_file(
        str(file), config=str(folder), subfolder="", quantization_config=config, torch_dtype=torch.bfloat16
    )


def off(made: torch.Tensor, expected: torch.Tensor) -> float:
    return float((made - expected).norm() / expected.norm())


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("layout", ["single_file", "chunked"])
def test_unquantized_is_the_source(
    naming: str, layout: str, readers: Any, sources: Any, expected: torch.Tensor, tmp_path: Path
) -> None:
    size = {"chunk_size": 20} if layout == "chunked" else {}
    converter_core.convert(recipe(sources[naming], tmp_path / "o", "none", {}, layout=layout, **size))
    model = load(readers, tmp_path / "o")
    assert torch.equal(small_wan.step(model), expected)
    written = json.loads((tmp_path / "o" / "config.json").read_text())
    assert "quantization_config" not in written
    # the source leaves out what has the default of the class
    theirs = readers.WanTransformer3DModel(**small_wan.DIFFUSERS).config
    made = {key: tuple(value) if isinstance(value, list) else value for key, value in model.config.items()}
    assert {key: value for key, value in made.items() if key[0] != "_"} == {
        key: value for key, value in theirs.items() if key[0] != "_"
    }


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("case", STYLES)
def test_quantized_weights_are_understood(
    naming: str, case: str, readers: Any, sources: Any, expected: torch.Tensor, tmp_path: Path
) -> None:
    method, options, most = STYLES[case]
    style = options.get("style", "sdnq")
    if style == "sdnq":
        pytest.importorskip("sdnq")
    source, folder = sources[naming], tmp_path / "o"
    converter_core.convert(recipe(source, folder, method, options))
    assert converter_core.verify(folder, source).ok
    model = load(readers, folder, style)
    assert 0 < off(small_wan.step(model), expected) < most

    layer = model.blocks[1].ffn.net[0].proj
    if naming == "original":
        assert torch.equal(seen(layer, style), codes_times_scales(folder, style))
    summary = converter_core.inspect(folder).quantized
    assert (summary.target, dict(summary.formats)) == ("diffusers", {method: 24})


def seen(layer: Any, style: str) -> torch.Tensor:
    """The weight of a layer as its reader decodes it, float32."""
    if style == "torchao":
        codes, scale = layer.weight.qdata, layer.weight.scale
    elif style == "bfl":
        utils = importlib.import_module("diffusers.quantizers.bfl.utils")
        return utils.dequantize_fp8r(layer.weight, layer.weight_scale)
    else:
        return layer.sdnq_dequantizer(layer.weight, layer.scale, dtype=torch.float32)
    return codes.float() * scale


def codes_times_scales(folder: Path, style: str) -> torch.Tensor:
    names = {
        "sdnq": ("ffn.net.0.proj.weight", "ffn.net.0.proj.scale"),
        "torchao": ("ffn.net.0.proj._weight_qdata", "ffn.net.0.proj._weight_scale"),
        "bfl": ("ffn.0.weight", "ffn.0.weight_scale"),
    }
    (file,) = folder.glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        codes, scale = (opened.get_tensor(f"blocks.1.{name}") for name in names[style])
    assert scale.dtype == torch.float32
    assert scale.shape == ((96,) if style == "bfl" else (96, 1))
    return codes.float() * scale.reshape(96, 1)


def test_torchao_reads_its_records_from_every_shard(
    readers: Any, sources: Any, expected: torch.Tensor, tmp_path: Path
) -> None:
    asked = recipe(sources["original"], tmp_path / "o", "int8", {"style": "torchao"}, layout="chunked", chunk_size=9)
    converter_core.convert(asked)
    assert len(list((tmp_path / "o").glob("*.safetensors"))) > 5
    assert off(small_wan.step(load(readers, tmp_path / "o")), expected) < 0.01


@pytest.mark.parametrize("style", ["sdnq", "torchao"])
def test_a_layer_that_a_rule_leaves_out(
    style: str, readers: Any, sources: Any, expected: torch.Tensor, tmp_path: Path
) -> None:
    if style == "sdnq":
        pytest.importorskip("sdnq")
    asked = recipe(sources["original"], tmp_path / "o", "int8", {"style": style})
    asked["quantization"]["rules"] = [{"match": "blocks.0.ffn.net.2", "method": "none"}]
    converter_core.convert(asked)
    model = load(readers, tmp_path / "o")
    assert type(model.blocks[0].ffn.net[2].weight.data) is torch.Tensor
    assert model.blocks[0].ffn.net[2].weight.dtype == torch.bfloat16
    assert off(small_wan.step(model), expected) < 0.01


def test_the_records_are_those_that_torchao_writes(sources: Any, tmp_path: Path) -> None:
    """Of the same layer, quantized by torchao; it adds a zero point of zeros to int8."""
    quantization = importlib.import_module("torchao.quantization")
    support = importlib.import_module("torchao.prototype.safetensors.safetensors_support")
    configs = importlib.import_module("diffusers").TorchAoConfig
    row = quantization.PerRow()
    theirs = {
        ("int8", "none"): quantization.Int8WeightOnlyConfig(version=2, granularity=row),
        ("int8", "dynamic"): quantization.Int8DynamicActivationInt8WeightConfig(version=2, granularity=row),
        ("fp8", "none"): quantization.Float8WeightOnlyConfig(version=2, granularity=row),
    }
    for (method, activations), config in theirs.items():
        folder = tmp_path / f"{method}_{activations}"
        options = {"style": "torchao", "activations": activations}
        converter_core.convert(recipe(sources["original"], folder, method, options))
        layer = torch.nn.Linear(64, 96, dtype=torch.bfloat16)
        quantization.quantize_(layer, config)
        _, metadata = support.flatten_tensor_state_dict({"net.weight": layer.weight, "net.bias": layer.bias.data})
        with safe_open(folder / "diffusion_pytorch_model.safetensors", "pt") as file:
            ours = file.metadata()
            assert set(json.loads(ours["tensor_names"])) == set(small_wan_names())
        wanted = json.loads(metadata["net.weight"])
        wanted["_tensor_data_names"] = ["qdata", "scale"]
        assert json.loads(ours["blocks.1.ffn.net.0.proj.weight"]) == wanted
        assert json.loads(ours["blocks.1.ffn.net.0.proj.bias"]) == json.loads(metadata["net.bias"])
        written = json.loads((folder / "config.json").read_text())["quantization_config"]
        assert written["quant_type"] == json.loads(json.dumps(configs(config).to_dict()))["quant_type"]


def small_wan_names() -> list[str]:
    return [small_wan.WanDit().rename(name, "diffusers") for name in small_wan.tensors()]


@pytest.mark.parametrize(
    ("method", "options", "output", "reason"),
    [
        ("nvfp4", {}, {}, "is nvfp4, which diffusers does not read here"),
        ("int8", {"style": "unquantized"}, {}, r"style is unquantized; leave style out"),
        ("int8", {"style": "bfl"}, {}, r"style bfl holds fp8 only; use style sdnq, or method fp8"),
        ("int8", {"activations": "dynamic"}, {}, "written for style: torchao only"),
        ("fp8", {"style": "torchao", "activations": "dynamic"}, {}, "dynamic is written for int8 only"),
        ("int8", {}, {"name": "wan"}, r"output.name: target diffusers looks for diffusion_pytorch_model and not"),
        ("int8", {"style": "onnx"}, {}, "style"),
    ],
)
def test_refusals(
    method: str, options: dict[str, str], output: dict[str, str], reason: str, sources: Any, tmp_path: Path
) -> None:
    asked = recipe(sources["original"], tmp_path / "o", method, options)
    asked["output"] |= output
    with pytest.raises(ConverterError, match=reason):
        converter_core.convert(asked)
    assert not (tmp_path / "o").exists()


def test_a_mix_is_refused_and_zero_points(sources: Any, tmp_path: Path) -> None:
    asked = recipe(sources["original"], tmp_path / "o", "int8", {})
    asked["quantization"]["rules"] = [{"match": "*ffn*", "method": "fp8"}]
    with pytest.raises(ConverterError, match="diffusers reads one scheme beside unquantized weights"):
        converter_core.make_plan(asked)
    asked["quantization"] = {"method": "int8", "options": {"symmetric": False}}
    with pytest.raises(ConverterError, match="is int8 with zero points, which diffusers does not read here"):
        converter_core.make_plan(asked)
