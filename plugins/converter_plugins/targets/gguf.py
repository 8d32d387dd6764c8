"""One GGUF file: for ComfyUI (city96's nodes), diffusers, stable-diffusion.cpp, and with fp16 for LightX2V."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

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
)

from ..containers._gguf_types import BLOCKS
from ._gguf_formats import FORMATS, file_type

if TYPE_CHECKING:
    from converter_core.api import Parts

ARCHITECTURES: Mapping[str, str] = {"wan_dit": "wan", "qwen_image_dit": "qwen_image", "ltx2_dit": "ltxv"}
"""Model adapter -> ``general.architecture``, where readers know the names of its tensors."""

KNOWN = (
    *("flux", "sd1", "sdxl", "sd3", "aura", "hidream", "cosmos", "ltxv", "hyvid", "wan", "lumina2", "qwen_image"),
    *("t5", "t5encoder", "llama", "qwen2vl", "qwen3", "qwen3vl"),
)
"""What ComfyUI-GGUF takes (``IMG_ARCH_LIST`` and ``TXT_ARCH_LIST`` of its ``loader.py``, commit 795e4515)."""

LONGEST_NAME = 127
"""Bytes of a tensor's name (``GGML_MAX_NAME`` of the readers, less the zero at its end)."""


@dataclass(frozen=True)
class Gguf(Target):
    """GGUF blocks for the linear weights, F32 (or F16) for all else; any mix of block formats in one file.

    Weights that are not quantized: linear ones as they are, of the others bf16 becomes F32, for readers do not compute
    with BF16 convolutions, norms and modulations. ``target.dtype: float16`` makes all of them F16.

    architecture: ``general.architecture`` of the file; left out: that of the model (``wan``).
    """

    name: ClassVar[str] = "gguf"
    container: ClassVar[str] = "gguf"
    one_file: ClassVar[bool] = True
    row_block: ClassVar[int | None] = 1
    runs_on: ClassVar[Mapping[str, str]] = dict.fromkeys(
        (format.name for format in FORMATS.values()), "ComfyUI-GGUF and diffusers run it on any GPU."
    )

    architecture: str = ""

    def key(self, context: WeightContext, role: str, /) -> str:
        return context.name

    def encode(self, context: WeightContext, parts: Parts, /) -> Parts:
        if set(parts) != {"weight"}:
            extra = ", ".join(sorted(set(parts) - {"weight"}))
            raise Refused(f"is {context.format}, with {extra} beside the codes; {_REMEDY}")
        weight = parts["weight"]
        if context.format != UNQUANTIZED:
            if context.format not in FORMATS.values():
                raise Refused(f"is {context.format}, which no GGUF reader knows; {_REMEDY}")
            return parts
        if weight.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
            raise Refused("is fp8, for which GGUF has no type; set target.dtype to float16 or float32")
        return parts

    def plain_dtype(self, context: WeightContext, dtype: str, /) -> str:
        """BF16 is for linear weights alone: ComfyUI-GGUF and diffusers compute with no other; fp8 has no type."""
        dtype = "BF16" if dtype.startswith("F8_") else dtype
        return "F32" if dtype == "F64" or (dtype == "BF16" and context.info.kind != "linear") else dtype

    def decode(self, context: WeightContext, stored: Parts, /) -> Parts:
        return stored

    def stored_spec(self, context: WeightContext, role: str, spec: TensorSpec, /) -> TensorSpec:
        """Rows of bytes are rows of blocks."""
        if context.format == UNQUANTIZED:
            return spec
        dtype = context.format.name.upper()
        elements, nbytes = BLOCKS[dtype]
        return TensorSpec(dtype, (*spec.shape[:-1], spec.shape[-1] // nbytes * elements), (elements, nbytes))

    def refuse(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Iterable[str]:
        if model.name and not (self.architecture or model.name in ARCHITECTURES):
            yield (
                f"GGUF readers choose their model by general.architecture, and for {model.name} none is known here; "
                "set target.options.architecture to what the reader expects, and mind that it may expect other names "
                f"of tensors, too (ComfyUI-GGUF knows {', '.join(KNOWN)})"
            )
        for weight in weights:
            if len(weight.name.encode()) > LONGEST_NAME:
                yield f"{weight.name} is longer than {LONGEST_NAME} bytes, the most that GGUF readers take"

    def extras(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Extras:
        linear = [weight for weight in weights if weight.info.kind == "linear"]
        stored = Counter(output.spec.dtype for weight in linear or weights for output in weight.outputs)
        return Extras(
            {
                "general.architecture": self.architecture or ARCHITECTURES.get(model.name, "unknown"),
                "general.quantization_version": 2,
                "general.file_type": file_type(stored),
            }
        )

    def notes(self, weights: Mapping[str, Stored], /) -> Iterable[str]:
        if self.architecture and self.architecture not in KNOWN:
            yield f"ComfyUI-GGUF refuses the architecture {self.architecture}; it knows {', '.join(KNOWN)}"
        yield (
            "LightX2V reads GGUF files only if all that is not quantized is F16: set target.dtype: float16, and run it "
            "with DTYPE=FP16"
        )

    def detect(self, tensors: SourceTensors, /) -> Mapping[str, Stored]:
        """By the packed dtypes."""
        found = {}
        for name, spec in tensors.items():
            if spec.block is not None and spec.block == BLOCKS.get(spec.dtype):
                format = FORMATS.get(spec.dtype, QuantFormat(spec.dtype.lower(), spec.dtype.lower()))
                found[name] = Stored(format, {"weight": name}, spec.shape)
        return found


_REMEDY = f"choose one of {', '.join(format.name for format in FORMATS.values())}, or another target"


@hookimpl
def converter_targets() -> Sequence[type[Target]]:
    return [Gguf]
