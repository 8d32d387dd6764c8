"""nvfp4: 4-bit floats, an 8-bit float scale per 16 columns, one scale over the weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from converter_core.api import QuantFormat, Quantizer, hookimpl

from ._bits import absmax, absmax_of_all, admit, as_bf16, decode_e4m3
from ._calibration import Calibrated
from ._fp4 import BF16_MAX, SIXTH, as_kernel_reads, decode, encode, encode_as_kernel, steps
from ._nvfp4_scales import better_codes, block_codes, divisors
from ._reference import Numerics, Reference

if TYPE_CHECKING:
    from converter_core.api import Parts

WIDTH = 16
TOP = 2688.0
"""448 * 6: the largest block scale times the largest code."""

MOST_GLOBAL = 2.0**118
"""A larger global scale, over the smallest block scale 2^-9, would not be finite."""


@dataclass(frozen=True)
class Nvfp4(Reference, Calibrated, Quantizer):
    """4-bit floats (E2M1) with an E4M3 scale per 16 columns: 4.5 bits per weight, better than mxfp4.

    Parts: ``weight`` uint8 [O, I / 2], ``scale`` float8_e4m3fn [O, I / 16], ``global_scale`` float32 []
    (bf16-representable); with statistics ``input_absmax`` float32 [] (bf16-representable). A weight is
    ``e2m1 * scale / global_scale``.

    numerics: ``exact``, or ``lightx2v`` for the bytes that LightX2V's kernel writes.
    scale_rule: ``absmax`` (the kernel's: largest magnitude / 6), ``four_over_six`` (the better of that / 6 and / 4 in
        each block), ``mse`` (of the neighbouring E4M3 codes the one with the smallest squared error in each block).
        Left out: ``mse``; under ``numerics: lightx2v`` the kernel's.
    activation_absmax: file of activation statistics (LightX2V's ``calib.pt``, or the same in safetensors or JSON) that
        LightX2V needs to run the weights; without it the runtime needs its own ``calib.pt`` beside the output.
    """

    name: ClassVar[str] = "nvfp4"
    row_block: ClassVar[int | None] = 1

    numerics: Numerics = "exact"
    scale_rule: Literal["mse", "absmax", "four_over_six"] | None = None
    activation_absmax: str | None = None

    def __post_init__(self) -> None:
        self.check_choices()
        if self.scale_rule not in (None, "absmax"):
            self.only_exact("scale_rule", self.scale_rule)

    @property
    def format(self) -> QuantFormat:
        return QuantFormat(self.name, "e2m1", 4, "group", WIDTH, "F8_E4M3", packing="low_nibble_first")

    def observe(self, rows: Tensor, /) -> Parts:
        return {"amax": absmax_of_all(admit(rows))}

    def quantize(self, weight: Tensor, /, amax: Tensor, *, input_absmax: Tensor | None = None) -> Parts:
        weight = admit(weight, WIDTH)
        rule = self.scale_rule or "mse"
        if self.is_reference:
            weight, rule = as_kernel_reads(weight), "absmax"
        whole = _reference_global(amax) if self.is_reference else _global(amax)
        most = absmax(weight, WIDTH).view(weight.shape[0], -1)
        exact = most.mul_(SIXTH).mul_(whole)
        scale = block_codes(exact)
        if rule != "absmax":
            over_four = block_codes(exact.mul_(1.5)) if rule == "four_over_six" else None
            scale = better_codes(weight, scale, whole, over_four)
        per_step = whole * divisors(scale).reciprocal_()
        codes = encode_as_kernel(weight, per_step) if self.is_reference else encode(weight, per_step)
        parts = {"weight": codes, "scale": scale.to(torch.uint8).view(torch.float8_e4m3fn), "global_scale": whole}
        return parts if input_absmax is None else {**parts, "input_absmax": input_absmax}

    def dequantize(self, parts: Parts, /) -> Tensor:
        return _scaled(decode(parts["weight"]), decode_e4m3(parts["scale"]), parts["global_scale"])

    def quantization_step(self, parts: Parts, /) -> Tensor:
        # a block whose scale is zero could have had the smallest one
        scale = decode_e4m3(parts["scale"]).clamp_(min=2.0**-9)
        return _scaled(steps(parts["weight"]), scale, parts["global_scale"])


def _global(amax: Tensor) -> Tensor:
    """bf16(2688 / amax), rounded once; 1 for an all-zero weight.

    In float64, where the quotient of two float32 numbers cannot fall on a tie that it is not; the eight bits are cut by
    hand because torch casts float64 to bf16 by way of float32, which rounds twice.
    """
    bits = (torch.full_like(amax, TOP).double() / amax.double()).view(torch.int64)
    bits = (bits + ((bits >> 45) & 1) + (2**44 - 1)) >> 45 << 45
    whole = bits.view(torch.float64).clamp(max=MOST_GLOBAL).float()
    return torch.where(amax == 0, torch.ones_like(whole), whole)


def _reference_global(amax: Tensor) -> Tensor:
    """What torch makes of ``2688.0 / amax`` in bf16: ``amax.reciprocal() * 2688``, rounded twice. Where that is
    infinite (an all-zero weight too) LightX2V's codes are garbage, and ours those of ``_global``.
    """
    amax = as_bf16(amax.clamp(max=BF16_MAX))
    whole = as_bf16(as_bf16(amax.reciprocal()) * TOP)
    return torch.where(whole.isinf(), _global(amax), whole)


def _scaled(values: Tensor, scale: Tensor, whole: Tensor) -> Tensor:
    return values.view(*scale.shape, WIDTH).mul_(scale.unsqueeze(-1)).view(values.shape).div_(whole.float())


@hookimpl
def converter_quantizers() -> Sequence[type[Quantizer]]:
    return [Nvfp4]
