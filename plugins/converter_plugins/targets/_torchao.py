"""What torchao 0.18 writes of its tensors into a safetensors header, and of its settings into a ``config.json``.

``torchao/prototype/safetensors/safetensors_support.py`` (``flatten_tensor_state_dict``) and
``torchao/core/config.py`` (``config_to_dict``). The fields are those of torchao's classes: test again when it changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from converter_core.api import UNQUANTIZED, PlannedWeight, QuantFormat

_BFLOAT16 = {"_type": "torch.dtype", "_data": "bfloat16"}
_PER_ROW = {"_type": "PerRow", "_data": {"dim": -1}}
_PER_ROW_OF_CONFIG = {"_type": "PerRow", "_version": 1, "_data": {"dim": -1}}
_SYMMETRIC = {"_type": "MappingType", "_data": "SYMMETRIC"}
_DYNAMIC_INT8 = {
    "_type": "QuantizeTensorToInt8Kwargs",
    "_data": {"granularity": _PER_ROW, "mapping_type": _SYMMETRIC, "reduce_range": False},
}


def records(weights: Iterable[PlannedWeight], activations: str) -> Mapping[str, str]:
    """A JSON record for each tensor of the model, and ``tensor_names``."""
    found: dict[str, str] = {}
    for weight in weights:
        if weight.format == UNQUANTIZED:
            found |= {output.key: _json({"_type": "Tensor"}) for output in weight.outputs}
        else:
            found[weight.name] = _json(_record(weight, activations))
    return {**found, "tensor_names": _json(list(found))}


def _record(weight: PlannedWeight, activations: str) -> Mapping[str, Any]:
    block = [1, weight.spec.shape[-1]]
    if weight.format.element == "int8":
        kind, data = (
            "Int8Tensor",
            {
                "act_quant_kwargs": _DYNAMIC_INT8 if activations == "dynamic" else None,
                "reduce_range": False,
                "block_size": block,
                "dtype": _BFLOAT16,
            },
        )
    else:
        kind, data = (
            "Float8Tensor",
            {
                "block_size": block,
                "mm_config": None,
                "act_quant_kwargs": None,
                "kernel_preference": {"_type": "KernelPreference", "_data": "AUTO"},
                "dtype": _BFLOAT16,
            },
        )
    names = ["qdata" if output.role == "weight" else output.role for output in weight.outputs]
    return {"_type": kind, "_data": data, "_tensor_data_names": names}


def is_dynamic(metadata: Mapping[str, Any]) -> bool:
    """Whether the records of a file say that activations are quantized as the model runs."""
    return any("QuantizeTensorToInt8Kwargs" in str(record) for record in metadata.values())


def recipe(format: QuantFormat, activations: str) -> Mapping[str, Any]:
    """The ``quant_type`` that would have made such weights."""
    if format.element == "int8" and activations == "dynamic":
        return {
            "_type": "Int8DynamicActivationInt8WeightConfig",
            "_version": 2,
            "_data": {
                "act_mapping_type": _SYMMETRIC,
                "granularity": _PER_ROW_OF_CONFIG,
                "reduce_range": False,
                "set_inductor_config": True,
                "weight_only_decode": False,
            },
        }
    if format.element == "int8":
        return {
            "_type": "Int8WeightOnlyConfig",
            "_version": 2,
            "_data": {"granularity": _PER_ROW_OF_CONFIG, "group_size": None, "set_inductor_config": True},
        }
    return {
        "_type": "Float8WeightOnlyConfig",
        "_version": 2,
        "_data": {
            "granularity": _PER_ROW_OF_CONFIG,
            "set_inductor_config": True,
            "weight_dtype": {"_type": "torch.dtype", "_data": "float8_e4m3fn"},
        },
    }


def _json(content: Any) -> str:
    return json.dumps(content, separators=(",", ":"))
