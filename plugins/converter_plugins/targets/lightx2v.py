"""LightX2V (https://github.com/ModelTC/LightX2V), August 2026: what its Wan runtime reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from converter_core.api import (
    UNQUANTIZED,
    Extras,
    LoraChange,
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

from . import _lightx2v_config
from ._comfyui_files import MARKER
from ._lightx2v_flags import REPLACED_FLAGS, RUNS_ON
from ._lightx2v_formats import FORMATS, Storage, fitting_formats, key_of, keys_of, storage_of, with_scales
from ._row_formats import WRITTEN_FOR, formats_told, in_header
from ._swizzle import ROWS, swizzle, unswizzle
from .plain import FORMATS_KEY

if TYPE_CHECKING:
    from torch import Tensor

    from converter_core.api import Parts


class LightX2V(Target):
    """What LightX2V's Wan runtime loads: one scheme of ``FORMATS`` for all linear weights of the blocks."""

    name = "lightx2v"
    default = True
    replaced_flags: ClassVar[Mapping[str, str]] = REPLACED_FLAGS
    runs_on: ClassVar[Mapping[str, str]] = RUNS_ON
    row_block = ROWS
    lora_forms: ClassVar[Collection[str]] = ("lora", "diff")

    def key(self, context: WeightContext, role: str, /) -> str:
        return key_of(context.name, role)

    def encode(self, context: WeightContext, parts: Parts, /) -> Parts:
        """Block scales are swizzled (``_swizzle``), one scale of the whole weight is repeated for every row."""
        format = context.format
        if format == UNQUANTIZED:
            self._check_roles(format, set(parts), {"weight"}, set())
            return parts
        storage = storage_of(format)
        if storage is None and "zero_point" in parts:
            self._check_roles(format, set(parts), set(), set())
        if storage is None and storage_of(replace(format, scale_precision="")) is not None:
            raise Refused(
                "has scales in full float32, and LightX2V rounds them to bfloat16 when it loads them; quantize with "
                "scale_dtype left out, or scale_dtype: bfloat16"
            )
        if storage is None:
            known = ", ".join(map(str, FORMATS))
            raise Refused(
                f"is {format.name!r}, which LightX2V does not read (it reads {known} and none); "
                "target.format: plain takes any"
            )
        self._check_roles(format, set(parts), {"weight", "scale", *storage.scalars}, set(storage.optional))
        if format.granularity == "tensor":
            scale = parts["scale"].reshape(-1, 1).expand(parts["weight"].shape[0], 1)
            parts = {**parts, "scale": scale.contiguous()}
        self._check_specs(context, storage, {role: spec_of(part) for role, part in parts.items()})
        if not storage.block:
            return parts
        scale = parts["scale"]
        # bytes are moved, whatever they stand for: not every torch can index or copy float8
        stored = {**parts, "scale": swizzle(scale.view(torch.uint8)).view(scale.dtype)}
        if storage.canonical:
            stored["weight"] = parts["weight"].contiguous().view(torch.uint8)
        return stored

    def decode(self, context: WeightContext, stored: Parts, /) -> Parts:
        """Canonical parts. A missing ``global_scale`` comes from ``alpha = 1 / (input_global_scale global_scale)``."""
        storage = storage_of(context.format)
        if storage is not None and context.format.granularity == "tensor":
            return {**stored, "scale": stored["scale"][:1].reshape(())}
        if storage is None or not storage.block:
            return stored
        rows, blocks = storage.scales(spec_of(stored["weight"]))
        scale = stored["scale"]
        parts = {
            **stored,
            "scale": unswizzle(scale.view(torch.uint8), rows, blocks).contiguous().view(scale.dtype),
        }
        if storage.canonical:
            parts["weight"] = stored["weight"].contiguous().view(torch.float8_e4m3fn)
        alpha, input_global_scale = parts.pop("alpha", None), parts.pop("input_global_scale", None)
        if alpha is not None and input_global_scale is not None and "global_scale" not in parts:
            parts["global_scale"] = (alpha * input_global_scale).reciprocal().reshape(())
        return parts

    def stored_spec(self, context: WeightContext, role: str, spec: TensorSpec, /) -> TensorSpec:
        if role == "scale" and context.format.scale_dtype == "F8_E8M0":
            return TensorSpec("F8_E8M0", spec.shape)
        return spec

    def simulate_load(self, context: WeightContext, stored: Parts, /) -> Parts:
        """Every float tensor through bfloat16, scales too (base_model.py, ``_load_quant_ckpt``; not when lazy).

        They come back as float32, in which every bfloat16 has its place (not so float16).
        """
        floats = (torch.float32, torch.float16)
        return {role: part.bfloat16().float() if part.dtype in floats else part for role, part in stored.items()}

    def refuse(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Iterable[str]:
        """One scheme for all linear weights of the blocks, or none at all (wan/weights/transformer_weights.py).

        Encoders are loaded strictly, by the code of the model itself: no tensor of another name, no packed format.
        """
        used: dict[str, list[str]] = {}
        component = _component(model)
        if component != _lightx2v_config.DIT:
            yield from _lightx2v_config.encoder_problems(component, weights)
        for weight in weights:
            if weight.info.kind == "linear":
                used.setdefault(weight.format.name, []).append(weight.name)
            elif weight.format != UNQUANTIZED:
                yield f"LightX2V reads {weight.name} unquantized only, not as {weight.format}"
        if len(used) < 2 or model.facts.get("generic"):
            return
        skipped = used.pop(UNQUANTIZED.name, [])
        schemes = " and ".join(f"{format} to {_examples(names)}" for format, names in sorted(used.items()))
        if len(used) > 1:
            yield (
                f"LightX2V reads one scheme for all linear weights of the blocks; this gives {schemes}. "
                "Use one method for all, or target plain, which takes any mix"
            )
        if skipped:
            yield (
                "LightX2V reads the linear weights of the blocks all quantized or none of them; this gives "
                f"{schemes} and leaves out {_examples(skipped)}. Quantize these too (target_modules, rules), "
                "or use target plain, which takes any mix"
            )

    def merge_lora(self, weight: Tensor, change: LoraChange, /) -> Tensor:
        """LoRALoader.apply_lora: every product and sum is rounded to the source's dtype; a difference is multiplied by
        ``lora_alpha`` too where one was given. Its own matrix product sums in an order that machines do not share.
        """
        delta = change.product.to(weight.dtype)
        factor = change.scale if change.form == "lora" else change.alpha
        if factor is not None:
            delta = delta * factor
        return weight + delta * change.strength

    def extras(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Extras:
        """Says where a scale that stands in every row is one of the whole weight."""
        whole = dict.fromkeys(weight.format for weight in weights if weight.format.granularity == "tensor")
        return Extras(in_header(whole))

    def notes(self, weights: Mapping[str, Stored], /) -> Iterable[str]:
        return _lightx2v_config.notes(weights)

    def detect(self, tensors: SourceTensors, /) -> Mapping[str, Stored]:
        """By dtypes and shapes, for LightX2V writes no metadata; the files of other targets say whose they are."""
        told = tensors.metadata.keys() & {FORMATS_KEY, WRITTEN_FOR} or "quantization_config" in tensors.config
        if told or any(key.endswith(f".{MARKER}") for key in tensors):
            return {}
        fitting = {name: fits for name in tensors if (fits := fitting_formats(tensors, name))}
        # small weights of two formats can look alike, as scales are padded: a file has one for all, and unpadded ones
        # are likelier
        often = Counter(format for fits in fitting.values() for format in fits)
        found: dict[str, Stored] = {}
        for name, fits in fitting.items():
            format = max(fits, key=lambda one: (often[one], fits[one]))
            format = with_scales(format, tensors[key_of(name, "scale")].dtype)
            whole = (one for one in formats_told(tensors.metadata) if replace(one, granularity="row") == format)
            found[name] = Stored(next(whole, format), keys_of(tensors, name))
        return found

    def runtime_config(self, model: ModelFacts, weights: Mapping[str, Stored], path: str, /) -> Mapping[str, Any]:
        """Of an encoder the file is named, for a folder is not read; nothing if there are several."""
        component = _component(model)
        if component != _lightx2v_config.DIT:
            if len(model.files) != 1:
                return {}
            path = model.files[0]
        return _lightx2v_config.runtime_config(component, weights, path)

    def _check_roles(self, format: QuantFormat, roles: set[str], needed: set[str], optional: set[str]) -> None:
        if "zero_point" in roles:
            raise Refused(
                f"LightX2V cannot store the zero_point of asymmetric {format}; use symmetric: true, or target plain"
            )
        if extra := sorted(roles - needed - optional):
            raise Refused(f"LightX2V has no place for {', '.join(extra)} of {format}; target plain takes any part")
        if missing := sorted(needed - roles):
            raise Refused(f"{format} needs {', '.join(missing)} to be read by LightX2V")

    def _check_specs(self, context: WeightContext, storage: Storage, specs: Mapping[str, TensorSpec]) -> None:
        format, weight, scale = context.format, specs["weight"], specs["scale"]
        codes = storage.canonical or storage.weight
        if weight.dtype != codes or len(weight.shape) != 2:
            raise Refused(f"LightX2V reads the weight of {format} as {codes} [rows, columns], not {weight}")
        shape = storage.scales(weight)
        if self.stored_spec(context, "scale", scale).dtype not in storage.scale or scale.shape != shape:
            raise Refused(
                f"LightX2V reads the scale of {format} as {' or '.join(storage.scale)} {list(shape)} "
                f"beside a weight of {list(weight.shape)}, not {scale}"
            )
        for role in (*storage.scalars, *storage.optional):
            if role in specs and specs[role] != TensorSpec("F32", ()):
                raise Refused(f"LightX2V reads {role} of {format} as one F32 number of shape [], not {specs[role]}")


def _component(model: ModelFacts) -> str:
    return str(model.facts.get("component", _lightx2v_config.DIT))


def _examples(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(names[:most])
    return f"{len(names)} ({shown}{', …' if len(names) > most else ''})"


@hookimpl
def converter_targets() -> Sequence[type[Target]]:
    return [LightX2V]
