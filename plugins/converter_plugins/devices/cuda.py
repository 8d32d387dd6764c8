"""NVIDIA cards."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from converter_core.api import DeviceBackend, hookimpl

from ._cuda_stream import TorchCudaBackend, cards


class Cuda(TorchCudaBackend):
    """NVIDIA cards, by a CUDA build of torch."""

    name = "cuda"

    def devices(self) -> Sequence[torch.device]:
        # a ROCm build says is_available() too
        return cards() if torch.version.cuda and torch.cuda.is_available() else []

    def absence(self) -> str:
        if torch.version.cuda:
            return (
                f"torch {torch.__version__} is built for CUDA {torch.version.cuda} but finds no card; "
                "see what nvidia-smi says, and CUDA_VISIBLE_DEVICES"
            )
        if getattr(torch.version, "hip", None):
            return f"torch {torch.__version__} is a ROCm build; use hygon_dcu"
        return f"torch {torch.__version__} is a CPU build; install one for CUDA"


@hookimpl
def converter_devices() -> Sequence[type[DeviceBackend]]:
    return [Cuda]
