"""Between header dtypes, torch dtypes and raw bytes."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from .values import FLOAT8, TensorSpec

# E8M0 lives in memory as its byte: torch knows float8_e8m0fnu only since 2.7, and nothing here computes with it.
_TORCH: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "BOOL": torch.bool,
        "U8": torch.uint8,
        "I8": torch.int8,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E8M0": torch.uint8,
        "I16": torch.int16,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I32": torch.int32,
        "F32": torch.float32,
        "I64": torch.int64,
        "F64": torch.float64,
        "C64": torch.complex64,
        # unsigned integers wider than a byte are only ever copied: their signed twins have the same bytes
        "U16": torch.int16,
        "U32": torch.int32,
        "U64": torch.int64,
    }
)
_HEADER: Mapping[torch.dtype, str] = {
    dtype: name for name, dtype in _TORCH.items() if name not in ("F8_E8M0", "U16", "U32", "U64")
}

_FLOAT8 = frozenset(_TORCH[name] for name in FLOAT8)


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype in which tensors of a header dtype are handled; E8M0 as ``uint8``."""
    return _TORCH[name]


def dtype_of(spec: TensorSpec) -> torch.dtype:
    """The torch dtype in which a tensor is handled; a packed one as ``uint8``."""
    return torch_dtype(spec.in_memory.dtype)


def dtype_name(dtype: torch.dtype) -> str:
    """The header's name of a torch dtype; KeyError for one that has none here."""
    if dtype in _HEADER:
        return _HEADER[dtype]
    if dtype is getattr(torch, "float8_e8m0fnu", None):
        return "F8_E8M0"
    raise KeyError(f"{dtype} has no name in a header")


def spec_of(tensor: Tensor) -> TensorSpec:
    return TensorSpec(dtype_name(tensor.dtype), tuple(tensor.shape))


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the host, without a copy. Keep the tensor alive while they are used."""
    if not tensor.is_contiguous():
        raise ValueError("not contiguous")
    nbytes = tensor.numel() * tensor.element_size()
    if not nbytes:
        return memoryview(b"")
    return memoryview((ctypes.c_ubyte * nbytes).from_address(tensor.data_ptr())).cast("B")


def same(one: Tensor, other: Tensor) -> bool:
    """Same dtype, shape and bytes, on whatever device: the sign of a zero and the bits of a NaN count too."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    one, other = one.detach().cpu().contiguous(), other.detach().cpu().contiguous()
    return raw(one) == raw(other)


def upcast(tensor: Tensor) -> Tensor:
    """Floats of 8 bits as bf16, which holds each of their values; any other tensor as it is."""
    return tensor.to(torch.bfloat16) if tensor.dtype in _FLOAT8 else tensor


def in_words(tensor: Tensor) -> str:
    """``float32 [4, 3]``."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def typed(buffer: Tensor, spec: TensorSpec) -> Tensor:
    """A uint8 tensor of ``spec.nbytes`` bytes seen as a tensor of that dtype and shape, as ``spec.in_memory`` says."""
    return buffer.view(dtype_of(spec)).view(spec.in_memory.shape)
