"""``config.json`` of Wan transformers, in the original key format and in that of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converter_core.api import Refused, TableContents

from ._wan_inventory import BLOCK, FUSER, INJECTOR, VACE, Structure

CLASS_OF_DIFFUSERS = "WanTransformer3DModel"
CLASS_OF_VACE = "WanVACETransformer3DModel"

TEXT_LEN = 512
"""Tokens of a prompt. Fixed in diffusers' pipelines, so its config does not say."""


def is_diffusers(config: Mapping[str, Any]) -> bool:
    return config.get("_class_name") in (CLASS_OF_DIFFUSERS, CLASS_OF_VACE) or "num_attention_heads" in config


def to_original(config: Mapping[str, Any]) -> dict[str, Any]:
    """From a diffusers config; what it leaves out has the default of diffusers' class."""
    heads = config.get("num_attention_heads", 40)
    in_dim = config.get("in_channels", 16)
    return {
        "model_type": _model_type(image=bool(config.get("image_dim")), flf=bool(config.get("pos_embed_seq_len"))),
        "dim": heads * config.get("attention_head_dim", 128),
        "ffn_dim": config.get("ffn_dim", 13824),
        "num_heads": heads,
        "num_layers": config.get("num_layers", 40),
        "in_dim": in_dim,
        "out_dim": config.get("out_channels", 16) or in_dim,
        "freq_dim": config.get("freq_dim", 256),
        "text_len": TEXT_LEN,
        "eps": config.get("eps", 1e-6),
    }


def to_diffusers(found: TableContents, config: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    """The fields of diffusers' class, from the shapes of the tensors.

    config: of the original; it alone knows ``num_heads`` (else supposed: heads of ``head_dim``) and ``eps``.
    """
    if found.layers(FUSER) or found.layers(INJECTOR):
        raise Refused("diffusers names of Wan Animate and S2V are not known here; use a target with original names")
    dims = found.dims
    try:
        dim, in_dim, out_dim, ffn_dim = (dims[name] for name in ("dim", "in_dim", "out_dim", "ffn_dim"))
    except KeyError as error:
        raise Refused(f"no tensor shows {error.args[0]} of this Wan, which diffusers' config.json needs") from None
    image, flf, layers = "image" in found.branches, "flf" in found.branches, found.layers(BLOCK)
    heads = config.get("num_heads")
    if not isinstance(heads, int) or heads < 1 or dim % heads:
        heads = max(dim // head_dim, 1)
    eps = config.get("eps")
    made = {
        "_class_name": CLASS_OF_DIFFUSERS,
        "added_kv_proj_dim": dim if image else None,
        "attention_head_dim": dim // heads,
        "cross_attn_norm": True,
        "eps": eps if isinstance(eps, float) else 1e-6,
        "ffn_dim": ffn_dim,
        "freq_dim": dims.get("freq_dim", 256),
        "image_dim": dims.get("image_dim", 1280) if image else None,
        "in_channels": in_dim,
        "num_attention_heads": heads,
        "num_layers": layers,
        "out_channels": out_dim,
        "patch_size": [1, 2, 2],
        "pos_embed_seq_len": dims.get("image_tokens") if flf else None,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024,
        "text_dim": dims.get("text_dim", 4096),
    }
    if vace := found.layers(VACE):
        # every n-th block from the first on has one, in both released models: no tensor tells
        step = max(layers // vace, 1)
        made |= {
            "_class_name": CLASS_OF_VACE,
            "vace_in_channels": dims.get("vace_in_dim", 96),
            "vace_layers": [step * layer for layer in range(vace)],
        }
    return made


def original(structure: Structure, num_heads: int) -> dict[str, Any]:
    """The fields of the config.json that the released models come with."""
    return {
        "_class_name": "WanModel",
        "_diffusers_version": "0.30.0",
        "dim": structure.dim,
        "eps": 1e-06,
        "ffn_dim": structure.ffn_dim,
        "freq_dim": structure.freq_dim,
        "in_dim": structure.in_dim,
        "model_type": _model_type(image=structure.image, flf=structure.flf),
        "num_heads": num_heads,
        "num_layers": structure.num_layers,
        "out_dim": structure.out_dim,
        "text_len": TEXT_LEN,
    }


def _model_type(image: bool, flf: bool) -> str:
    if flf:
        return "flf2v"
    return "i2v" if image else "t2v"
