"""The quantizers' loops in C (``_loops.c``). Where they are not, torch does the same, and the bytes do not differ."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from converter_core.api import KERNEL_DTYPES, kernels_suit, load_kernels

_POINTER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
_WEIGHT = (_POINTER, _INT, _SIZE)

_library = load_kernels(
    __file__,
    "_compiled_loops",
    absmax=(*_WEIGHT, _SIZE, _POINTER),
    int8_codes=(*_WEIGHT, _SIZE, _POINTER, _POINTER),
    e4m3_codes=(*_WEIGHT, _SIZE, _POINTER, _POINTER),
    e4m3_values=(_POINTER, _SIZE, _SIZE, _POINTER, _POINTER),
    e4m3_steps=(_POINTER, _SIZE, _SIZE, _POINTER, _POINTER),
    int8_costs=(*_WEIGHT, _SIZE, _POINTER, _POINTER, _POINTER, _POINTER),
    e4m3_costs=(*_WEIGHT, _SIZE, _POINTER, _POINTER, _POINTER, _POINTER),
    e4m3_best_steps=(*_WEIGHT, _SIZE, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER),
    e2m1_codes=(*_WEIGHT, _SIZE, _POINTER, _POINTER),
    e4m3_codes_of_blocks=(*_WEIGHT, _POINTER, _POINTER),
    e3m2_codes=(*_WEIGHT, _POINTER, _POINTER),
    floor_is_better=(*_WEIGHT, _POINTER, _POINTER),
    shared_floor_is_better=(*_WEIGHT, _POINTER, _POINTER, _SIZE, _POINTER),
    best_steps=(*_WEIGHT, _POINTER, _POINTER, _POINTER, _POINTER, _INT, _POINTER),
    nvfp4_scales=(
        *(*_WEIGHT, _POINTER, _POINTER, _POINTER, _POINTER, _INT),
        *(ctypes.c_float, _POINTER, _POINTER),
    ),
    feed=(
        *(_INT, _SIZE, _SIZE, _POINTER, _SIZE, _POINTER, _SIZE),
        *(_POINTER, _SIZE, _POINTER, _POINTER, _POINTER, _SIZE, _POINTER),
    ),
    shared_best_steps=(*_WEIGHT, _POINTER, _POINTER, _POINTER, _POINTER, _INT, _POINTER, _SIZE, _POINTER),
)


def suit(weight: Tensor) -> bool:
    """Whether these loops are there for a weight."""
    return kernels_suit(_library, weight)


def absmax(weight: Tensor, width: int) -> Tensor:
    """Of each run of ``width`` elements, float32, flat."""
    out = torch.empty(weight.numel() // width)
    _call("absmax", weight, out.numel(), width, out)
    return out


def int8_codes(weight: Tensor, scale: Tensor) -> Tensor:
    return _by_row("int8_codes", weight, scale, torch.empty(weight.shape, dtype=torch.int8))


def e4m3_codes(weight: Tensor, scale: Tensor) -> Tensor:
    return _by_row("e4m3_codes", weight, scale, torch.empty(weight.shape, dtype=torch.float8_e4m3fn))


def e4m3_values(codes: Tensor, scale: Tensor) -> Tensor:
    return _by_code("e4m3_values", codes, scale)


def e4m3_steps(codes: Tensor, scale: Tensor) -> Tensor:
    return _by_code("e4m3_steps", codes, scale)


def int8_costs(weight: Tensor, scale: Tensor, shares: Tensor | None = None) -> Tensor:
    return _costs("int8_costs", weight, scale, shares)


def e4m3_costs(weight: Tensor, scale: Tensor, shares: Tensor | None = None) -> Tensor:
    return _costs("e4m3_costs", weight, scale, shares)


def e4m3_best_steps(weight: Tensor, amax: Tensor, first: Tensor, shares: Tensor | None, table: Tensor) -> Tensor:
    out = torch.empty(first.shape, dtype=torch.int32)
    counts = torch.empty(16 * 128, dtype=torch.int32)
    _call("e4m3_best_steps", weight, *weight.shape, amax, first, shares, table, counts, out)
    return out


def e2m1_codes(weight: Tensor, inv_scale: Tensor) -> Tensor:
    out = torch.empty(weight.shape[0], weight.shape[1] // 2, dtype=torch.uint8)
    _call("e2m1_codes", weight, inv_scale.numel(), weight.numel() // inv_scale.numel(), inv_scale, out)
    return out


def e4m3_codes_of_blocks(blocks: Tensor, inv_scale: Tensor) -> Tensor:
    """Of [n, 32]."""
    out = torch.empty(blocks.shape, dtype=torch.float8_e4m3fn)
    _call("e4m3_codes_of_blocks", blocks, blocks.shape[0], inv_scale, out)
    return out


def e3m2_codes(blocks: Tensor, inv_scale: Tensor) -> Tensor:
    """Of [n, 32], packed: uint8 [n, 24]."""
    out = torch.empty(blocks.shape[0], blocks.shape[1] * 3 // 4, dtype=torch.uint8)
    _call("e3m2_codes", blocks, blocks.shape[0], inv_scale, out)
    return out


def floor_is_better(weight: Tensor, inv_scale: Tensor, shares: Tensor | None = None) -> Tensor:
    out = torch.empty(inv_scale.shape, dtype=torch.bool)
    if shares is None:
        _call("floor_is_better", weight, inv_scale.numel(), inv_scale, out)
    else:
        _call("shared_floor_is_better", weight, inv_scale.numel(), inv_scale, shares, inv_scale.shape[1], out)
    return out


def best_steps(
    weight: Tensor, bins_per_unit: Tensor, shift: Tensor, allowed: Tensor, table: Tensor, shares: Tensor | None = None
) -> Tensor:
    out = torch.empty(shift.shape, dtype=torch.uint8)
    given = (bins_per_unit, shift, allowed, table, table.shape[0] - 1)
    if shares is None:
        _call("best_steps", weight, shift.numel(), *given, out)
    else:
        _call("shared_best_steps", weight, shift.numel(), *given, shares, shift.shape[1], out)
    return out


def nvfp4_scales(
    weight: Tensor, whole: Tensor, search: tuple[Tensor, Tensor, Tensor, float] | None
) -> tuple[Tensor, Tensor]:
    """E4M3 codes of blocks of 16, uint8 [O, I / 16], and steps per unit, float32.

    search: steps, allowed ones by code, table, bins per step; None: the codes of absmax / 6.
    """
    shape = weight.shape[0], weight.shape[1] // 16
    codes, per_step = torch.empty(shape, dtype=torch.uint8), torch.empty(shape)
    steps, allowed, table, bins = search or (None, None, None, 0.0)
    last = 0 if table is None else table.shape[0] - 1
    _call("nvfp4_scales", weight, codes.numel(), whole, steps, allowed, table, last, bins, codes, per_step)
    return codes, per_step


def feed(
    kind: int, weight: Tensor, target: Tensor, factor: Tensor, unit: Tensor, errors: Tensor, values: Tensor
) -> None:
    """Fills ``errors`` and ``values``, which have one pitch; all but ``unit`` may be columns of wider matrices."""
    assert _library is not None
    unit, work = unit.contiguous(), torch.empty(weight.shape[1])
    _library.feed(
        *(kind, *weight.shape, weight.data_ptr(), weight.stride(0), target.data_ptr(), target.stride(0)),
        *(factor.data_ptr(), factor.stride(0), unit.data_ptr()),
        *(errors.data_ptr(), values.data_ptr(), values.stride(0), work.data_ptr()),
    )


def _costs(name: str, weight: Tensor, scale: Tensor, shares: Tensor | None) -> Tensor:
    out = torch.empty(weight.shape[0], 1)
    _call(name, weight, *weight.shape, scale, shares, torch.empty(weight.shape[1]), out)
    return out


def _by_row(name: str, weight: Tensor, scale: Tensor, *out: Tensor) -> Tensor:
    _call(name, weight, weight.shape[0], weight.shape[1], scale, *out)
    return out[-1]


def _by_code(name: str, codes: Tensor, scale: Tensor) -> Tensor:
    codes, out = codes.contiguous(), torch.empty(codes.shape)
    scale = scale.expand(codes.shape[0], 1).contiguous()
    getattr(_library, name)(codes.data_ptr(), *codes.shape, scale.data_ptr(), out.data_ptr())
    return out


def _call(name: str, weight: Tensor, count: int, *arguments: Tensor | float | None) -> None:
    kept = [a.contiguous() if isinstance(a, Tensor) else a for a in arguments]  # what is to be filled is so already
    pointers = [a.data_ptr() if isinstance(a, Tensor) else a for a in kept]
    getattr(_library, name)(weight.data_ptr(), KERNEL_DTYPES[weight.dtype], count, *pointers)
