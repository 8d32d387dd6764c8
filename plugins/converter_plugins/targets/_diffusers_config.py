"""``quantization_config`` of a diffusers ``config.json``, and how to load what it describes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from converter_core.api import UNQUANTIZED, PlannedWeight, QuantFormat, Stored

from . import _torchao

NEEDS: Mapping[str, str] = {
    "sdnq": "to load it: pip install sdnq (tested with 0.2.8) beside diffusers 0.40 or later",
    "torchao": "to load it: pip install torchao (tested with 0.18.0; 0.16 or later) beside diffusers 0.39 or later",
    "bfl": (
        "to load it: from_single_file(FILE, config=FOLDER, quantization_config=BFLQuantizationConfig()) with diffusers "
        "0.42 or later"
    ),
}
"""Style -> what its user must install or write."""


def quantization(
    style: str, format: QuantFormat, weights: Sequence[PlannedWeight], activations: str
) -> Mapping[str, Any]:
    """Of ``sdnq`` (sdnq/quantizer.py, ``SDNQConfig``) or ``torchao`` (diffusers' ``TorchAoConfig``)."""
    skipped = list(not_converted(weights))
    if style == "torchao":
        return {
            "quant_method": "torchao",
            "quant_type": {"default": _torchao.recipe(format, activations)},
            "modules_to_not_convert": skipped,
        }
    return {
        "quant_method": "sdnq",
        "weights_dtype": {"int8": "int8", "e4m3": "float8_e4m3fn"}[format.element],
        "group_size": -1,
        "modules_to_not_convert": skipped,
    }


def not_converted(weights: Iterable[PlannedWeight]) -> Iterator[str]:
    """Layers that stay as they are: a first component of names under which nothing is quantized, else full names.

    Both readers take a component anywhere in a name, and the full name of a weight (sdnq/utils.py,
    ``check_param_name_in``; ``TorchAoHfQuantizer.check_if_quantized_param``).
    """
    weights = sorted(weights, key=lambda weight: weight.name)
    used = {part for weight in weights if weight.format != UNQUANTIZED for part in weight.name.split(".")}
    seen = set()
    for weight in weights:
        if weight.format != UNQUANTIZED or len(weight.spec.shape) < 2 or not weight.name.endswith(".weight"):
            continue
        first = weight.name.partition(".")[0]
        name = weight.name if first in used else first
        if name not in seen:
            seen.add(name)
            yield name


def style_of(scale: str) -> str:
    """By the key of the scales of a layer."""
    return {"_weight_scale": "torchao", "weight_scale": "bfl"}.get(scale.rpartition(".")[2], "sdnq")


def how_to_load(weights: Mapping[str, Stored], path: str) -> Mapping[str, Any]:
    """For ``inspect``: the call, and what it needs."""
    if not weights:
        return {}
    style = style_of(next(iter(weights.values())).keys["scale"])
    call = "from_single_file(FILE, config=FOLDER, quantization_config=...)" if style == "bfl" else "from_pretrained"
    return {"diffusers": {"call": call, "path": path, "style": style, "needs": NEEDS[style]}}
