"""ComfyUI (https://github.com/comfyanonymous/ComfyUI): what "Load Diffusion Model" reads."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from converter_core.api import (
    UNQUANTIZED,
    Extras,
    ModelFacts,
    PlannedWeight,
    QuantFormat,
    Refused,
    SourceTensors,
    Stored,
    Target,
    TensorSpec,
    WeightContext,
    hookimpl,
    spec_of,
)

from . import _comfyui_files, _comfyui_models
from ._comfyui_files import LEGACY_MARKER, MARKER, configuration
from ._comfyui_formats import (
    FLOAT_SCALES,
    FORMATS,
    Storage,
    divided,
    padded,
    reciprocal,
    storage_of,
    swap_nibbles,
    undone,
)
from ._swizzle import ROWS, swizzle, unswizzle

if TYPE_CHECKING:
    from converter_core.api import Parts

ROLES: Mapping[str, str] = {
    "scale": "weight_scale",
    "global_scale": "weight_scale_2",
    "input_absmax": "input_scale",
    MARKER: MARKER,
}
"""Role -> what its key ends in."""

LEGACY_ROLES: Mapping[str, str] = {"scale": "scale_weight", "input_absmax": "scale_input"}

FLOAT8 = ("F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class ComfyUI(Target):
    """One safetensors file for ComfyUI's "Load Diffusion Model": int8, fp8, mxfp8 and nvfp4, in any mix.

    style: ``comfy_quant`` names the format of each layer; ``legacy`` is the ``scaled_fp8`` of older versions and of
        other readers, for fp8 alone.
    full_precision_matrix_mult: multiply in the compute dtype, with weights dequantized. Left out: true for fp8 layers
        without activation statistics, which ComfyUI would otherwise clamp at 448 (its scale for them is then 1).
    """

    name: ClassVar[str] = "comfyui"
    row_block: ClassVar[int | None] = ROWS
    one_file: ClassVar[bool] = True
    flags: ClassVar[Mapping[str, Mapping[str, str]]] = {"--comfyui-mode": {"target.format": "comfyui"}}
    runs_on: ClassVar[Mapping[str, str]] = {
        format.name: f"ComfyUI {storage.since} or newer runs it." for format, storage in FORMATS.items()
    }

    style: Literal["comfy_quant", "legacy"] = "comfy_quant"
    full_precision_matrix_mult: bool | None = None

    def preferred_format(self, format: QuantFormat, /) -> QuantFormat:
        """fp8 with one scale for the whole weight; float32 scales as they are."""
        if format.granularity not in ("row", "tensor"):
            return format
        exact = replace(format, scale_precision="F32") if format.scale_dtype == "F32" else format
        whole = replace(exact, granularity="tensor")
        return exact if storage_of(exact) is not None or storage_of(whole) is None else whole

    def key_format_for(self, known: Collection[str]) -> str:
        """Text encoders in transformers' naming, everything else in its own."""
        return "transformers" if "transformers" in known else self.key_format

    def key(self, context: WeightContext, role: str, /) -> str:
        if role == "weight":
            return context.name
        ends = LEGACY_ROLES if self.style == "legacy" else ROLES
        return f"{context.name.removesuffix('.weight')}.{ends[role]}"

    def encode(self, context: WeightContext, parts: Parts, /) -> Parts:
        """Nibbles swapped, block scales swizzled, rows padded, other scales float32; ``global_scale`` inverted."""
        if context.format == UNQUANTIZED:
            self._check_unquantized(context, parts)
            return parts
        storage = self._storage(context)
        self._check(context, storage, {role: spec_of(part) for role, part in parts.items()})
        weight, scale = parts["weight"], parts["scale"]
        stored = {"weight": padded(swap_nibbles(weight) if storage.per_byte > 1 else weight, storage.rows)}
        if storage.block:
            stored["scale"] = swizzle(scale.view(torch.uint8)).view(scale.dtype)
        else:
            stored["scale"] = scale.to(torch.float32)
        if "global_scale" in parts:
            stored["global_scale"] = reciprocal(parts["global_scale"])
        if "input_absmax" in parts:
            stored["input_absmax"] = divided(storage.input_max)(parts["input_absmax"])
        return stored

    def decode(self, context: WeightContext, stored: Parts, /) -> Parts:
        """``global_scale`` and ``input_absmax`` as they were if bf16 holds them, else the nearest float32 numbers."""
        storage = storage_of(context.format)
        if storage is None:
            return stored
        weight, scale = stored["weight"], stored["scale"]
        rows = context.spec.shape[0] if context.spec is not None else weight.shape[0]
        codes = weight[:rows].contiguous()
        parts = {"weight": swap_nibbles(codes) if storage.per_byte > 1 else codes}
        if storage.block:
            blocks = storage.columns(spec_of(weight)) // storage.block
            parts["scale"] = unswizzle(scale.view(torch.uint8), rows, blocks).contiguous().view(scale.dtype)
        else:
            kept = {"BF16": torch.bfloat16, "F16": torch.float16}.get(context.format.scale_dtype, torch.float32)
            parts["scale"] = (scale.reshape(()) if context.format.granularity == "tensor" else scale).to(kept)
        if "global_scale" in stored:
            inverse = stored["global_scale"].float().reshape(())
            parts["global_scale"] = undone(inverse, reciprocal, reciprocal(inverse))
        if "input_absmax" in stored:
            share = stored["input_absmax"].float().reshape(())
            parts["input_absmax"] = undone(share, divided(storage.input_max), share * storage.input_max)
        return parts

    def stored_spec(self, context: WeightContext, role: str, spec: TensorSpec, /) -> TensorSpec:
        if role == "scale" and context.format.scale_dtype == "F8_E8M0":
            return TensorSpec("F8_E8M0", spec.shape)
        return spec

    def markers(self, context: WeightContext, /) -> Parts:
        storage = storage_of(context.format)
        if storage is None or self.style == "legacy":
            return {}
        text = json.dumps(self._configuration(storage, context.roles)).encode()
        return {MARKER: torch.tensor(list(text), dtype=torch.uint8)}

    def refuse(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Iterable[str]:
        yield from _comfyui_models.problems(model, weights)
        for weight in weights:
            linear = weight.info.kind == "linear" and weight.name.endswith(".weight")
            if weight.format != UNQUANTIZED and not linear:
                yield f"ComfyUI reads {weight.name} unquantized only, not as {weight.format}; give it method: none"

    def extras(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Extras:
        extras = self._marks(weights)
        return replace(extras, tensors={**extras.tensors, **_comfyui_models.tokenizer(model)})

    def _marks(self, weights: Sequence[PlannedWeight]) -> Extras:
        """What says that weights are quantized."""
        quantized = {weight.name: weight for weight in weights if weight.format != UNQUANTIZED}
        if not quantized:
            return Extras()
        roles = {name: tuple(output.role for output in weight.outputs) for name, weight in quantized.items()}
        metadata = _comfyui_files.provenance(quantized)
        if self.style == "legacy":
            full = self.full_precision_matrix_mult
            if full is None:
                full = any("input_absmax" not in found for found in roles.values())
            return Extras(metadata, tensors={LEGACY_MARKER: torch.zeros(2 * full, dtype=torch.float8_e4m3fn)})
        layers = {
            name.removesuffix(".weight"): self._configuration(storage, roles[name])
            for name, weight in quantized.items()
            if (storage := storage_of(weight.format)) is not None
        }
        return Extras({**_comfyui_files.announcement(layers), **metadata})

    def notes(self, weights: Mapping[str, Stored], /) -> Iterable[str]:
        return _comfyui_files.notes(weights)

    def detect(self, tensors: SourceTensors, /) -> Mapping[str, Stored]:
        return _comfyui_files.detect(tensors)

    def added(self, tensors: SourceTensors, /) -> Iterable[str]:
        return _comfyui_files.markers(tensors)

    def runtime_config(self, model: ModelFacts, weights: Mapping[str, Stored], path: str, /) -> Mapping[str, Any]:
        return _comfyui_models.place(model)

    def _configuration(self, storage: Storage, roles: Sequence[str]) -> dict[str, Any]:
        full = self.full_precision_matrix_mult
        if full is None:
            full = storage.called == "float8_e4m3fn" and "input_absmax" not in roles
        return configuration(storage.called, full)

    def _storage(self, context: WeightContext) -> Storage:
        format = context.format
        storage = storage_of(format)
        if storage is None and storage_of(replace(format, granularity="tensor")) is not None:
            raise Refused(
                f"ComfyUI reads {format.name} with one scale for the whole weight; leave per_channel out, or write "
                "per_channel: false"
            )
        if storage is None and storage_of(replace(format, symmetric=True)) is not None:
            raise Refused(
                f"ComfyUI cannot store the zero_point of asymmetric {format}; use symmetric: true, or target plain"
            )
        if storage is None:
            known = ", ".join(dict.fromkeys(map(str, FORMATS)))
            raise Refused(
                f"is {format.name!r}, which ComfyUI does not read (it reads {known} and none); target.format: plain "
                "takes any"
            )
        if self.style == "legacy" and storage.called != "float8_e4m3fn":
            raise Refused(f"is {format.name!r}; style: legacy holds fp8 only; leave style out for any mix of formats")
        return storage

    def _check(self, context: WeightContext, storage: Storage, specs: Mapping[str, TensorSpec]) -> None:
        format = context.format
        needed = {"weight", "scale"} | ({"global_scale"} if storage.block == 16 else set())
        optional = {"input_absmax"} if storage.input_max else set()
        if extra := sorted(set(specs) - needed - optional):
            raise Refused(f"ComfyUI has no place for {', '.join(extra)} of {format}; target plain takes any part")
        if missing := sorted(needed - set(specs)):
            raise Refused(f"{format} needs {', '.join(missing)} to be read by ComfyUI")
        weight, scale = specs["weight"], specs["scale"]
        if weight.dtype != storage.weight or len(weight.shape) != 2:
            raise Refused(f"ComfyUI reads the weight of {format} as {storage.weight} [rows, columns], not {weight}")
        shape: tuple[int, ...] = () if format.granularity == "tensor" else (weight.shape[0], 1)
        dtypes: tuple[str, ...] = FLOAT_SCALES
        if storage.block:
            shape = weight.shape[0], -(-storage.columns(weight) // storage.block)
            dtypes = ("U8",) if format.scale_dtype == "F8_E8M0" else (format.scale_dtype,)
        if scale.dtype not in dtypes or scale.shape != shape:
            raise Refused(
                f"ComfyUI reads the scale of {format} as {' or '.join(dtypes)} {list(shape)} beside a weight of "
                f"{list(weight.shape)}, not {scale}"
            )
        for role in ("global_scale", "input_absmax"):
            if role in specs and specs[role] != TensorSpec("F32", ()):
                raise Refused(f"ComfyUI reads {role} of {format} as one F32 number of shape [], not {specs[role]}")

    def _check_unquantized(self, context: WeightContext, parts: Parts) -> None:
        if set(parts) != {"weight"}:
            raise Refused(f"ComfyUI has no place for {', '.join(sorted(set(parts) - {'weight'}))}")
        spec = spec_of(parts["weight"])
        if spec.dtype in FLOAT8 and len(spec.shape) != 2:
            raise Refused(f"is {spec.dtype}; ComfyUI reads only matrices so; write target.dtype: bfloat16 to cast it")


@hookimpl
def converter_targets() -> Sequence[type[Target]]:
    return [ComfyUI]
