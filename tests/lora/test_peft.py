"""A LoRA of PEFT on a small Wan, saved by PEFT and by diffusers: the merged model does what the adapter did."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import converter_core
from converter_core.plugins.registry import Registry

from ..plugins.targets import small_wan

LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2", "proj_out"]


@pytest.fixture(scope="module", autouse=True)
def diffusers() -> Iterator[Any]:
    """What it and what it imports warn of is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("peft")
        yield pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_wan.save(tmp_path_factory.mktemp("wan") / "source", "diffusers")


CONFIGS = {
    "plain": {"r": 4, "lora_alpha": 8},
    "patterns": {"r": 4, "lora_alpha": 8, "alpha_pattern": {"attn1.to_q": 3}, "rank_pattern": {"ffn.net.2": 2}},
    "stabilised": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True},
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("saved_by", ["diffusers", "peft"])
def test_the_merged_model_does_what_the_adapter_did(
    diffusers: Any, source: Path, registry: Registry, tmp_path: Path, name: str, saved_by: str
) -> None:
    from peft import LoraConfig, get_peft_model_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        cls = diffusers.WanTransformer3DModel
        model = cls.from_pretrained(source, torch_dtype=torch.float32)
        before = small_wan.step(model, torch.float32)
        config = LoraConfig(**CONFIGS[name], target_modules=LAYERS, init_lora_weights=False)
        model.add_adapter(config)
        expected = small_wan.step(model, torch.float32)
        if saved_by == "diffusers":
            layers = get_peft_model_state_dict(model)
            metadata = {"transformer_lora_adapter_metadata": config.to_dict()}
            diffusers.WanPipeline.save_lora_weights(tmp_path, transformer_lora_layers=layers, **metadata)
        else:
            model.save_lora_adapter(tmp_path)
        (file,) = tmp_path.glob("*.safetensors")
        recipe = {
            "source": {"path": str(source), "loras": [{"path": str(file)}]},
            "target": {"format": "diffusers", "dtype": "float32"},
            "output": {"path": str(tmp_path / "out")},
            "performance": {"device": "cpu", "num_workers": 1},
        }
        converter_core.convert(recipe, registry=registry)
        found = small_wan.step(cls.from_pretrained(tmp_path / "out", torch_dtype=torch.float32), torch.float32)
    assert (expected - before).norm() > 0.01 * before.norm()
    assert (found - expected).norm() < 1e-5 * expected.norm()
