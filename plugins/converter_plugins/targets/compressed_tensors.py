"""compressed-tensors (https://github.com/vllm-project/compressed-tensors) 0.20: an interchange format.

Tensors: ``compressed_tensors/compressors/{naive_quantized,nvfp4,mxfp4}/base.py``. Configuration:
``compressed_tensors/quantization/quant_args.py``, ``quant_scheme.py`` and ``quant_config.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

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

from . import _compressed_tensors_config
from ._compressed_tensors_config import METHOD, SCHEMES, format_of, scheme_of
from ._row_formats import WRITTEN_FOR, as_before, as_told, in_float32, told, with_exact_scales

if TYPE_CHECKING:
    from converter_core.api import Parts

SUFFIX = ".weight"


class CompressedTensors(Target):
    """What transformers' and llm-compressor's tools decompress: int8, fp8, nvfp4 and mxfp4, in any mix."""

    name = "compressed_tensors"
    row_block = 1
    key_format = "diffusers"
    file_name = "diffusion_pytorch_model"

    def key(self, context: WeightContext, role: str, /) -> str:
        layer, scheme = context.name.removesuffix(SUFFIX), scheme_of(context.format)
        if scheme is None:
            return context.name if role == "weight" else f"{context.name}_{role}"
        return f"{layer}.{scheme.keys[role]}"

    def preferred_format(self, format: QuantFormat, /) -> QuantFormat:
        """Float32 scales as they are."""
        return with_exact_scales(format)

    def encode(self, context: WeightContext, parts: Parts, /) -> Parts:
        """Codes and scales as they are; what is one number there has the shape ``[1]``."""
        if context.format == UNQUANTIZED:
            return parts
        scheme = scheme_of(context.format)
        if scheme is None:
            known = ", ".join(map(str, SCHEMES))
            more = "" if context.format.symmetric else " with zero points"
            raise Refused(
                f"is {context.format}{more}, which is not written as compressed-tensors here (it has {known} and none)"
            )
        if extra := sorted(parts.keys() - scheme.keys.keys()):
            raise Refused(f"compressed-tensors has no place for {', '.join(extra)} of {context.format} here")
        parts = in_float32(parts) if context.format.granularity in ("row", "tensor") else parts
        stored = {role: part.reshape(1) if part.dim() == 0 else part for role, part in parts.items()}
        found = {role: spec_of(part) for role, part in stored.items()}
        if found != scheme.specs(found["weight"]):
            raise Refused(f"cannot be told in compressed-tensors as {context.format}: {_listed(found)}")
        return stored

    def decode(self, context: WeightContext, stored: Parts, /) -> Parts:
        scheme = scheme_of(context.format)
        if scheme is None:
            return stored
        parts = {role: part.reshape(()) if role in scheme.single else part for role, part in stored.items()}
        return as_before(context.format, parts)

    def refuse(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Iterable[str]:
        for weight in weights:
            if weight.format != UNQUANTIZED and not weight.name.endswith(SUFFIX):
                yield f"compressed-tensors quantizes weights of layers, and {weight.name} is no X.weight"

    def extras(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Extras:
        return Extras({WRITTEN_FOR: self.name, **told(weight.format for weight in weights)})

    def config(self, config: Mapping[str, Any], weights: Sequence[PlannedWeight], /) -> Mapping[str, Any]:
        made = {key: value for key, value in config.items() if key != "quantization_config"}
        if any(weight.format != UNQUANTIZED for weight in weights):
            before = config.get("quantization_config")
            made["quantization_config"] = _compressed_tensors_config.quantization(weights, before)
        return made

    def notes(self, weights: Mapping[str, Stored], /) -> Iterable[str]:
        yield (
            "no diffusion runtime reads compressed-tensors today (diffusers 0.42 and vLLM-Omni 0.30 refuse it): it is "
            "for tools that decompress it"
        )

    def detect(self, tensors: SourceTensors, /) -> Mapping[str, Stored]:
        """By the header of a file of ours, or by ``quantization_config`` beside it; formats by dtypes and shapes."""
        config = tensors.config.get("quantization_config")
        says = isinstance(config, Mapping) and config.get("quant_method") == METHOD
        if tensors.metadata.get(WRITTEN_FOR) != self.name and not says:
            return {}
        found: dict[str, Stored] = {}
        for key in tensors:
            layer, _, leaf = key.rpartition(".")
            if (known := format_of(layer, leaf, tensors) if layer else None) is not None:
                format, keys = known
                found[layer + SUFFIX] = Stored(as_told(format, tensors.metadata), keys)
        return found


def _listed(specs: Mapping[str, TensorSpec]) -> str:
    return ", ".join(f"{role} {spec}" for role, spec in specs.items())


@hookimpl
def converter_targets() -> Sequence[type[Target]]:
    return [CompressedTensors]
