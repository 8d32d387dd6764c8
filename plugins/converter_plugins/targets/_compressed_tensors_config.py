"""What compressed-tensors calls the parts of each format, and the ``quantization_config`` that tells of them.

Every group says its ``format`` and, where scales are no floats of the model's own, their ``scale_dtype``: what is left
out is inferred on decompression, and wrongly for int8 weights alone and for mxfp8.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from converter_core.api import UNQUANTIZED, PlannedWeight, QuantFormat, Refused, TensorSpec

from ._row_formats import FP8, INT8

METHOD = "compressed-tensors"

VERSION = "0.20.0"
"""Of compressed-tensors: the one that the tests open these files with."""

_NIBBLES = "low_nibble_first"
_TOKENS = {"strategy": "token", "symmetric": True, "dynamic": True}


@dataclass(frozen=True)
class Scheme:
    """How a format is told.

    name: of the compressor. keys: role -> name of the tensor beside the layer's name. codes, scale: header dtypes.
    group: columns that share a scale; 0: all of a row. single: roles of one number. weights, activations: arguments.
    """

    name: str
    keys: Mapping[str, str]
    codes: str
    scale: str
    weights: Mapping[str, Any]
    group: int = 0
    single: tuple[str, ...] = ()
    activations: Mapping[str, Any] | None = None

    def specs(self, codes: TensorSpec) -> dict[str, TensorSpec]:
        """Of all parts, given the spec of the codes."""
        rows, columns = codes.shape
        if "packed" in self.keys["weight"]:
            columns *= 2
        width = columns / self.group if self.group else 1
        scale = (1,) if "scale" in self.single else (rows, int(width) if width == int(width) else -1)
        found = {"weight": TensorSpec(self.codes, (rows, codes.shape[1])), "scale": TensorSpec(self.scale, scale)}
        return found | {role: TensorSpec("F32", (1,)) for role in self.single if role != "scale"}


def _ints(**more: Any) -> Mapping[str, Any]:
    return {"num_bits": 8, "type": "int", "symmetric": True, **more}


def _floats(bits: int, **more: Any) -> Mapping[str, Any]:
    return {"num_bits": bits, "type": "float", "symmetric": True, **more}


_PLAIN = {"weight": "weight", "scale": "weight_scale"}
_PACKED = {"weight": "weight_packed", "scale": "weight_scale"}

SCHEMES: Mapping[QuantFormat, Scheme] = {
    INT8: Scheme(
        "int-quantized",
        _PLAIN,
        "I8",
        "F32",
        _ints(strategy="channel", dynamic=False, scale_dtype="torch.float32"),
        activations=_ints(**_TOKENS),
    ),
    FP8: Scheme(
        "float-quantized",
        _PLAIN,
        "F8_E4M3",
        "F32",
        _floats(8, strategy="channel", dynamic=False, scale_dtype="torch.float32"),
        activations=_floats(8, **_TOKENS),
    ),
    QuantFormat("fp8", "e4m3", 8, "tensor", scale_dtype="F32"): Scheme(
        "float-quantized",
        _PLAIN,
        "F8_E4M3",
        "F32",
        _floats(8, strategy="tensor", dynamic=False, scale_dtype="torch.float32"),
        single=("scale",),
        activations=_floats(8, strategy="tensor", dynamic=True),
    ),
    QuantFormat("nvfp4", "e2m1", 4, "group", 16, "F8_E4M3", packing=_NIBBLES): Scheme(
        "nvfp4-pack-quantized",
        {**_PACKED, "global_scale": "weight_global_scale"},
        "U8",
        "F8_E4M3",
        _floats(4, strategy="tensor_group", group_size=16, dynamic=False, scale_dtype="torch.float8_e4m3fn"),
        group=16,
        single=("global_scale",),
    ),
    QuantFormat("mxfp4", "e2m1", 4, "group", 32, "F8_E8M0", packing=_NIBBLES): Scheme(
        "mxfp4-pack-quantized",
        _PACKED,
        "U8",
        "U8",
        _floats(4, strategy="group", group_size=32, dynamic=False, scale_dtype="torch.uint8"),
        group=32,
    ),
    QuantFormat("mxfp8", "e4m3", 8, "group", 32, "F8_E8M0"): Scheme(
        "mxfp8-quantized",
        _PLAIN,
        "F8_E4M3",
        "U8",
        _floats(8, strategy="group", group_size=32, dynamic=False, scale_dtype="torch.uint8"),
        group=32,
    ),
}


HALF = ("BF16", "F16")
"""What the library itself writes scales of rows in; read, never written."""


def scheme_of(format: QuantFormat) -> Scheme | None:
    dtype = "F32" if format.scale_dtype in HALF else format.scale_dtype
    return SCHEMES.get(replace(format, scale_dtype=dtype, scale_precision=""))


def format_of(layer: str, leaf: str, tensors: Mapping[str, TensorSpec]) -> tuple[QuantFormat, dict[str, str]] | None:
    """The format of a layer and its keys by role, by dtypes and shapes. leaf: the last part of the key of its codes."""
    codes = tensors[f"{layer}.{leaf}"]
    for format, scheme in SCHEMES.items():
        keys = {role: f"{layer}.{name}" for role, name in scheme.keys.items()}
        if leaf != scheme.keys["weight"] or len(codes.shape) != 2 or not all(key in tensors for key in keys.values()):
            continue
        specs, dtype = {role: tensors[key] for role, key in keys.items()}, tensors[keys["scale"]].dtype
        if scheme.scale == "F32" and dtype in HALF:
            format, scheme = replace(format, scale_dtype=dtype), replace(scheme, scale=dtype)
        if specs == scheme.specs(codes):
            return format, keys
    return None


def quantization(weights: Iterable[PlannedWeight], before: object = None) -> Mapping[str, Any]:
    """A group for each format. before: of the source; what it says of activations stays as it is."""
    activations = dict(_activations(before))
    layers: dict[str, QuantFormat] = {}
    for weight in weights:
        if weight.name.endswith(".weight"):
            layers[weight.name.removesuffix(".weight")] = weight.format
    found = dict.fromkeys(format for _, format in sorted(layers.items(), key=lambda one: one[0]))
    formats = [format for format in found if format != UNQUANTIZED]
    groups = {}
    for number, format in enumerate(formats):
        scheme = scheme_of(format)
        if scheme is None:
            raise Refused(f"{format} has no place in compressed-tensors here")
        groups[f"group_{number}"] = {
            "targets": list(_targets(layers, format)),
            "format": scheme.name,
            "weights": scheme.weights,
            "input_activations": activations.get(scheme.name, scheme.activations),
            "output_activations": None,
        }
    names = {group["format"] for group in groups.values()}
    return {
        "quant_method": METHOD,
        "format": names.pop() if len(names) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "config_groups": groups,
        "ignore": [],
        "version": VERSION,
        "sparsity_config": {},
        "transform_config": {},
    }


def _activations(before: object) -> Iterator[tuple[str, Any]]:
    """(format, how activations are quantized) of each group of a source that is compressed already."""
    if not isinstance(before, Mapping) or before.get("quant_method") != METHOD:
        return
    groups = before.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        if isinstance(group, Mapping) and "input_activations" in group:
            yield str(group.get("format") or before.get("format")), group["input_activations"]


def _targets(layers: Mapping[str, QuantFormat], format: QuantFormat) -> Iterator[str]:
    """Patterns in which a number stands for any, where they take no layer of another format; else full names."""
    taken: dict[str, set[QuantFormat]] = {}
    for name, its in layers.items():
        taken.setdefault(_pattern(name), set()).add(its)
    seen = set()
    for name, its in sorted(layers.items()):
        pattern = _pattern(name)
        target = f"re:{pattern}" if taken[pattern] == {format} else name
        if its == format and target not in seen:
            seen.add(target)
            yield target


def _pattern(name: str) -> str:
    """``blocks.3.ffn.net.2`` -> a pattern of ``blocks.N.ffn.net.N``, anchored at its end too."""
    parts = (r"\d+" if part.isdecimal() else re.escape(part) for part in name.split("."))
    return r"\.".join(parts) + "$"
