"""mxfp4: 4-bit floats, a power of two per 32 columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from converter_core.api import QuantFormat, Quantizer, hookimpl

from . import _e8m0, _loops
from ._bits import absmax, admit, by_pieces, halving_sum
from ._fp4 import SIXTH, as_kernel_reads, decode, encode, encode_as_kernel, nearest, scaled, steps
from ._gptq import TO_E2M1, fitted
from ._importance import of_blocks, shares_of
from ._reference import Numerics, Reference
from ._statistics import Calibrated

if TYPE_CHECKING:
    from converter_core.api import Parts

WIDTH = 32
ONE = 1 << 22
"""Of the fixed-point numbers that errors are compared in; the sum of a block stays below 2^31."""


@dataclass(frozen=True)
class Mxfp4(Reference, Calibrated, Quantizer):
    """4-bit floats (E2M1) with a power of two (E8M0) per 32 columns: 4.25 bits per weight, no global scale.

    Parts: ``weight`` uint8 [O, I / 2], ``scale`` uint8 [O, I / 32]. A weight is ``e2m1 * 2^(scale - 127)``.

    numerics: ``exact``, or ``lightx2v`` for the bytes that LightX2V's kernel writes.
    scale_rule: ``rceil`` (the kernel's: the smallest power of two that saturates nothing), ``floor`` (OCP MX 1.0: cuts
        the largest weights by up to a quarter), ``even`` (floor after rounding to E2M1's mantissa), ``mse`` (of floor
        and floor + 1 the one with the smaller squared error in each block; it too may cut the largest weights),
        ``weighted`` (the same with each column's error weighted by ``E[x^2]`` of source.calibration). Left out:
        ``even``; under ``numerics: lightx2v`` the kernel's.
    bias_correction: the layer's bias takes up what rounding changes for the mean input, ``(W - Wq) E[x]`` of
        source.calibration; layers without a bias are left alone.
    rounding: ``nearest``, or ``gptq``: each column takes up what rounding the columns before it changed, for the tokens
        of source.calibration. Much better, and minutes for a large weight.
    """

    name: ClassVar[str] = "mxfp4"
    row_block: ClassVar[int | None] = 1

    by_activity: ClassVar[bool] = False

    numerics: Numerics = "exact"
    scale_rule: Literal["even", "mse", "rceil", "floor", "weighted"] | None = None
    bias_correction: bool = False
    rounding: Literal["nearest", "gptq"] = "nearest"

    def __post_init__(self) -> None:
        self.check_choices()
        self.check_statistics()
        if self.scale_rule not in (None, "rceil"):
            self.only_exact("scale_rule", self.scale_rule)

    @property
    def format(self) -> QuantFormat:
        return QuantFormat(self.name, "e2m1", 4, "group", WIDTH, "F8_E8M0", packing="low_nibble_first")

    def fitted(self, weight: Tensor, parts: Parts, fit: Parts) -> Parts:
        def units(columns: Tensor, counts: Tensor) -> Tensor:
            return _e8m0.power(_better(columns, absmax(columns, WIDTH).view(-1, 1), counts))

        values, unit = fitted(weight, fit, WIDTH, units, nearest, TO_E2M1)
        scale = (unit.view(torch.int32) >> 23).clamp_(min=0)
        return {"weight": encode(values, _e8m0.inverse_power(scale)), "scale": scale.to(torch.uint8)}

    def rounded(self, weight: Tensor, /, *, mean_square: Tensor | None = None) -> Parts:
        weight = admit(weight, WIDTH)
        if self.is_reference:
            weight = as_kernel_reads(weight)
        amax = absmax(weight, WIDTH).view(weight.shape[0], -1)
        if self.is_reference:
            scale = _rceil(amax)
            reciprocal = _e8m0.inverse_power(scale).masked_fill_(
                scale == 0, torch.inf
            )  # the kernel's flushes to zero first
            return {"weight": encode_as_kernel(weight, reciprocal), "scale": scale.to(torch.uint8)}
        rule = self.scale_rule or "even"
        if rule in ("mse", "weighted"):
            scale = _better(weight, amax, shares_of(mean_square))
        else:
            scale = {"rceil": _rceil, "floor": _floor, "even": _even}[rule](amax)
        return {"weight": encode(weight, _e8m0.inverse_power(scale)), "scale": scale.to(torch.uint8)}

    def dequantize(self, parts: Parts, /) -> Tensor:
        return _scaled(decode(parts["weight"]), parts["scale"])

    def quantization_step(self, parts: Parts, /) -> Tensor:
        # The kernel's zero blocks decode to 6 * 2^-127, which is nothing: no smaller step is worth telling apart.
        return _scaled(steps(parts["weight"]), parts["scale"]).clamp_(min=2.0**-123)


def _better(weight: Tensor, amax: Tensor, shares: Tensor | None) -> Tensor:
    """E8M0 of floor or, where that is better, of the next, as int32. amax: largest magnitudes of the blocks."""
    scale = _floor(amax)
    better = _floor_is_better(weight, _e8m0.inverse_power(scale), of_blocks(shares, WIDTH))
    return scale.add_((_rceil(amax) - scale).mul_(better.logical_not_()))


def _rceil(amax: Tensor) -> Tensor:
    """E8M0 of amax / 6 rounded up to a power of two, as int32."""
    return _e8m0.smallest_power(amax * SIXTH)


def _floor(amax: Tensor) -> Tensor:
    """E8M0 of floor(log2(amax)) - 2, as int32. OCP Microscaling Formats 1.0, 6.3."""
    return ((amax.view(torch.int32) >> 23) - 2).clamp_(min=0)


def _even(amax: Tensor) -> Tensor:
    """As floor, after rounding to one bit of mantissa: torchao's ``ScaleCalculationMode.EVEN``."""
    return _floor((amax.view(torch.int32) + 0x200000).view(torch.float32))


def _floor_is_better(weight: Tensor, inv_scale: Tensor, shares: Tensor | None) -> Tensor:
    """Blocks [O, I / 32] whose squared error is smaller with floor's power of two than with the next.

    inv_scale: the reciprocal of floor's power of two, in units of which all magnitudes are below 8. There the two grids
    differ only below 2, where floor's has the halves as well, and above 7, where floor's saturates at 6 and the other
    has 8. So the difference of the squared errors is a sum of |x - round(x)| - 1/4 where that is positive (x < 2), less
    one of 4 (x - 7) where x > 7; it is never negative where the kernel takes floor itself (all x up to 6). Added in
    fixed point, in which no order shows, and which is exact for bf16 and fp16. shares: how much each column counts,
    float32 [I]; None: all alike.
    """
    if _loops.suit(weight):
        return _loops.floor_is_better(weight, inv_scale, shares)

    def better(rows: Tensor, inv_scale: Tensor) -> Tensor:
        fixed = scaled(rows, inv_scale).mul_(ONE).to(torch.int32)
        to_integer = fixed.clamp(max=2 * ONE).add_(ONE // 2).bitwise_and_(ONE - 1).sub_(ONE // 2).abs_()
        beyond = fixed.sub_(7 * ONE).clamp_(min=0)
        saved = to_integer.clamp_(min=ONE // 4).sub_(ONE // 4).sub_(beyond, alpha=4)
        if shares is not None:
            return halving_sum(saved.float().mul_(shares.view(-1, WIDTH)), 2).squeeze(2) > 0
        return saved.sum(-1, dtype=torch.int32) > 0

    return by_pieces(better, weight, inv_scale)


def _scaled(values: Tensor, scale: Tensor) -> Tensor:
    return values.view(*scale.shape, WIDTH).mul_(_e8m0.power(scale).unsqueeze(-1)).view(values.shape)


@hookimpl
def converter_quantizers() -> Sequence[type[Quantizer]]:
    return [Mxfp4]
