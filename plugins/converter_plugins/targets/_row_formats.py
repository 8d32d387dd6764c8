"""int8 and fp8 with a float32 scale for each row: the bytes that most readers share, under different names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from converter_core.api import (
    CheckpointError,
    QuantFormat,
    Refused,
    SourceTensors,
    Stored,
    TensorSpec,
    spec_of,
)

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


TOLD = "row_formats"
"""The entry of a header's metadata with the facts of the formats that names, dtypes and shapes do not tell."""


def told(formats: Iterable[QuantFormat]) -> dict[str, str]:
    """For the header, where float32 scales hold no more than bf16 or fp16 does."""
    rows = [format for format in dict.fromkeys(formats) if format.granularity in ("row", "tensor")]
    return in_header(rows) if any(format != exact(format) for format in rows) else {}


def in_header(formats: Iterable[QuantFormat]) -> dict[str, str]:
    facts = [{"name": format.name, **format.facts()} for format in formats]
    return {TOLD: json.dumps(facts, sort_keys=True, separators=(",", ":"))} if facts else {}


def as_told(found: QuantFormat, metadata: Mapping[str, Any]) -> QuantFormat:
    """The format in full. Float32 scales of rows need all of their bits unless the header says that they do not."""
    if found.scale_dtype != "F32" or found.granularity not in ("row", "tensor"):
        return found
    fitting = {format for format in formats_told(metadata) if exact(format) == exact(found)}
    return fitting.pop() if len(fitting) == 1 else exact(found)


def exact(format: QuantFormat) -> QuantFormat:
    """With scales of rows, or of the whole weight, that need all bits of float32."""
    rows = format.granularity in ("row", "tensor")
    return replace(format, scale_dtype="F32", scale_precision="F32") if rows else format


def in_float32(parts: Parts) -> Parts:
    """As these readers want the scales; those of bf16 or fp16 are held exactly."""
    return {role: part.float() if role == "scale" else part for role, part in parts.items()}


def as_before(format: QuantFormat, parts: Parts) -> Parts:
    """The inverse of ``in_float32``."""
    dtype = _HALVES.get(format.scale_dtype)
    if dtype is None:
        return parts
    return {role: part.to(dtype) if role == "scale" else part for role, part in parts.items()}


_HALVES = {"BF16": torch.bfloat16, "F16": torch.float16}


def formats_told(metadata: Mapping[str, Any]) -> Iterator[QuantFormat]:
    try:
        listed = json.loads(metadata.get(TOLD, "[]"))
        yield from [QuantFormat.from_facts(str(entry["name"]), entry) for entry in listed]
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise CheckpointError(f"metadata {TOLD!r} is not what this tool writes; the file is damaged") from None


WRITTEN_FOR = "written_for"
"""The entry of a header's metadata that names the target: several readers share names and bytes."""


def find_rows(tensors: SourceTensors, suffix: str) -> Mapping[str, Stored]:
    """``X.weight`` of 8 bits beside float32 ``X.weight{suffix}`` ``[rows, 1]``, by name."""
    found: dict[str, Stored] = {}
    for key, spec in tensors.items():
        format, scale = row_format(spec), f"{key}{suffix}"
        if format is not None and len(spec.shape) == 2 and tensors.get(scale) == TensorSpec("F32", (spec.shape[0], 1)):
            format = as_told(format, tensors.metadata)
            found[key] = Stored(format, {"weight": key, "scale": scale}, spec.shape)
    return found


def check_rows(reader: str, format: QuantFormat, parts: Parts) -> None:
    """Refused unless these are codes ``[N, K]`` and float32 scales ``[N, 1]``."""
    dtype = "F32" if format.scale_dtype in _HALVES else format.scale_dtype
    plain = replace(format, scale_precision="", scale_dtype=dtype)
    if plain not in (INT8, FP8):
        why = "" if format.element not in (INT8.element, FP8.element) else _difference(format)
        raise Refused(
            f"is {format}{why}, which {reader} does not read here (it reads int8 and fp8 with a float32 scale for each "
            "row, and none)"
        )
    if extra := sorted(parts.keys() - {"weight", "scale"}):
        raise Refused(f"{reader} has no place for {', '.join(extra)} of {format}")
    weight, scale = spec_of(parts["weight"]), spec_of(parts["scale"])
    if row_format(weight) != plain or len(weight.shape) != 2 or scale != TensorSpec("F32", (weight.shape[0], 1)):
        raise Refused(f"{reader} reads {format} as [rows, columns] beside F32 [rows, 1], not {weight} beside {scale}")


def _difference(format: QuantFormat) -> str:
    if not format.symmetric:
        return " with zero points"
    if format.granularity != "row":
        return f" with a scale for each {format.granularity}"
    return f" with {format.scale_dtype or 'the source dtype as'} scales"
