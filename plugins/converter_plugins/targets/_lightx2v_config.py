"""What to tell LightX2V, and its users, about quantized weights: configuration keys, loaders, known defects.

Sources, in LightX2V as of August 2026: ``lightx2v/common/ops/mm/mm_weight.py`` and ``lightx2v_platform/ops/mm`` (the
registered ``dit_quant_scheme`` names), ``lightx2v/models/networks/base_model.py`` (what is read from where).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from converter_core.api import Stored

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
    "nvfp4": {"nvfp4": "NVIDIA sm_120 (RTX 50), lightx2v_kernel"},
}
"""Format -> every ``dit_quant_scheme`` that reads a file of it, and where that runs. The first is the usual one."""

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


def runtime_config(weights: Mapping[str, Stored], path: str) -> Mapping[str, Any]:
    """``config``: to paste into the LightX2V configuration. The other entry: what else ``dit_quant_scheme`` may be."""
    formats = {stored.format.name for stored in weights.values()}
    if len(formats) != 1 or not formats <= set(CHOICES):
        return {}
    (format,) = formats
    choices = CHOICES[format]
    config: dict[str, Any] = {
        "dit_quantized": True,
        "dit_quant_scheme": next(iter(choices)),
        _path_key(path): path,
    }
    if format == "nvfp4":  # see notes
        config["lazy_load"] = False
    return {"config": config, "dit_quant_scheme choices": dict(choices)}


def _path_key(path: str) -> str:
    """An expert of a Wan2.2 A14B pair has a key of its own: ``dit_quantized_ckpt`` would load one file for both."""
    found = [expert for expert in ("high_noise", "low_noise") if expert in path]
    return f"{found[0]}_quantized_ckpt" if len(found) == 1 else "dit_quantized_ckpt"
