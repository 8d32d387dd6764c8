"""Flags of LightX2V's converter that this one does not have, and what to use instead."""

from __future__ import annotations

from collections.abc import Mapping

_NAMING = (
    "leave it out: the naming of the source is recognised, and the target decides the naming of the output; for "
    "diffusers names write --set target.format=diffusers"
)
_COMFYUI = "leave it out: --comfyui-mode quantizes the linear weights of the blocks, as ComfyUI's own files have it"
_SELECT = "choose with quantization.options.target_modules or quantization.rules in a recipe: model-converter init"
_WHOLE = "leave it out: nothing is deleted by a part of its name; every tensor is quantized, copied or cast"

REPLACED_FLAGS: Mapping[str, str] = {
    "--direction": _NAMING,
    "-d": _NAMING,
    "--alpha": "write --lora-alpha",
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
    "--calib": "write --set quantization.options.activation_absmax=calib.pt with --linear-type nvfp4",
    "--state-dict": "write --source",
}
"""By the name with hyphens."""

RUNS_ON: Mapping[str, str] = {
    "int8": "LightX2V runs it on NVIDIA, on Hygon DCU and on most other accelerators.",
    "fp8": "LightX2V runs it on NVIDIA from RTX 40 and H100 on, and on AMD, Moore Threads and Intel.",
    "mxfp4": "LightX2V runs it on NVIDIA sm_120 (RTX 50); converting needs no such card.",
    "mxfp6": "LightX2V runs it on NVIDIA sm_120 (RTX 50); converting needs no such card.",
    "mxfp8": "LightX2V runs it on NVIDIA sm_120 (RTX 50); converting needs no such card.",
    "nvfp4": (
        "LightX2V runs it on NVIDIA sm_120 (RTX 50); converting needs no such card. It needs statistics of the "
        "activations too: give activation_absmax below, or put LightX2V's calib.pt beside the file."
    ),
}
"""Scheme -> the cards on which LightX2V runs it."""
