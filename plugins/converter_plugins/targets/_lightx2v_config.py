"""What to tell LightX2V, and its users, about quantized weights: configuration keys, loaders, known defects.

Sources, in LightX2V as of August 2026: ``lightx2v/common/ops/mm/mm_weight.py`` and ``lightx2v_platform/ops/mm`` (the
registered ``dit_quant_scheme`` names), ``lightx2v/models/networks/base_model.py`` (what is read from where),
``lightx2v/models/input_encoders/hf`` (the encoders, whose linear layers are other classes).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from converter_core.api import UNQUANTIZED, PlannedWeight, Stored

DIT = "dit"
"""What LightX2V's configuration calls the diffusion transformer; other components are called by their own names."""

CHOICES: Mapping[str, Mapping[str, str]] = {
    "int8": {
        "int8-vllm": "NVIDIA (A100, RTX 30, RTX 40), vLLM",
        "int8-sgl": "NVIDIA, sgl_kernel",
        "int8-q8f": "NVIDIA, q8_kernels",
        "int8-triton": "any card with Triton",
        "int8-torchao": "NVIDIA, torchao",
        "int8-vllm-hygon-dcu": "Hygon DCU, the vLLM of DTK; needs lazy_load: false",
        "int8-npu": "Ascend NPU; needs lazy_load: false",
        "int8-tmo": "Cambricon MLU; needs lazy_load: false",
        "int8-iluvatar": "Iluvatar; needs lazy_load: false",
    },
    "fp8": {
        "fp8-vllm": "NVIDIA (H100, RTX 40), vLLM",
        "fp8-sgl": "NVIDIA, sgl_kernel; AMD ROCm, aiter",
        "fp8-q8f": "NVIDIA, q8_kernels",
        "fp8-triton": "any card with Triton",
        "fp8-torchao": "NVIDIA, torch._scaled_mm",
        "fp8-musa": "Moore Threads; needs lazy_load: false",
        "fp8-intel-xpu": "Intel XPU",
    },
    "mxfp4": {"mxfp4": "NVIDIA sm_120 (RTX 50), lightx2v_kernel"},
    "mxfp6": {"mxfp6-mxfp8": "NVIDIA sm_120 (RTX 50), lightx2v_kernel"},
    "mxfp8": {"mxfp8": "NVIDIA sm_120 (RTX 50), lightx2v_kernel"},
    "nvfp4": {"nvfp4": "NVIDIA sm_120 (RTX 50), lightx2v_kernel"},
}
"""Format -> every ``dit_quant_scheme`` that reads a file of it, and where that runs. The first is the usual one."""

_OF_ENCODERS = {
    "int8": ("int8-vllm", "int8-torchao", "int8-q8f", "int8-triton", "int8-tmo", "int8-npu", "int8-iluvatar"),
    "fp8": ("fp8-sgl", "fp8-vllm", "fp8-torchao", "fp8-q8f", "fp8-triton"),
}
ENCODER_CHOICES: Mapping[str, Mapping[str, str]] = {
    format: {name: CHOICES[format][name] for name in names} for format, names in _OF_ENCODERS.items()
}
"""The same for text and image encoders. Their bare ``int8`` and ``fp8`` are unknown where the encoder is offloaded."""

CALIBRATED = ({"input_absmax"}, {"input_global_scale", "alpha"})
"""Roles that complete an nvfp4 weight: one set or the other, the first beside ``global_scale``."""


def notes(weights: Mapping[str, Stored]) -> Iterable[str]:
    nvfp4 = [stored for stored in weights.values() if stored.format.name == "nvfp4"]
    if nvfp4:
        bare = sum(not any(roles <= set(stored.keys) for roles in CALIBRATED) for stored in nvfp4)
        if bare:
            which = "the nvfp4 weights" if bare == len(nvfp4) else f"{bare} of {len(nvfp4)} nvfp4 weights"
            yield (
                f"{which} carry no activation statistics (input_absmax): LightX2V needs its calibration file calib.pt "
                "beside them at load, or give it to the conversion (activation_absmax)"
            )
        else:
            yield "the nvfp4 weights carry their activation statistics: nothing else is needed at load"
        yield "LightX2V of August 2026 computes wrongly with nvfp4 and lazy_load: keep lazy_load false"


def encoder_problems(component: str, weights: Sequence[PlannedWeight]) -> Iterable[str]:
    formats = {weight.format.name for weight in weights if weight.format != UNQUANTIZED}
    if unread := sorted(formats - set(ENCODER_CHOICES)):
        known = " or ".join(ENCODER_CHOICES)
        yield f"LightX2V reads {component} as {known}, not as {' or '.join(unread)}; use --linear-type int8 or fp8"
    if extra := [weight.name for weight in weights if weight.info.kind == "extra"]:
        yield (
            f"LightX2V refuses a {component} file with tensors that are not the model's own: {', '.join(extra[:3])}"
            f"{' ...' if len(extra) > 3 else ''} ({len(extra)}); remove them, or use target plain"
        )


def runtime_config(component: str, weights: Mapping[str, Stored], path: str) -> Mapping[str, Any]:
    """``config``: to paste into the LightX2V configuration. The other entry: what else the scheme's key may be."""
    formats = {stored.format.name for stored in weights.values()}
    known = CHOICES if component == DIT else ENCODER_CHOICES
    if len(formats) != 1 or not formats <= set(known):
        return {}
    (format,) = formats
    choices = known[format]
    config: dict[str, Any] = {
        f"{component}_quantized": True,
        f"{component}_quant_scheme": next(iter(choices)),
        _path_key(component, path): path,
    }
    if format == "nvfp4":  # see notes
        config["lazy_load"] = False
    return {"config": config, f"{component}_quant_scheme choices": dict(choices)}


def _path_key(component: str, path: str) -> str:
    """An expert of a Wan2.2 A14B pair has a key of its own: ``dit_quantized_ckpt`` would load one file for both."""
    found = [expert for expert in ("high_noise", "low_noise") if component == DIT and expert in path]
    return f"{found[0]}_quantized_ckpt" if len(found) == 1 else f"{component}_quantized_ckpt"
