"""The loops of GGUF's block formats in C. Where they are not, torch does the same, and the bytes do not differ."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from converter_core.api import KERNEL_DTYPES, kernels_suit, load_kernels

_ARGUMENTS = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p)


def _load(name: str, *formats: str) -> dict[str, ctypes.CDLL]:
    library = load_kernels(__file__, name, **dict.fromkeys(formats, _ARGUMENTS))
    return dict.fromkeys(formats, library) if library is not None else {}


_libraries = {
    **_load("_compiled_gguf_blocks", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"),
    **_load("_compiled_gguf_k", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k"),
}


def suit(name: str, weight: Tensor) -> bool:
    """Whether there is a loop for a weight."""
    return kernels_suit(_libraries.get(name), weight)


def quantize(name: str, weight: Tensor, width: int, nbytes: int) -> Tensor:
    """Blocks of ``width`` columns, ``nbytes`` each; uint8 [O, I / width * nbytes]."""
    rows, columns = weight.shape
    out = torch.empty(rows, columns // width * nbytes, dtype=torch.uint8)
    getattr(_libraries[name], name)(
        weight.data_ptr(), KERNEL_DTYPES[weight.dtype], weight.numel() // width, out.data_ptr()
    )
    return out
