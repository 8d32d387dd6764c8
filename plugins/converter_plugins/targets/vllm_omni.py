"""vLLM-Omni (https://github.com/vllm-project/vllm-omni) 0.30: int8 of Wan, in rows, under diffusers names.

``vllm_omni/quantization/int8_config.py`` (``DiffusionInt8Config.from_config``, ``BaseInt8LinearMethod.create_weights``:
int8 ``X.weight`` beside float32 ``X.weight_scale`` ``[rows, 1]``) and ``diffusion/models/wan2_2/wan2_2_transformer.py``
(which layers get the configuration, and that q, k and v are fused).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

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
    WeightContext,
    hookimpl,
)

from ._row_formats import INT8, WRITTEN_FOR, as_before, check_rows, find_rows, in_float32, told, with_exact_scales

if TYPE_CHECKING:
    from converter_core.api import Parts


CLASS = "WanTransformer3DModel"


class VllmOmni(Target):
    """int8 for all linear weights of the blocks, diffusers names, and the ``config.json`` that says so."""

    name = "vllm_omni"
    row_block = 1
    key_format = "diffusers"
    file_name = "diffusion_pytorch_model"
    runs_on: ClassVar[Mapping[str, str]] = {
        "int8": "vLLM-Omni runs it on NVIDIA from A100 and RTX 30 on, and on Ascend NPUs."
    }

    def key(self, context: WeightContext, role: str, /) -> str:
        return context.name if role == "weight" else f"{context.name}_{role}"

    def preferred_format(self, format: QuantFormat, /) -> QuantFormat:
        """Float32 scales as they are."""
        return with_exact_scales(format)

    def encode(self, context: WeightContext, parts: Parts, /) -> Parts:
        if context.format == UNQUANTIZED:
            return parts
        if context.format.element != INT8.element:
            raise Refused(f"is {context.format}; of the files of others vLLM-Omni reads int8 here, and none")
        check_rows("vLLM-Omni", context.format, in_float32(parts))
        return in_float32(parts)

    def decode(self, context: WeightContext, stored: Parts, /) -> Parts:
        return as_before(context.format, stored)

    def refuse(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Iterable[str]:
        """A layer that is left out would be fused with its neighbours all the same."""
        left = [weight.name for weight in weights if weight.format == UNQUANTIZED and _in_block(weight)]
        if left and any(weight.format != UNQUANTIZED for weight in weights):
            yield (
                f"vLLM-Omni reads the linear weights of the blocks all in int8 or none; this leaves out {len(left)}, "
                f"e.g. {left[0]}"
            )
        yield from (
            f"vLLM-Omni reads {weight.name} unquantized only"
            for weight in weights
            if weight.format != UNQUANTIZED and not _in_block(weight)
        )

    def extras(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Extras:
        return Extras({WRITTEN_FOR: self.name, **told(weight.format for weight in weights)})

    def config(self, config: Mapping[str, Any], weights: Sequence[PlannedWeight], /) -> Mapping[str, Any]:
        if config.get("_class_name") != CLASS:
            raise Refused(
                f"the model is {config.get('_class_name', 'of no class of diffusers')}, and only of {CLASS} is it "
                "known which layers vLLM-Omni takes as int8"
            )
        made = {key: value for key, value in config.items() if key != "quantization_config"}
        if any(weight.format != UNQUANTIZED for weight in weights):
            made["quantization_config"] = {
                "quant_method": "int8",
                "is_checkpoint_int8_serialized": True,
                "activation_scheme": "dynamic",
                "ignored_layers": [],
            }
        return made

    def notes(self, weights: Mapping[str, Stored], /) -> Iterable[str]:
        yield "vLLM-Omni itself was not run on such a file: its loading code was read (0.30.0)"

    def detect(self, tensors: SourceTensors, /) -> Mapping[str, Stored]:
        """By the header of a file of ours, or by the ``quantization_config`` beside it."""
        config = tensors.config.get("quantization_config")
        says = isinstance(config, Mapping) and config.get("quant_method") == "int8"
        if tensors.metadata.get(WRITTEN_FOR) != self.name and not says:
            return {}
        found = find_rows(tensors, "_scale").items()
        return {name: stored for name, stored in found if stored.format.element == INT8.element}

    def runtime_config(self, model: ModelFacts, weights: Mapping[str, Stored], path: str, /) -> Mapping[str, Any]:
        return {"vllm_omni": {"folder": path, "place": "the transformer (or transformer_2) of a diffusers pipeline"}}


def _in_block(weight: PlannedWeight) -> bool:
    return weight.info.kind == "linear" and bool(weight.info.block)


@hookimpl
def converter_targets() -> Sequence[type[Target]]:
    return [VllmOmni]
