"""The loops of GGUF's block formats in C. Where they are not, torch does the same, and the bytes do not differ."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from converter_core.api import KERNEL_DTYPES, kernels_suit, load_kernels

BLOCKS = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")

_ARGUMENTS = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p)

_library = load_kernels(__file__, "_compiled_gguf_blocks", **dict.fromkeys(BLOCKS, _ARGUMENTS))


def suit(weight: Tensor) -> bool:
    """Whether these loops are there for a weight."""
    return kernels_suit(_library, weight)


def quantize(name: str, weight: Tensor, width: int, nbytes: int) -> Tensor:
    """Blocks of ``width`` columns, ``nbytes`` each; uint8 [O, I / width * nbytes]."""
    rows, columns = weight.shape
    out = torch.empty(rows, columns // width * nbytes, dtype=torch.uint8)
    getattr(_library, name)(weight.data_ptr(), KERNEL_DTYPES[weight.dtype], weight.numel() // width, out.data_ptr())
    return out
