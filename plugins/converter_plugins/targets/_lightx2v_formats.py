"""How LightX2V stores each format, what the parts are called, and which formats a tensor can be of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from converter_core.api import QuantFormat, SourceTensors, TensorSpec

from ._swizzle import tiled_shape


@dataclass(frozen=True)
class Storage:
    """How a format stands on disk.

    weight, scale: header dtypes of the codes and of the scales. block: bytes of codes that share a scale; 0: one per
        row. canonical: header dtype of the codes before they are stored, if it is another; as many bytes.
    scalars, optional: roles of single float32 numbers that must, or may, be there.
    """

    weight: str
    scale: tuple[str, ...] = ("F32", "BF16", "F16")
    block: int = 0
    canonical: str = ""
    scalars: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def scales(self, weight: TensorSpec) -> tuple[int, int]:
        """Rows and columns of the scales, before they are swizzled."""
        rows, columns = weight.shape
        return rows, -(-columns // self.block) if self.block else 1

    def stored_scales(self, weight: TensorSpec) -> tuple[int, int]:
        shape = self.scales(weight)
        return tiled_shape(*shape) if self.block else shape


_NIBBLES = "low_nibble_first"
_E8M0 = ("F8_E8M0",)

FORMATS: Mapping[QuantFormat, Storage] = {
    QuantFormat("int8", "int8", 8, "row", scale_dtype="F32"): Storage("I8"),
    QuantFormat("fp8", "e4m3", 8, "row", scale_dtype="F32"): Storage("F8_E4M3"),
    QuantFormat("mxfp4", "e2m1", 4, "group", 32, "F8_E8M0", packing=_NIBBLES): Storage("U8", _E8M0, block=16),
    QuantFormat("mxfp6", "e3m2", 6, "group", 32, "F8_E8M0", packing="four_in_three_bytes"): Storage(
        "U8", _E8M0, block=24
    ),
    QuantFormat("mxfp8", "e4m3", 8, "group", 32, "F8_E8M0"): Storage("U8", _E8M0, block=32, canonical="F8_E4M3"),
    QuantFormat("nvfp4", "e2m1", 4, "group", 16, "F8_E4M3", packing=_NIBBLES): Storage(
        "U8", ("F8_E4M3",), block=8, scalars=("global_scale",), optional=("input_absmax",)
    ),
}
"""Format -> storage. Every other linear weight, and everything that is not one, is copied or cast."""


def storage_of(format: QuantFormat) -> Storage | None:
    """None for what LightX2V does not read. Scales of rows may be of any float dtype; float32 ones are cast to bf16 at
    load, so those that need all of their bits are not read. One scale of the whole weight is written for every row.
    """
    if format.granularity in ("row", "tensor"):
        format = replace(format, granularity="row", scale_dtype="F32")
    return FORMATS.get(format)


# These belong to the layer, not to its weight: X.alpha beside X.weight. The last two replace global_scale in files
# that LightX2V's add_scale_to_models.py has been over; they are read, never written.
LAYER_ROLES = ("input_absmax", "alpha", "input_global_scale")


def keys_of(tensors: SourceTensors, name: str) -> dict[str, str]:
    """Role -> key of all that stands beside a weight."""
    roles = ("weight", "scale", "global_scale", *LAYER_ROLES)
    return {role: key for role in roles if (key := key_of(name, role)) in tensors}


def fitting_formats(tensors: SourceTensors, name: str) -> dict[QuantFormat, bool]:
    """The formats that a tensor can be the codes of, and whether its scales then stand without padding."""
    spec, scale = tensors[name], tensors.get(key_of(name, "scale"))
    if scale is None or len(spec.shape) != 2:
        return {}
    keys = keys_of(tensors, name)
    found = {}
    for format, storage in FORMATS.items():
        known = spec.dtype == storage.weight and scale.dtype in storage.scale
        whole = set(storage.scalars) <= set(keys) or {"alpha", "input_global_scale"} <= set(keys)
        fits = known and whole and scale.shape == storage.stored_scales(spec)
        if fits and not (storage.block and spec.shape[1] % storage.block):
            found[format] = storage.scales(spec) == scale.shape
    return found


def with_scales(format: QuantFormat, dtype: str) -> QuantFormat:
    """The format with row scales of that header dtype."""
    if format.granularity != "row" or dtype == format.scale_dtype:
        return format
    return replace(format, scale_dtype=dtype)


def key_of(name: str, role: str) -> str:
    if role == "weight":
        return name
    if role in LAYER_ROLES:
        return f"{name.removesuffix('.weight')}.{role}"
    return f"{name}_{role}"
