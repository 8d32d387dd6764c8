"""Files of target compressed_tensors, decompressed by the package itself into diffusers' model."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import converter_core
from converter_core.errors import ConverterError

from . import small_wan

SCHEMES = {
    "int8": ("int-quantized", 0.01),
    "fp8": ("float-quantized", 0.04),
    "nvfp4": ("nvfp4-pack-quantized", 0.15),
    "mxfp4": ("mxfp4-pack-quantized", 0.2),
}
"""Method -> the compressor, by how much a step may differ from the source's."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("diffusers")
        pytest.importorskip("compressed_tensors")
        yield


def recipe(source: Path, output: Path, method: str, rules: tuple[dict[str, str], ...] = ()) -> dict[str, Any]:
    return {
        "source": {"path": str(source)},
        "quantization": {"method": method, "rules": list(rules)},
        "target": {"format": "compressed_tensors"},
        "output": {"path": str(output)},
        "performance": {"device": "cpu"},
    }


def model() -> Any:
    cls = importlib.import_module("diffusers").WanTransformer3DModel
    return cls(**small_wan.DIFFUSERS).bfloat16()


def of_source() -> dict[str, torch.Tensor]:
    return {small_wan.WanDit().rename(name, "diffusers"): tensor for name, tensor in small_wan.tensors().items()}


def decompressed(folder: Path) -> Any:
    """As transformers does it (``CompressedTensorsHfQuantizer``): configure, compress nothing, load, decompress."""
    quantization = importlib.import_module("compressed_tensors.quantization")
    compressor = importlib.import_module("compressed_tensors.compressors").ModelCompressor
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    wanted = importlib.import_module("transformers").CompressedTensorsConfig.from_dict(config)
    made = model()
    quantization.apply_quantization_config(made, wanted.quantization_config)
    reader = compressor.from_compression_config(wanted)
    reader.compress_model(made)
    made.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"), strict=True)
    reader.decompress_model(made)
    return made


def without_activations(made: Any) -> Any:
    """Weights alone: what is to be compared is what they became."""
    for layer in made.modules():
        if hasattr(layer, "quantization_scheme"):
            layer.quantization_enabled = False
    return made


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("diffusers")
        source = model()
        source.load_state_dict(of_source())
        return small_wan.step(source)


@pytest.mark.parametrize("naming", ["original", "diffusers"])
@pytest.mark.parametrize("method", SCHEMES)
def test_it_decompresses(method: str, naming: str, expected: torch.Tensor, tmp_path: Path) -> None:
    name, most = SCHEMES[method]
    source, folder = small_wan.save(tmp_path / "wan", naming), tmp_path / "o"
    converter_core.convert(recipe(source, folder, method))
    made = without_activations(decompressed(folder))
    assert 0 < (small_wan.step(made) - expected).norm() / expected.norm() < most
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["format"] == name
    assert all(group["format"] == name for group in config["config_groups"].values())
    assert all("scale_dtype" in group["weights"] for group in config["config_groups"].values())
    # nothing but the linear weights of the blocks was claimed
    layers = {name for name, layer in made.named_modules() if hasattr(layer, "quantization_scheme")}
    linear = {name for name, layer in made.named_modules() if isinstance(layer, torch.nn.Linear)}
    assert layers == {name for name in linear if name.startswith("blocks.")}
    summary = converter_core.inspect(folder).quantized
    assert (summary.target, dict(summary.formats)) == ("compressed_tensors", {method: 24})
    assert converter_core.verify(folder, source).ok


def test_values_by_hand(tmp_path: Path) -> None:
    """Of one 4-bit layer: even column in the low nibble, scales in rows and columns, and the global scale divides."""
    source = small_wan.save(tmp_path / "wan", "original")
    grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    for method, width in (("nvfp4", 16), ("mxfp4", 32)):
        converter_core.convert(recipe(source, tmp_path / method, method))
        parts = load_file(tmp_path / method / "diffusion_pytorch_model.safetensors")
        layer = "blocks.1.ffn.net.2"
        packed, scale = parts[f"{layer}.weight_packed"], parts[f"{layer}.weight_scale"]
        assert (packed.dtype, tuple(packed.shape), tuple(scale.shape)) == (torch.uint8, (64, 48), (64, 96 // width))
        if method == "nvfp4":
            scale = scale.float() / parts[f"{layer}.weight_global_scale"]
        else:
            scale = torch.exp2(scale.float() - 127)
        values = torch.stack([grid[(packed & 15).long()], grid[(packed >> 4).long()]], -1).reshape(64, 96)
        by_hand = values * scale.repeat_interleave(width, 1)
        theirs = decompressed(tmp_path / method).get_submodule(layer).weight
        assert torch.equal(by_hand.bfloat16(), theirs.bfloat16())
        assert (by_hand - of_source()[f"{layer}.weight"].float()).norm() < 0.2 * by_hand.norm()


def test_a_mix_and_a_layer_left_out(expected: torch.Tensor, tmp_path: Path) -> None:
    source, folder = small_wan.save(tmp_path / "wan", "original"), tmp_path / "o"
    rules = (
        {"match": "blocks.0.ffn.net.2", "method": "none"},
        {"match": "blocks.*.attn2.*", "method": "nvfp4"},
        {"match": "blocks.1.ffn.*", "method": "mxfp4"},
    )
    converter_core.convert(recipe(source, folder, "int8", rules))
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["format"] == "mixed-precision"
    targets = {group["format"]: set(group["targets"]) for group in config["config_groups"].values()}
    assert targets["mxfp4-pack-quantized"] == {"blocks.1.ffn.net.0.proj", "blocks.1.ffn.net.2"}
    assert "blocks.0.ffn.net.0.proj" in targets["int-quantized"]
    assert r"re:blocks\.\d+\.attn2\.to_out\.\d+$" in targets["nvfp4-pack-quantized"]
    made = without_activations(decompressed(folder))
    assert 0 < (small_wan.step(made) - expected).norm() / expected.norm() < 0.15
    assert torch.equal(made.blocks[0].ffn.net[2].weight, of_source()["blocks.0.ffn.net.2.weight"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"symmetric": False}, "is int8 with zero points, which is not written as compressed-tensors here")],
)
def test_refusals(options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    asked = recipe(small_wan.save(tmp_path / "wan", "original"), tmp_path / "o", "int8")
    asked["quantization"]["options"] = options
    with pytest.raises(ConverterError, match=reason):
        converter_core.make_plan(asked)
