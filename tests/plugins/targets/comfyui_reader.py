"""How ComfyUI 0.33 reads a diffusion model, restated from its source function by function, without ComfyUI.

``load`` is ``load_diffusion_model_state_dict`` of ``comfy/sd.py``: metadata becomes markers (``comfy/utils.py``,
``convert_old_quants``), the model is detected (``comfy/model_detection.py``, ``detect_unet_config``, the Wan branch),
each linear layer is taken as ``_load_quantized_module`` of ``comfy/ops.py`` takes it. Decoding follows the formats'
definitions, element by element.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass
class Layer:
    """A quantized linear layer. params: what the loader hands to the layout; extra: parameters of their own."""

    format: str
    weight: Tensor
    params: dict[str, Tensor]
    full_precision: bool
    extra: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Loaded:
    unet: dict[str, Any]
    layers: dict[str, Layer]
    others: dict[str, Tensor]


def load(path: Path) -> Loaded:
    """Raises where ComfyUI would, and where it would only say "unet unexpected"."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
    if "config" in metadata:  # comfy/sd.py: read as JSON with a "transformer"
        json.loads(metadata["config"])
    state, metadata = convert_old_quants(state, metadata)
    layers_told = json.loads(metadata.get("_quantization_metadata", '{"layers": {}}'))["layers"]
    for layer, conf in layers_told.items():
        state[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(conf).encode()), dtype=torch.uint8)
    unet = detect_unet_config(state)
    stems = [key.removesuffix(".comfy_quant") for key in state if key.endswith(".comfy_quant")]
    layers = {stem: load_quantized_module(state, f"{stem}.") for stem in stems}
    unexpected = [key for key in state if "scale" in key.rpartition(".")[2] and "scale_shift" not in key]
    assert not unexpected, f"unet unexpected: {unexpected}"
    return Loaded(unet, layers, state)


def convert_old_quants(
    state: dict[str, Tensor], metadata: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    if "_quantization_metadata" in metadata or "scaled_fp8" not in state:
        return state, dict(metadata)
    marker = state.pop("scaled_fp8")
    assert marker.dtype in (torch.float8_e4m3fn, torch.float32)
    found, layers = {}, {}
    for key, tensor in state.items():
        if key.endswith(".scale_weight"):
            layer = key.removesuffix(".scale_weight")
            found[f"{layer}.weight_scale"] = tensor
            layers[layer] = {"format": "float8_e4m3fn"}
            if marker.nelement() == 2:
                layers[layer]["full_precision_matrix_mult"] = True
        elif key.endswith(".scale_input"):
            if tensor.item() != 1.0:
                found[key.replace(".scale_input", ".input_scale")] = tensor
        else:
            found[key] = tensor
    return found, {**metadata, "_quantization_metadata": json.dumps({"layers": layers})}


def detect_unet_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The Wan branch; an error where ComfyUI says "could not detect model"."""
    assert "head.modulation" in state, "could not detect model"
    dim = state["head.modulation"].shape[-1]
    found: dict[str, Any] = {
        "image_model": "wan2.1",
        "dim": dim,
        "out_dim": state["head.head.weight"].shape[0] // 4,
        "num_heads": dim // 128,
        "ffn_dim": state["blocks.0.ffn.0.weight"].shape[0],
        "num_layers": len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
        "in_dim": state["patch_embedding.weight"].shape[1],
        "model_type": "i2v" if "img_emb.proj.0.bias" in state else "t2v",
    }
    if "vace_patch_embedding.weight" in state:
        found["model_type"] = "vace"
    if "img_emb.emb_pos" in state:
        found["flf_pos_embed_token_number"] = state["img_emb.emb_pos"].shape[1]
    return found


def load_quantized_module(state: dict[str, Tensor], prefix: str) -> Layer:
    conf = json.loads(bytes(state.pop(f"{prefix}comfy_quant").tolist()))
    weight = state.pop(f"{prefix}weight")

    def scale(name: str, dtype: torch.dtype | None = None) -> Tensor:
        found = state.pop(f"{prefix}{name}")
        return found if dtype is None else found.view(dtype)

    format = conf["format"]
    extra: dict[str, Tensor] = {}
    if format == "float8_e4m3fn":
        assert weight.dtype == torch.float8_e4m3fn
        params = {"scale": scale("weight_scale")}
        assert params["scale"].dim() == 0, "a scale per row loads, and then the forward pass raises"
    elif format == "int8_tensorwise":
        assert weight.dtype == torch.int8
        params = {"scale": scale("weight_scale")}
        shape = params["scale"].shape
        assert shape in ((), (weight.shape[0], 1)), "of another shape it is broadcast over columns"
    elif format == "nvfp4":
        assert weight.dtype == torch.uint8
        params = {"scale": scale("weight_scale_2"), "block_scale": scale("weight_scale", torch.float8_e4m3fn)}
        assert params["scale"].dim() == 0
    elif format == "mxfp8":
        assert weight.dtype == torch.float8_e4m3fn
        params = {"scale": scale("weight_scale", torch.float8_e8m0fnu)}
    else:
        raise KeyError(format)
    if format in ("float8_e4m3fn", "nvfp4") and f"{prefix}input_scale" in state:
        extra["input_scale"] = state.pop(f"{prefix}input_scale")
        assert extra["input_scale"].dim() == 0
    bias = state.get(f"{prefix}bias")
    assert bias is None or bias.dtype in (torch.float32, torch.bfloat16, torch.float16), "_scaled_mm takes no fp8 bias"
    return Layer(format, weight, params, bool(conf.get("full_precision_matrix_mult")), extra)


def swizzled_at(row: int, block: int, blocks: int) -> int:
    """NVIDIA's 128x4 block-scale layout; ``comfy_kitchen/float_utils.py from_blocked`` undoes it."""
    tiles = -(-blocks // 4)
    return row // 128 * tiles * 512 + block // 4 * 512 + row % 32 * 16 + row % 128 // 32 * 4 + block % 4


def decode(layer: Layer, shape: tuple[int, int]) -> Tensor:
    """float64, element by element from the bytes."""
    rows, columns = shape
    if layer.format in ("int8_tensorwise", "float8_e4m3fn"):
        return (layer.weight.double() * layer.params["scale"].double())[:rows, :columns]
    if layer.format == "mxfp8":
        flat = layer.params["scale"].view(torch.uint8).flatten().tolist()
        blocks = -(-layer.weight.shape[1] // 32)
        powers = [[2.0 ** (flat[swizzled_at(r, b, blocks)] - 127) for b in range(blocks)] for r in range(rows)]
        values = layer.weight.double()[:rows, :columns]
        return values * torch.tensor(powers, dtype=torch.float64).repeat_interleave(32, 1)[:, :columns]
    flat = layer.params["block_scale"].float().flatten().tolist()
    blocks = -(-layer.weight.shape[1] * 2 // 16)
    whole = layer.params["scale"].item()
    found = torch.empty(rows, columns, dtype=torch.float64)
    for row, line in enumerate(layer.weight[:rows].tolist()):
        for column in range(columns):
            byte = line[column // 2]
            code = byte >> 4 if column % 2 == 0 else byte & 15
            value = E2M1[code & 7] * (-1 if code & 8 else 1)
            found[row, column] = value * flat[swizzled_at(row, column // 16, blocks)] * whole
    return found
