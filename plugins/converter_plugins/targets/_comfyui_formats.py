"""What ComfyUI calls each format and how it wants it stored.

Sources, in ComfyUI 0.33 and comfy-kitchen 0.2.31 to 0.2.40: ``comfy/ops.py`` (``_load_quantized_module``: names and
shapes of the tensors), ``comfy/quant_ops.py`` (``QUANT_ALGOS``), ``comfy/utils.py`` (``convert_old_quants``: the
metadata and the older style), ``comfy_kitchen/tensor/*.py`` (layouts).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from converter_core.api import QuantFormat, TensorSpec

from ._swizzle import tiled_shape

PIECE = 256 << 10
"""Bytes of codes that are worked on at a time: what their second half takes beside the result stays in the cache."""

E4M3_MAX = 448.0
NVFP4_MAX = 2688.0
"""448 * 6: ComfyUI's scale of a tensor is its largest magnitude over this."""


@dataclass(frozen=True)
class Storage:
    """How ComfyUI stores a format.

    called: its name in ``comfy_quant``. since: the first version of ComfyUI that reads it. weight: header dtype of the
    codes. block: columns that share a scale; 0: none do. per_byte: codes in a byte. rows: the number of rows is padded
    to a multiple of it. input_max: the largest activation over this is ``input_scale``; 0: activations have no scale.
    """

    called: str
    since: str
    weight: str
    block: int = 0
    per_byte: int = 1
    rows: int = 1
    input_max: float = 0.0

    def columns(self, stored: TensorSpec) -> int:
        return stored.shape[1] * self.per_byte

    def scales(self, stored: TensorSpec) -> tuple[int, ...]:
        """Shape of the block scales of a stored weight, padding included."""
        return tiled_shape(stored.shape[0], -(-self.columns(stored) // self.block))


_INT8 = Storage("int8_tensorwise", "0.26.0", "I8")

FORMATS: Mapping[QuantFormat, Storage] = {
    QuantFormat("int8", "int8", 8, "row", scale_dtype="F32"): _INT8,
    QuantFormat("int8", "int8", 8, "tensor", scale_dtype="F32"): _INT8,
    QuantFormat("fp8", "e4m3", 8, "tensor", scale_dtype="F32"): Storage(
        "float8_e4m3fn", "0.3.76", "F8_E4M3", input_max=E4M3_MAX
    ),
    QuantFormat("nvfp4", "e2m1", 4, "group", 16, "F8_E4M3", packing="low_nibble_first"): Storage(
        "nvfp4", "0.7.0", "U8", block=16, per_byte=2, rows=16, input_max=NVFP4_MAX
    ),
    QuantFormat("mxfp8", "e4m3", 8, "group", 32, "F8_E8M0"): Storage("mxfp8", "0.17.0", "F8_E4M3", block=32, rows=32),
}
"""Canonical format -> storage. Row and tensor scales may come in any float dtype; they are stored as float32."""

ARRANGEMENT: Mapping[str, Mapping[str, str]] = {
    "nvfp4": {"nibbles": "high first", "scales": "swizzled 128x4"},
    "mxfp8": {"scales": "swizzled 128x4"},
}
"""ComfyUI's name of a format -> how its bytes lie. No tensor shows it, and a wrong guess is silent noise."""

FLOAT_SCALES = ("F32", "BF16", "F16")


def storage_of(format: QuantFormat) -> Storage | None:
    """None for what ComfyUI does not read."""
    scale = "F32" if format.granularity in ("row", "tensor") else format.scale_dtype
    return FORMATS.get(replace(format, scale_precision="", scale_dtype=scale))


def format_called(called: str, scale: TensorSpec) -> QuantFormat | None:
    """The format of a weight of a file, by ComfyUI's name and the shape of its scale; None for one we do not know."""
    wanted = "row" if len(scale.shape) == 2 else "tensor"
    for format, storage in FORMATS.items():
        if storage.called == called and (storage.block or format.granularity == wanted):
            return format
    return None


def swap_nibbles(codes: Tensor) -> Tensor:
    """ComfyUI has the even column in the high nibble."""
    swapped = codes << 4
    height = max(1, PIECE // max(codes.shape[-1], 1))
    for some, rows in zip(torch.split(swapped, height), torch.split(codes, height), strict=True):
        some.bitwise_or_(rows >> 4)
    return swapped


def padded(codes: Tensor, multiple: int) -> Tensor:
    """With rows of zero bytes up to a multiple."""
    missing = -codes.shape[0] % multiple
    if not missing:
        return codes
    raw = codes.view(torch.uint8)
    return torch.cat([raw, raw.new_zeros(missing, raw.shape[1])]).view(codes.dtype)


def reciprocal(value: Tensor) -> Tensor:
    return torch.ones_like(value) / value


def divided(by: float) -> Callable[[Tensor], Tensor]:
    return lambda value: value / torch.full_like(value, by)


def undone(stored: Tensor, function: Callable[[Tensor], Tensor], guess: Tensor) -> Tensor:
    """What ``function`` made ``stored`` of, near a float32 ``guess``: a bf16 number if one does, else the nearest.

    float32 rounds: some results have several such numbers, and some have none; then it is the guess.
    """
    bits = guess.view(torch.int32)
    near = [(bits + step).view(torch.float32) for step in (2, -2, 1, -1, 0)]
    found = guess
    for candidate in (*near, guess.to(torch.bfloat16).float()):
        found = torch.where(function(candidate) == stored, candidate, found)
    return found
