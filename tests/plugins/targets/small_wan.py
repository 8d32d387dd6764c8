"""A small Wan that diffusers itself makes, saved in both namings, and one step of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from converter_plugins.models.wan_dit import Structure, WanDit

SHAPE = Structure(dim=64, ffn_dim=96, num_layers=2, in_dim=36, text_dim=56, freq_dim=32, image_dim=40, image=True)
DIFFUSERS = {
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "in_channels": 36,
    "out_channels": 16,
    "text_dim": 56,
    "freq_dim": 32,
    "ffn_dim": 96,
    "num_layers": 2,
    "image_dim": 40,
    "added_kv_proj_dim": 64,
}
ORIGINAL = {"_class_name": "WanModel", "model_type": "i2v", "dim": 64, "num_heads": 2, "num_layers": 2, "eps": 1e-06}


def tensors() -> dict[str, torch.Tensor]:
    """bf16, by original names."""
    draw = torch.Generator().manual_seed(5)
    made = {}
    for name, spec in SHAPE.inventory().items():
        one = torch.randn(spec.shape, generator=draw) * (0.3 if len(spec.shape) > 1 else 0.1)
        made[name] = (one + 1 if "norm" in name and name.endswith("weight") else one).bfloat16()
    return made


def save(folder: Path, naming: str) -> Path:
    folder.mkdir(parents=True)
    named = {WanDit().rename(name, naming): tensor for name, tensor in tensors().items()}
    save_file(named, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    config: dict[str, Any] = ORIGINAL
    if naming == "diffusers":
        config = {"_class_name": "WanTransformer3DModel", **DIFFUSERS}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@torch.no_grad()
def step(model: Any, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """What the model makes of a fixed input, float32."""
    draw = torch.Generator().manual_seed(6)

    def given(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw).to(dtype)

    return model(
        hidden_states=given(1, 36, 1, 4, 4),
        timestep=torch.tensor([500]),
        encoder_hidden_states=given(1, 512, 56),
        encoder_hidden_states_image=given(1, 3, 40),
        return_dict=False,
    )[0].float()
