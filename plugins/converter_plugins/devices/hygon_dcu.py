"""Hygon DCUs, which a ROCm build of torch calls ``cuda``."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from converter_core.api import DeviceBackend, hookimpl

from ._cuda_stream import TorchCudaBackend, cards


class HygonDcu(TorchCudaBackend):
    """Hygon DCUs, by the ROCm build of torch that comes with DTK; ``hygon_dcu:N`` is torch's ``cuda:N``."""

    name = "hygon_dcu"
    recipe_note = (
        "This recipe converts on a Hygon DCU, with the torch of its DTK. LightX2V runs int8 there and nothing else: "
        '"dit_quant_scheme": "int8-vllm-hygon-dcu", "lazy_load": false.'
    )

    def devices(self) -> Sequence[torch.device]:
        return cards() if getattr(torch.version, "hip", None) and torch.cuda.is_available() else []

    def absence(self) -> str:
        if hip := getattr(torch.version, "hip", None):
            return (
                f"torch {torch.__version__} is built for ROCm {hip} but finds no DCU; "
                "see what hy-smi says, and HIP_VISIBLE_DEVICES"
            )
        if torch.version.cuda:
            return f"torch {torch.__version__} is a CUDA build; use cuda"
        return f"torch {torch.__version__} is a CPU build; use the one that comes with Hygon's DTK"


@hookimpl
def converter_devices() -> Sequence[type[DeviceBackend]]:
    return [HygonDcu]
