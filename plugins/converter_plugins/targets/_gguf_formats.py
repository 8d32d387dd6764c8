"""The block formats of GGUF files as quantizers here store them, and what a file of them is called."""

from __future__ import annotations

from collections.abc import Mapping

from converter_core.api import QuantFormat


def _format(name: str, bits: int, width: int, symmetric: bool) -> QuantFormat:
    return QuantFormat(name, f"int{bits}", bits, "group", width, "F16", symmetric, f"gguf {name}")


FORMATS: Mapping[str, QuantFormat] = {
    format.name.upper(): format
    for format in (
        _format("q8_0", 8, 32, True),
        _format("q6_k", 6, 16, True),
        _format("q5_k", 5, 32, False),
        _format("q5_1", 5, 32, False),
        _format("q5_0", 5, 32, True),
        _format("q4_k", 4, 32, False),
        _format("q4_1", 4, 32, False),
        _format("q4_0", 4, 32, True),
        _format("q3_k", 3, 16, True),
        _format("q2_k", 2, 16, False),
    )
}
"""Type of a tensor -> format."""

_PURE = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K": 11,
    "Q4_K": 14,
    "Q5_K": 16,
    "Q6_K": 18,
    "BF16": 32,
}
_MIXED = {"Q3_K": 12, "Q4_K": 15, "Q5_K": 17}


def file_type(types: Mapping[str, int]) -> int:
    """``general.file_type`` (``enum llama_ftype``) for so many tensors of each type: that of most matrices.

    A mix of K-quants counts as the M variant of the one that most have.
    """
    packed = {dtype: count for dtype, count in types.items() if dtype in FORMATS}
    listed = packed or {dtype: count for dtype, count in types.items() if dtype in _PURE} or {"F32": 1}
    most = max(listed, key=lambda dtype: (listed[dtype], dtype))
    return _MIXED.get(most, _PURE[most]) if len(packed) > 1 else _PURE[most]
