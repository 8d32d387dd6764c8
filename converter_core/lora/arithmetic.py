"""``W + B A`` with defined bytes: one chain of float32 fused multiply-adds for each element, ranks ascending.

A matrix product of a BLAS changes with the number of rows and with the machine. Here an element (i, j) is

    acc = float32(W[i, j]);   for r = 0, 1, 2 ...:   acc = fma(B[i, r], A[r, j], acc)

each ``fma`` rounded once, to nearest even (IEEE 754 ``fusedMultiplyAdd``), so that slabs, workers and machines agree.
On a CPU a compiled loop does it. Elsewhere torch does the same with more passes over memory: the product of two float32
is exact in float64, and a sum in float64 that is rounded to odd rounds to float32 as the exact sum does (S. Boldo,
G. Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008).
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ..native.loader import KERNEL_DTYPES, kernels_suit, load_kernels

_library = load_kernels(
    __file__,
    "_compiled_chain",
    chain=(
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_size_t,
        ctypes.c_size_t,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_void_p,
    ),
    fused=(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p),
)


def add_product(begin: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``begin + left @ right``, float32 [rows, columns], by the chain above.

    begin: any floating dtype, [rows, columns]. left: float32 [rows, ranks]. right: float32 [ranks, columns].
    """
    if kernels_suit(_library, begin) and begin.dtype in KERNEL_DTYPES and left.shape[1]:
        begin, left, right = begin.contiguous(), left.contiguous(), right.contiguous()
        out = torch.empty(begin.shape, dtype=torch.float32)
        if out.numel():
            first = (begin.data_ptr(), KERNEL_DTYPES[begin.dtype], *begin.shape)
            last = (left.data_ptr(), right.data_ptr(), left.shape[1], out.data_ptr())
            _library.chain(*first, *last)  # type: ignore[union-attr]
        return out
    total = begin.to(torch.float32)
    for rank in range(left.shape[1]):
        total = _emulated(left[:, rank : rank + 1], right[rank], total)
    return total


def multiply_add(factor: Tensor, other: Tensor, total: Tensor) -> Tensor:
    """``fma(factor, other, total)`` of float32 tensors that broadcast to the shape of ``total``."""
    if kernels_suit(_library, total):
        one, two = (tensor.expand(total.shape).contiguous() for tensor in (factor, other))
        total = total.contiguous()
        out = torch.empty_like(total)
        _library.fused(*(t.data_ptr() for t in (one, two, total)), total.numel(), out.data_ptr())  # type: ignore[union-attr]
        return out
    return _emulated(factor, other, total)


def _emulated(factor: Tensor, other: Tensor, total: Tensor) -> Tensor:
    product, addend = factor.double() * other.double(), total.double()  # exact
    near = product + addend
    # what the rounding of that sum lost (D. Knuth's TwoSum)
    virtual = near - product
    lost = (product - (near - virtual)) + (addend - virtual)
    bits = near.view(torch.int64)
    # to odd: an inexact sum with an even last bit moves by one towards what it lost
    inexact = (lost != 0) & torch.isfinite(lost) & (bits & 1 == 0)
    bits += torch.where(inexact, torch.where((lost > 0) == (near > 0), 1, -1), 0)
    return near.to(torch.float32)
