"""A real WanTransformer3DModel, saved by diffusers, converted, and run again."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from converter_core.engine.convert import convert
from converter_core.inspection import inspect
from converter_plugins.models.wan_dit import WanDit

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers")
    WanTransformer3DModel = diffusers.WanTransformer3DModel

CONFIG = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "in_channels": 36,
    "out_channels": 16,
    "text_dim": 128,
    "freq_dim": 64,
    "ffn_dim": 256,
    "num_layers": 2,
    "image_dim": 64,
    "added_kv_proj_dim": 128,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 64,
}


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = WanTransformer3DModel(**CONFIG).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return made


@pytest.fixture(scope="module")
def saved(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diffusers") / "transformer"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, max_shard_size="1MB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def forward(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = model(
            hidden_states=torch.randn(1, 36, 2, 8, 8, generator=generator),
            timestep=torch.tensor([500]),
            encoder_hidden_states=torch.randn(1, 7, 128, generator=generator),
            encoder_hidden_states_image=torch.randn(1, 5, 64, generator=generator),
            return_dict=False,
        )[0]
    assert isinstance(out, torch.Tensor)
    return out


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors


def mapped_back(tensors: dict[str, torch.Tensor]) -> Any:
    adapter = WanDit()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = WanTransformer3DModel(**CONFIG).eval()
    again.load_state_dict({adapter.rename(key, "diffusers"): tensor for key, tensor in tensors.items()}, strict=True)
    return again


@pytest.mark.parametrize("layout", ["single_file", "by_block"])
def test_without_quantization_the_forward_pass_is_the_very_same(
    layout: str, model: Any, saved: Path, tmp_path: Path
) -> None:
    convert({"source": {"path": str(saved)}, "output": {"path": str(tmp_path / "out")}, "target": {"layout": layout}})
    tensors = loaded(tmp_path / "out")
    assert "blocks.0.self_attn.q.weight" in tensors
    assert not any("attn1" in key or "scale_shift_table" in key for key in tensors)
    assert torch.equal(forward(mapped_back(tensors)), forward(model))


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_quantized_from_diffusers_naming(scheme: str, model: Any, saved: Path, tmp_path: Path) -> None:
    convert(
        {
            "source": {"path": str(saved)},
            "quantization": {"method": scheme},
            "output": {"path": str(tmp_path / "out"), "copy_metadata": True},
        }
    )
    tensors = loaded(tmp_path / "out")
    scales = [key for key in tensors if key.endswith(".weight_scale")]
    assert len(scales) == 2 * 12
    for key in scales:
        weight = key.removesuffix("_scale")
        tensors[weight] = tensors[weight].float() * tensors.pop(key)
    assert tensors["blocks.1.modulation"].shape == (1, 6, 128)
    out, exact = forward(mapped_back(tensors)), forward(model)
    error = (out - exact).norm() / exact.norm()
    assert 0 < error < (0.03 if scheme == "int8" else 0.1)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dim"] == 128
    assert config["num_layers"] == 2
    assert config["model_type"] == "i2v"
    assert "num_attention_heads" not in config


def test_inspect_tells_the_key_format(saved: Path) -> None:
    told = inspect(saved).as_dict()
    assert told["facts"]["key_format"] == "diffusers"
    assert told["facts"]["num_layers"] == 2
    assert told["quantized"] is None
