"""Diffusers (https://github.com/huggingface/diffusers) 0.42: what its transformer classes load, plain or quantized.

Sources: ``models/modeling_utils.py`` (names of files, the index), ``quantizers/sdnq``, ``quantizers/torchao`` and
``quantizers/bfl`` of diffusers 0.42.1, and the packages these lead to (sdnq 0.2.8, torchao 0.18.0).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

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
)

from . import _diffusers_config, _torchao
from ._row_formats import FP8, as_before, as_told, check_rows, in_float32, row_format, told, with_exact_scales

if TYPE_CHECKING:
    from converter_core.api import Parts

SUFFIX = ".weight"

NOT_DYNAMIC = "activations: dynamic is written for int8 only; nothing here can test it for fp8"


@dataclass(frozen=True)
class Diffusers(Target):
    """Diffusers names, ``diffusion_pytorch_model``, its ``config.json``; int8 and fp8 as its quantizers read them.

    style: ``unquantized``; ``sdnq`` (int8, fp8; the default where weights are quantized); ``torchao`` (int8, fp8);
        ``bfl`` (fp8 under original names, for ``from_single_file``).
    activations: of ``torchao`` and int8: ``dynamic`` quantizes them too, row by row, while the model runs.
    """

    name: ClassVar[str] = "diffusers"
    row_block: ClassVar[int | None] = 1
    runs_on: ClassVar[Mapping[str, str]] = {
        "int8": "diffusers runs it on any device; install sdnq (or torchao, target.options.style: torchao).",
        "fp8": "diffusers runs it on any device; install sdnq (or torchao, target.options.style: torchao).",
    }
    flags: ClassVar[Mapping[str, Mapping[str, str]]] = {  # of LightX2V's converter: original names to diffusers'
        "--direction=forward": {"target.format": name},
        "-d=forward": {"target.format": name},
    }
    style: Literal["unquantized", "sdnq", "torchao", "bfl"] | None = None
    activations: Literal["none", "dynamic"] = "none"

    def __post_init__(self) -> None:
        if self.activations != "none" and self.style != "torchao":
            raise Refused("activations: dynamic is written for style: torchao only; sdnq decides it when it loads")

    @property
    def key_format(self) -> str:
        return "original" if self.style == "bfl" else "diffusers"

    @property
    def config_format(self) -> str:
        return "diffusers"

    @property
    def one_file(self) -> bool:
        return self.style == "bfl"

    @property
    def file_name(self) -> str:
        return "" if self.style == "bfl" else "diffusion_pytorch_model"

    def key(self, context: WeightContext, role: str, /) -> str:
        layer, style = context.name.removesuffix(SUFFIX), self._style(context.format)
        if style == "torchao" and context.format != UNQUANTIZED:
            return f"{layer}._weight_{'qdata' if role == 'weight' else role}"
        if role == "weight":
            return context.name
        return f"{layer}.{role}" if style == "sdnq" else f"{context.name}_{role}"

    def preferred_format(self, format: QuantFormat, /) -> QuantFormat:
        """Float32 scales as they are, but for ``sdnq``: diffusers casts those to the ``torch_dtype`` on loading."""
        return format if self._style(format) == "sdnq" else with_exact_scales(format)

    def encode(self, context: WeightContext, parts: Parts, /) -> Parts:
        """As they are; the scales of ``bfl`` are ``[rows]``, for ``[rows, 1]`` loads and then fails in use."""
        format, style = context.format, self._style(context.format)
        if format == UNQUANTIZED:
            return parts
        if style == "unquantized":
            raise Refused(f"is {format}, but target.options.style is unquantized; leave style out, or use method none")
        if style == "bfl" and format.element != FP8.element:
            raise Refused(f"is {format}, but style bfl holds fp8 only; use style sdnq, or method fp8")
        if self.activations == "dynamic" and format.element == FP8.element:
            raise Refused(NOT_DYNAMIC)
        parts = in_float32(parts)
        check_rows("diffusers", format, parts)
        return {**parts, "scale": parts["scale"].reshape(-1)} if style == "bfl" else parts

    def decode(self, context: WeightContext, stored: Parts, /) -> Parts:
        """Without a zero point of zeros, with scales ``[rows, 1]``."""
        if context.format == UNQUANTIZED or "scale" not in stored:
            return stored
        unused = {"zero_point"} if context.format.symmetric else set()
        parts = {role: part for role, part in stored.items() if role not in unused}
        return as_before(context.format, {**parts, "scale": stored["scale"].reshape(-1, 1)})

    def simulate_load(self, context: WeightContext, stored: Parts, /) -> Parts:
        """With ``torch_dtype=torch.bfloat16``, as everyone loads it."""
        if "scale" not in stored or self._style(context.format) != "sdnq":
            return stored
        return {**stored, "scale": stored["scale"].bfloat16().float()}

    def refuse(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Iterable[str]:
        """One scheme beside unquantized weights: the ``quantization_config`` has one."""
        names = {weight.format: weight.name for weight in weights if weight.format != UNQUANTIZED}
        if len(names) > 1:
            some = " and ".join(f"{format} (e.g. {name})" for format, name in names.items())
            yield f"diffusers reads one scheme beside unquantized weights; this gives {some}"
        style, format = self._scheme(weights)
        if format is not None and style != self._style(format) and (self.style is not None or style == "bfl"):
            yield f"the source is quantized in style {style} already; write target.options.style: {style}"
        if self.activations == "dynamic" and format is not None and format.element == FP8.element:
            yield (
                f"{NOT_DYNAMIC}; leave activations out, or for int8 give the original checkpoint or write "
                "source.dequantize: true"
            )
        for weight in weights:
            if weight.format != UNQUANTIZED and not weight.name.endswith(SUFFIX):
                yield f"diffusers reads {weight.name} unquantized only: it is no X.weight"

    def extras(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Extras:
        """The records of ``torchao``: of every tensor of the whole model, in every file."""
        more = told(weight.format for weight in weights)
        if self._scheme(weights)[0] != "torchao":
            return Extras(more)
        return Extras({**_torchao.records(weights, self.activations), **more})

    def config(self, config: Mapping[str, Any], weights: Sequence[PlannedWeight], /) -> Mapping[str, Any]:
        if "_class_name" not in config:
            raise Refused("the model has no config.json that diffusers reads (one that names its _class_name)")
        made = {key: value for key, value in config.items() if key != "quantization_config"}
        style, format = self._scheme(weights)
        if format is not None and style != "bfl":
            made["quantization_config"] = _diffusers_config.quantization(style, format, weights, self.activations)
        return made

    def notes(self, weights: Mapping[str, Stored], /) -> Iterable[str]:
        for stored in list(weights.values())[:1]:
            style = self._style(stored.format)
            if style in _diffusers_config.NEEDS:
                yield _diffusers_config.NEEDS[style]

    def detect(self, tensors: SourceTensors, /) -> Mapping[str, Stored]:
        """By names, dtypes and shapes, in every style."""
        found: dict[str, Stored] = {}
        for key, spec in tensors.items():
            layer, _, leaf = key.rpartition(".")
            if len(spec.shape) != 2 or leaf not in ("weight", "_weight_qdata"):
                continue
            if leaf == "weight":
                keys = {"scale": f"{layer}.scale"}
                if keys["scale"] not in tensors:
                    keys = {"scale": f"{layer}.weight_scale"}
            else:
                keys = {"scale": f"{layer}._weight_scale", "zero_point": f"{layer}._weight_zero_point"}
            there = {role: part for role, part in keys.items() if part in tensors}
            rows = (spec.shape[0],) if there.get("scale") == f"{layer}.weight_scale" else (spec.shape[0], 1)
            format = row_format(spec, symmetric=_is_zero(tensors, there.get("zero_point")))
            if format is not None and "scale" in there and tensors[there["scale"]] == TensorSpec("F32", rows):
                format = as_told(format, tensors.metadata)
                found[layer + SUFFIX] = Stored(format, {"weight": key, **there}, spec.shape)
        return found

    def options_for(self, tensors: SourceTensors, /) -> Mapping[str, Any]:
        """The style, by the keys of the scales, and what torchao does with activations."""
        scales = [stored.keys["scale"] for stored in self.detect(tensors).values()]
        if not scales:
            return {}
        style = _diffusers_config.style_of(scales[0])
        dynamic = style == "torchao" and _torchao.is_dynamic(tensors.metadata)
        return {"style": style, **({"activations": "dynamic"} if dynamic else {})}

    def runtime_config(self, model: ModelFacts, weights: Mapping[str, Stored], path: str, /) -> Mapping[str, Any]:
        return _diffusers_config.how_to_load(weights, path)

    def _style(self, format: QuantFormat) -> str:
        return self.style or ("unquantized" if format == UNQUANTIZED else "sdnq")

    def _scheme(self, weights: Iterable[PlannedWeight]) -> tuple[str, QuantFormat | None]:
        """The style, by the keys of what is quantized, and its format; None: nothing is quantized."""
        for weight in weights:
            if weight.format != UNQUANTIZED:
                keys = {output.role: output.key for output in weight.outputs}
                return _diffusers_config.style_of(keys["scale"]), weight.format
        return "unquantized", None


def _is_zero(tensors: SourceTensors, key: str | None) -> bool:
    """Whether a zero point is none: torchao writes zeros for int8. What cannot be read may be anything."""
    try:
        return key is None or not tensors.read(key).any()
    except ValueError:
        return False


@hookimpl
def converter_targets() -> Sequence[type[Target]]:
    return [Diffusers]
