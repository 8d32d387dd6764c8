"""nvfp4: 4-bit floats, an 8-bit float scale per 16 columns, one scale over the weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from converter_core.api import QuantFormat, Quantizer, hookimpl

from ._bits import absmax, absmax_of_all, admit, as_bf16, decode_e4m3
from ._calibration import ActivationScaled
from ._fp4 import BF16_MAX, SIXTH, as_kernel_reads, decode, encode, encode_as_kernel, nearest, steps
from ._gptq import TO_E2M1, fitted
from ._importance import of_blocks, shares_of
from ._nvfp4_scales import better_codes, block_codes, compiled, divisors
from ._reference import Numerics, Reference

if TYPE_CHECKING:
    from converter_core.api import Parts

WIDTH = 16
GLOBAL_MAX = 2688.0
"""448 * 6: the largest block scale times the largest code."""

MOST_GLOBAL = 2.0**118
"""A larger global scale, over the smallest block scale 2^-9, would not be finite."""


@dataclass(frozen=True)
class Nvfp4(Reference, ActivationScaled, Quantizer):
    """4-bit floats (E2M1) with an E4M3 scale per 16 columns: 4.5 bits per weight, better than mxfp4.

    Parts: ``weight`` uint8 [O, I / 2], ``scale`` float8_e4m3fn [O, I / 16], ``global_scale`` float32 []
    (bf16-representable); with statistics ``input_absmax`` float32 [] (bf16-representable). A weight is
    ``e2m1 * scale / global_scale``.

    numerics: ``exact``, or ``lightx2v`` for the bytes that LightX2V's kernel writes.
    scale_rule: ``absmax`` (the kernel's: largest magnitude / 6), ``four_over_six`` (the better of that / 6 and / 4 in
        each block), ``mse`` (of the neighbouring E4M3 codes the one with the smallest squared error in each block),
        ``weighted`` (the same with each column's error weighted by ``E[x^2]`` of source.calibration). Left out:
        ``mse``; under ``numerics: lightx2v`` the kernel's.
    bias_correction: the layer's bias takes up what rounding changes for the mean input, ``(W - Wq) E[x]`` of
        source.calibration; layers without a bias are left alone.
    rounding: ``nearest``, or ``gptq``: each column takes up what rounding the columns before it changed, for the tokens
        of source.calibration. Much better, and minutes for a large weight.
    activation_absmax: file of activation statistics (LightX2V's ``calib.pt``, or the same in safetensors or JSON) that
        LightX2V needs to run the weights; without it they come from source.calibration, and without that the runtime
        needs its own ``calib.pt`` beside the output.
    """

    name: ClassVar[str] = "nvfp4"
    row_block: ClassVar[int | None] = 1

    by_activity: ClassVar[bool] = False
    absmax_of_store: ClassVar[bool] = True

    numerics: Numerics = "exact"
    scale_rule: Literal["mse", "absmax", "four_over_six", "weighted"] | None = None
    bias_correction: bool = False
    rounding: Literal["nearest", "gptq"] = "nearest"
    activation_absmax: str | None = None

    def __post_init__(self) -> None:
        self.check_choices()
        self.check_statistics()
        if self.scale_rule not in (None, "absmax"):
            self.only_exact("scale_rule", self.scale_rule)

    @property
    def format(self) -> QuantFormat:
        return QuantFormat(self.name, "e2m1", 4, "group", WIDTH, "F8_E4M3", packing="low_nibble_first")

    def observe(self, rows: Tensor, /) -> Parts:
        return {"amax": absmax_of_all(admit(rows))}

    def fitted(self, weight: Tensor, parts: Parts, fit: Parts) -> Parts:
        global_scale = parts["global_scale"]

        def units(columns: Tensor, counts: Tensor) -> Tensor:
            first = block_codes(absmax(columns, WIDTH).view(-1, 1).mul_(SIXTH).mul_(global_scale))
            best = better_codes(columns, first, global_scale, shares=of_blocks(counts, WIDTH))
            return _value(best).div_(global_scale)

        values, unit = fitted(weight, fit, WIDTH, units, nearest, TO_E2M1)
        scale = block_codes(unit * global_scale)
        inv_scale = global_scale * divisors(scale).reciprocal_()
        codes = {"weight": encode(values, inv_scale), "scale": scale.to(torch.uint8).view(torch.float8_e4m3fn)}
        return {**codes, **{role: part for role, part in parts.items() if role not in codes}}

    def rounded(
        self,
        weight: Tensor,
        /,
        amax: Tensor,
        *,
        input_absmax: Tensor | None = None,
        mean_square: Tensor | None = None,
    ) -> Parts:
        weight = admit(weight, WIDTH)
        rule = self.scale_rule or "mse"
        if self.is_reference:
            weight, rule = as_kernel_reads(weight), "absmax"
        global_scale = _reference_global(amax) if self.is_reference else _global(amax)
        scale, inv_scale = compiled(weight, global_scale, rule) or self._scales(weight, global_scale, rule, mean_square)
        codes = encode_as_kernel(weight, inv_scale) if self.is_reference else encode(weight, inv_scale)
        parts = {"weight": codes, "scale": scale, "global_scale": global_scale}
        return parts if input_absmax is None else {**parts, "input_absmax": input_absmax}

    def _scales(
        self, weight: Tensor, global_scale: Tensor, rule: str, mean_square: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """E4M3 scales, and what each block is multiplied by."""
        exact = absmax(weight, WIDTH).view(weight.shape[0], -1).mul_(SIXTH).mul_(global_scale)
        scale = block_codes(exact)
        if rule != "absmax":
            over_four = block_codes(exact.mul_(1.5)) if rule == "four_over_six" else None
            scale = better_codes(weight, scale, global_scale, over_four, of_blocks(shares_of(mean_square), WIDTH))
        inv_scale = global_scale * divisors(scale).reciprocal_()
        return scale.to(torch.uint8).view(torch.float8_e4m3fn), inv_scale

    def dequantize(self, parts: Parts, /) -> Tensor:
        return _scaled(decode(parts["weight"]), decode_e4m3(parts["scale"]), parts["global_scale"])

    def quantization_step(self, parts: Parts, /) -> Tensor:
        # a block whose scale is zero could have had the smallest one
        scale = decode_e4m3(parts["scale"]).clamp_(min=2.0**-9)
        return _scaled(steps(parts["weight"]), scale, parts["global_scale"])


def _value(scale: Tensor) -> Tensor:
    """E4M3 codes, int32 -> their values, float32."""
    return divisors(scale).mul_((scale != 0).float())


def _global(amax: Tensor) -> Tensor:
    """bf16(2688 / amax), rounded once; 1 for an all-zero weight.

    In float64, where the quotient of two float32 numbers cannot fall on a tie that it is not; the eight bits are cut by
    hand because torch casts float64 to bf16 by way of float32, which rounds twice.
    """
    bits = (torch.full_like(amax, GLOBAL_MAX).double() / amax.double()).view(torch.int64)
    bits = (bits + ((bits >> 45) & 1) + (2**44 - 1)) >> 45 << 45
    global_scale = bits.view(torch.float64).clamp(max=MOST_GLOBAL).float()
    return torch.where(amax == 0, torch.ones_like(global_scale), global_scale)


def _reference_global(amax: Tensor) -> Tensor:
    """What torch makes of ``2688.0 / amax`` in bf16: ``amax.reciprocal() * 2688``, rounded twice. Where that is
    infinite (an all-zero weight too) LightX2V's codes are garbage, and ours those of ``_global``.
    """
    amax = as_bf16(amax.clamp(max=BF16_MAX))
    global_scale = as_bf16(as_bf16(amax.reciprocal()) * GLOBAL_MAX)
    return torch.where(global_scale.isinf(), _global(amax), global_scale)


def _scaled(values: Tensor, scale: Tensor, global_scale: Tensor) -> Tensor:
    return values.view(*scale.shape, WIDTH).mul_(scale.unsqueeze(-1)).view(values.shape).div_(global_scale.float())


@hookimpl
def converter_quantizers() -> Sequence[type[Quantizer]]:
    return [Nvfp4]
