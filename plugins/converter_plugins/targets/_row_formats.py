"""int8 and fp8 with a float32 scale for each row: the bytes that most readers share, under different names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from converter_core.api import QuantFormat, Refused, SourceTensors, Stored, TensorSpec, spec_of

if TYPE_CHECKING:
    from converter_core.api import Parts

INT8 = QuantFormat("int8", "int8", 8, "row", scale_dtype="F32")
FP8 = QuantFormat("fp8", "e4m3", 8, "row", scale_dtype="F32")
_OF: Mapping[str, QuantFormat] = {"I8": INT8, "F8_E4M3": FP8}


def row_format(codes: TensorSpec, symmetric: bool = True) -> QuantFormat | None:
    """By the dtype of the codes; None: neither."""
    format = _OF.get(codes.dtype)
    return format if format is None or symmetric else replace(format, symmetric=False)


def with_exact_scales(format: QuantFormat) -> QuantFormat:
    """The format for readers that keep float32 scales: not rounded to what bf16 holds."""
    return replace(format, scale_precision="F32") if format in (INT8, FP8) else format


WRITTEN_FOR = "written_for"
"""The entry of a header's metadata that names the target: several readers share names and bytes."""


def find_rows(tensors: SourceTensors, suffix: str) -> Mapping[str, Stored]:
    """``X.weight`` of 8 bits beside float32 ``X.weight{suffix}`` ``[rows, 1]``, by name."""
    found: dict[str, Stored] = {}
    for key, spec in tensors.items():
        format, scale = row_format(spec), f"{key}{suffix}"
        if format is not None and len(spec.shape) == 2 and tensors.get(scale) == TensorSpec("F32", (spec.shape[0], 1)):
            found[key] = Stored(format, {"weight": key, "scale": scale}, spec.shape)
    return found


def check_rows(reader: str, format: QuantFormat, parts: Parts) -> None:
    """Refused unless these are codes ``[N, K]`` and float32 scales ``[N, 1]``."""
    if replace(format, scale_precision="") not in (INT8, FP8):
        why = "" if format.element not in (INT8.element, FP8.element) else _difference(format)
        raise Refused(
            f"is {format}{why}, which {reader} does not read here (it reads int8 and fp8 with a float32 scale for each "
            "row, and none)"
        )
    if extra := sorted(parts.keys() - {"weight", "scale"}):
        raise Refused(f"{reader} has no place for {', '.join(extra)} of {format}")
    weight, scale = spec_of(parts["weight"]), spec_of(parts["scale"])
    if (
        row_format(weight) != replace(format, scale_precision="")
        or len(weight.shape) != 2
        or scale != TensorSpec("F32", (weight.shape[0], 1))
    ):
        raise Refused(f"{reader} reads {format} as [rows, columns] beside F32 [rows, 1], not {weight} beside {scale}")


def _difference(format: QuantFormat) -> str:
    if not format.symmetric:
        return " with zero points"
    if format.granularity != "row":
        return f" with a scale for each {format.granularity}"
    return f" with {format.scale_dtype or 'the source dtype as'} scales"
