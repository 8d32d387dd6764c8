"""Flags of LightX2V's converter that there are none of here, and what to do instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typer.core import TyperCommand

_NAMING = "leave it out: the naming of the source is recognised, and the target decides the naming of the output"
_LORA = "merge the LoRA first (LightX2V's converter does that without --quantized), then convert the merged checkpoint"
_COMFYUI = "ComfyUI's format needs a target of its own (target.format); the registered ones: model-converter plugins"
_SELECT = "choose with quantization.options.target_modules or quantization.rules in a recipe: model-converter init"
_WHOLE = "leave it out: nothing is deleted by a part of its name; every tensor is quantized, copied or cast"

INSTEAD: Mapping[str, str] = {
    "--direction": _NAMING,
    "-d": _NAMING,
    "--lora-path": _LORA,
    "--lora-strength": _LORA,
    "--lora-alpha": _LORA,
    "--alpha": _LORA,
    "--lora-key-convert": _LORA,
    "--comfyui-mode": _COMFYUI,
    "--full-quantized": _COMFYUI,
    "--comfyui-keys": _COMFYUI,
    "--bits": "leave it out: --linear-type says it all (int8 and fp8 have 8 bits, mxfp4 and nvfp4 have 4)",
    "--linear-dtype": "write --linear-type int8 for torch.int8, --linear-type fp8 for torch.float8_e4m3fn",
    "--quantization-profile": "choose with --linear-type, and its options with --set quantization.options.KEY=VALUE",
    "--target-keys": _SELECT,
    "--key-idx": _SELECT,
    "--ignore-key": _WHOLE,
    "--ignore-keys": _WHOLE,
    "--ignore-quant-keys": _SELECT,
    "--adapter-keys": "leave it out: tensors beyond the model's own are copied as they are and listed in the plan",
    "--preserve-non-quant-dtype": "leave it out: what is not quantized keeps its dtype",
    "--dtype": "write --non-linear-dtype for what is not quantized",
    "--calib": "write --set quantization.options.activation_absmax=calib.pt with --linear-type nvfp4",
    "--state-dict": "write --source",
}
"""By the name with hyphens."""


class LegacyCommand(TyperCommand):
    """Refuses each of them by name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # "no such option", by a class of click's or of typer's own copy of it
            name = getattr(error, "option_name", "")
            if name in INSTEAD:
                ctx.fail(f"there is no {name} here: {INSTEAD[name]}")
            raise
