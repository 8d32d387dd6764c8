"""vLLM-Omni cannot be run here: what its loading code does (0.30.0) is restated."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import converter_core
from converter_core.errors import ConverterError

from . import small_wan


def recipe(source: Path, output: Path, method: str, format: str = "vllm_omni") -> dict[str, Any]:
    return {
        "source": {"path": str(source)},
        "quantization": {"method": method},
        "target": {"format": format},
        "output": {"path": str(output)},
        "performance": {"device": "cpu"},
    }


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    """As ``vllm_omni/quantization/int8_config.py`` and ``wan2_2_transformer.py`` take a folder: by diffusers name."""
    config = json.loads((folder / "config.json").read_text())
    # DiffusionInt8Config.from_config
    asked = config["quantization_config"]
    assert "int8" in asked["quant_method"]
    assert asked["activation_scheme"] in ["dynamic"]
    ignored = asked["ignored_layers"] or []
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    made = {}
    for name, tensor in tensors.items():
        layer = name.removesuffix(".weight")
        # quant_config goes to attn1, attn2 and ffn of the blocks (WanTransformerBlock.__init__)
        linear = name.startswith("blocks.") and tensor.dim() == 2 and layer not in ignored
        if linear and name != layer:
            # BaseInt8LinearMethod.create_weights
            scale = tensors[f"{name}_scale"]
            assert tensor.dtype == torch.int8
            assert scale.dtype == torch.float32
            assert scale.shape == (tensor.shape[0], 1)
            made[name] = (tensor.float() * scale).bfloat16()
        elif not name.endswith("_scale"):
            made[name] = tensor
    return made


@pytest.mark.parametrize("naming", ["original", "diffusers"])
def test_a_step_with_what_is_loaded(naming: str, tmp_path: Path) -> None:
    source = small_wan.save(tmp_path / "wan", naming)
    converter_core.convert(recipe(source, tmp_path / "o", "int8"))
    assert converter_core.verify(tmp_path / "o", source).ok
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cls = pytest.importorskip("diffusers").WanTransformer3DModel
        model = cls(**small_wan.DIFFUSERS).bfloat16()
        names = {small_wan.WanDit().rename(name, "diffusers"): name for name in small_wan.tensors()}
        model.load_state_dict({name: small_wan.tensors()[original] for name, original in names.items()})
        expected = small_wan.step(model)
        model.load_state_dict(loaded(tmp_path / "o"))
        made = small_wan.step(model)
    assert 0 < (made - expected).norm() / expected.norm() < 0.01
    config = json.loads((tmp_path / "o" / "config.json").read_text())
    assert config["_class_name"] == "WanTransformer3DModel"
    assert config["num_attention_heads"] == 2


def test_the_bytes_are_those_for_diffusers(tmp_path: Path) -> None:
    source = small_wan.save(tmp_path / "wan", "original")
    found = []
    for format, options in (("vllm_omni", {}), ("diffusers", {"style": "torchao"})):
        asked = recipe(source, tmp_path / format, "int8", format)
        asked["target"]["options"] = options
        converter_core.convert(asked)
        found.append(load_file(tmp_path / format / "diffusion_pytorch_model.safetensors"))
    ours, theirs = found
    assert len(ours) == len(theirs)
    for name, tensor in ours.items():
        layer = name.removesuffix(".weight")
        there = f"{layer}._weight_qdata" if tensor.dtype == torch.int8 else name.replace(".weight_", "._weight_")
        assert torch.equal(theirs[there], tensor)


def test_it_is_known_by_its_header_and_by_its_config(tmp_path: Path) -> None:
    source = small_wan.save(tmp_path / "wan", "diffusers")
    converter_core.convert(recipe(source, tmp_path / "o", "int8"))
    assert converter_core.inspect(tmp_path / "o").quantized.target == "vllm_omni"
    (tmp_path / "o" / "diffusion_pytorch_model.manifest.json").unlink()
    assert converter_core.verify(tmp_path / "o", source).ok


@pytest.mark.parametrize(
    ("method", "rules", "reason"),
    [
        ("fp8", [], "vLLM-Omni reads int8 here, and none"),
        ("nvfp4", [], "vLLM-Omni reads int8 here, and none"),
        ("int8", [{"match": "blocks.0.attn1.to_q", "method": "none"}], "all in int8 or none; this leaves out 1, e.g."),
    ],
)
def test_refusals(method: str, rules: list[dict[str, str]], reason: str, tmp_path: Path) -> None:
    asked = recipe(small_wan.save(tmp_path / "wan", "original"), tmp_path / "o", method)
    asked["quantization"]["rules"] = rules
    with pytest.raises(ConverterError, match=reason):
        converter_core.make_plan(asked)
