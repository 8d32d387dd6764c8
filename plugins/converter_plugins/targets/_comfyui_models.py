"""Which models ComfyUI reads from files in the naming that is written here, and where they belong.

``comfy/model_detection.py`` and ``comfy/supported_models.py`` of ComfyUI 0.33; for text encoders ``comfy/sd.py``
(``load_text_encoder_state_dicts``) and ``comfy/text_encoders/wan.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from converter_core.api import ModelFacts, PlannedWeight

if TYPE_CHECKING:
    from converter_core.api import Parts

TEXT_ENCODER = "t5"
TOKENIZER = "spiece_model"
"""The tensor that holds the bytes of a sentencepiece file."""

OTHER_NAMING: Mapping[str, str] = {
    "flux2_dit": "query, key and value fused into one weight, in the naming of Black Forest Labs",
    "hunyuan_dit": "query, key and value fused into one weight",
    "wan_clip": "the naming of transformers",
    "z_image_dit": "query, key and value fused into one weight",
}
"""Models of which ComfyUI knows another form than that which is written here."""


def problems(model: ModelFacts, weights: Sequence[PlannedWeight]) -> Iterator[str]:
    if model.name in OTHER_NAMING:
        yield (
            f"ComfyUI reads {model.name} with {OTHER_NAMING[model.name]}, which is not written here; use another "
            "target, or target plain"
        )
    tokenizer = model.facts.get("tokenizer") or any(weight.name == TOKENIZER for weight in weights)
    if model.facts.get("component") == TEXT_ENCODER and not tokenizer:
        yield (
            f"ComfyUI reads the tokenizer out of the same file ({TOKENIZER}): say where it lies with source.options: "
            "{tokenizer: /path/to/google/umt5-xxl/spiece.model} beside source.type"
        )


def tokenizer(model: ModelFacts) -> Parts:
    path = model.facts.get("tokenizer")
    if model.facts.get("component") != TEXT_ENCODER or not path:
        return {}
    return {TOKENIZER: torch.frombuffer(bytearray(Path(path).read_bytes()), dtype=torch.uint8)}


def place(model: ModelFacts) -> Mapping[str, Any]:
    """The folder a file belongs in, and the node that loads it."""
    if model.facts.get("component") == TEXT_ENCODER:
        return {"folder": "ComfyUI/models/text_encoders", "node": "Load CLIP (CLIPLoader)", "type": "wan"}
    return {
        "folder": "ComfyUI/models/diffusion_models",
        "node": "Load Diffusion Model (UNETLoader)",
        "weight_dtype": "default",
    }
