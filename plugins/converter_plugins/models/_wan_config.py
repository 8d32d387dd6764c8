"""``config.json`` of Wan transformers, in the original key format and in that of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._wan_inventory import Structure

CLASS_OF_DIFFUSERS = "WanTransformer3DModel"

TEXT_LEN = 512
"""Tokens of a prompt. Fixed in diffusers' pipelines, so its config does not say."""


def is_diffusers(config: Mapping[str, Any]) -> bool:
    return config.get("_class_name") == CLASS_OF_DIFFUSERS or "num_attention_heads" in config


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
