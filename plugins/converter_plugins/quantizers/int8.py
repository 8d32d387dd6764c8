"""int8: 8-bit integers, one scale per row or one per tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from converter_core.api import QuantFormat, Quantizer, Refused, hookimpl

from . import _loops
from ._bits import absmax_of_all, absmax_of_rows, admit, by_pieces
from ._gptq import TO_INT8, fitted
from ._importance import shares_of
from ._reference import Numerics, Reference
from ._rows import (
    ScaleDtype,
    best_scale,
    in_steps,
    options_for,
    reference_quotient,
    reference_scale,
    scale_facts,
    scale_for,
    sum_of_squares,
)
from ._statistics import Calibrated

if TYPE_CHECKING:
    from converter_core.api import Parts

CLIPPED = (range(-1, -17, -1),)
"""Steps from absmax / 127 to the smaller bf16 scales that ``mse`` tries: down to 0.88 of it."""


@dataclass(frozen=True)
class Int8(Reference, Calibrated, Quantizer):
    """8-bit integers with a scale per row: half the size of bf16, the smallest error of all schemes.

    Parts: ``weight`` int8 [O, I], ``scale`` float32 [O, 1]; with ``symmetric=False`` also ``zero_point`` int8 [O, 1];
    both are [] with ``per_channel=False``. A weight is ``(weight - zero_point) * scale``.

    per_channel: a scale for each row; otherwise one for the whole weight. Left out: what the target takes.
    scale_dtype: what scales are rounded to; they are stored as float32 all the same. Left out: what the target takes.
    symmetric: codes -127...127 around zero. Otherwise -128...127 over the range of the row, zero included, with a
        zero point: ``scale = (max - min) / 255``, ``zero_point = round(-128 - min / scale)``.
    numerics: ``exact``, or ``lightx2v`` for the bytes that LightX2V's own converter writes.
    scale_rule: ``absmax``, or ``mse``: the clip ratio with the least squared error in each row. It clips the largest
        weights, and hurts where they meet the largest activations. ``weighted``: the same with each column's error
        weighted by ``E[x^2]`` of source.calibration, which tells where that is.
    bias_correction: the layer's bias takes up what rounding changes for the mean input, ``(W - Wq) E[x]`` of
        source.calibration; layers without a bias are left alone.
    rounding: ``nearest``, or ``gptq``: each column takes up what rounding the columns before it changed, for the tokens
        of source.calibration. Much better, and minutes for a large weight.
    """

    name: ClassVar[str] = "int8"
    row_block: ClassVar[int | None] = 1

    per_channel: bool = True
    symmetric: bool = True
    numerics: Numerics = "exact"
    scale_rule: Literal["absmax", "mse", "weighted"] = "absmax"
    bias_correction: bool = False
    rounding: Literal["nearest", "gptq"] = "nearest"
    scale_dtype: ScaleDtype = "bfloat16"

    def __post_init__(self) -> None:
        self.check_choices()
        self.check_statistics()
        if self.rounding == "gptq" and not (self.symmetric and self.per_channel):
            raise Refused("rounding: gptq needs symmetric: true and per_channel: true")
        if not self.per_channel:
            self.only_exact("per_channel", "false")
        if self.scale_dtype != "bfloat16":
            self.only_exact("scale_dtype", self.scale_dtype)
        if not self.symmetric:
            self.only_exact("symmetric", "false")
        if self.scale_rule != "absmax":
            self.only_exact("scale_rule", self.scale_rule)
            if not self.per_channel:
                raise Refused(f"scale_rule: {self.scale_rule} chooses a scale for each row; it needs per_channel: true")

    @property
    def format(self) -> QuantFormat:
        if self.is_reference:
            return QuantFormat(self.name, "int8", 8, "row")
        facts = scale_facts(self.per_channel, self.scale_dtype)
        return QuantFormat(self.name, "int8", 8, symmetric=self.symmetric, **facts)

    def options_for(self, wanted: QuantFormat, /) -> Mapping[str, Any]:
        return {} if self.is_reference else options_for(wanted)

    def observe(self, rows: Tensor, /) -> Parts:
        if self.per_channel:
            return {}
        weight = admit(rows)
        if self.symmetric:
            return {"amax": absmax_of_all(weight)}
        return {"below": _below(weight).amax(0).view(()), "above": _above(weight).amax(0).view(())}

    def fitted(self, weight: Tensor, parts: Parts, fit: Parts) -> Parts:
        values, scale = fitted(weight, fit, weight.shape[1], parts["scale"], _nearest, TO_INT8)
        return {"weight": _codes(values, scale), "scale": scale}

    def rounded(
        self,
        weight: Tensor,
        /,
        *,
        amax: Tensor | None = None,
        below: Tensor | None = None,
        above: Tensor | None = None,
        mean_square: Tensor | None = None,
    ) -> Parts:
        weight = admit(weight)
        shares = shares_of(mean_square)
        if self.is_reference:
            scale = reference_scale(weight, absmax_of_rows(weight), 127)
            codes = reference_quotient(weight, scale).round_().clamp_(-128, 127)
            return {"weight": codes.to(torch.int8), "scale": scale}
        if self.symmetric:
            scale = scale_for(absmax_of_rows(weight) if amax is None else amax, 127, self.scale_dtype)
            if self.scale_rule != "absmax":
                scale = best_scale(weight, scale, CLIPPED, _cost, _decoded, shares=shares)
            return {"weight": _codes(weight, _for_rows(scale, weight)), "scale": scale}
        low = _below(weight) if below is None else below
        high = _above(weight) if above is None else above
        full = torch.full_like(low, 255)
        scale = scale_for(low / full + high / full, 1, self.scale_dtype)
        if self.scale_rule != "absmax":
            scale = best_scale(weight, scale, CLIPPED, _affine_cost, _affine_decoded, low, shares=shares)
        point = _zero_point(low, scale)
        codes = _affine_codes(weight, _for_rows(scale, weight), _for_rows(point, weight))
        return {"weight": codes, "scale": scale, "zero_point": point.to(torch.int8)}

    def dequantize(self, parts: Parts, /) -> Tensor:
        codes = parts["weight"].float()
        if "zero_point" in parts:
            codes -= parts["zero_point"].float()
        return codes.mul_(parts["scale"].float())

    def quantization_step(self, parts: Parts, /) -> Tensor:
        return parts["scale"].float().expand(parts["weight"].shape)


def _for_rows(one: Tensor, weight: Tensor) -> Tensor:
    """[O, 1], of the one for all rows too."""
    return one.expand(weight.shape[0], 1)


def _nearest(values: Tensor, scale: Tensor) -> Tensor:
    return in_steps(values, scale).clamp_(-127, 127).round_().mul_(scale)


def _codes(weight: Tensor, scale: Tensor) -> Tensor:
    if _loops.suit(weight):
        return _loops.int8_codes(weight, scale)
    return by_pieces(lambda rows, of: in_steps(rows, of).round_().clamp_(-127, 127).to(torch.int8), weight, scale)


def _affine_codes(weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    def codes(rows: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return in_steps(rows, scale).round_().add_(zero).clamp_(-128, 127).to(torch.int8)

    return by_pieces(codes, weight, scale, zero)


def _cost(weight: Tensor, scale: Tensor, shares: Tensor | None = None) -> Tensor:
    if _loops.suit(weight):
        return _loops.int8_costs(weight, scale, shares)

    def cost(rows: Tensor, scale: Tensor) -> Tensor:
        exact = in_steps(rows, scale)
        return sum_of_squares(exact.round().clamp_(-127, 127).sub_(exact), shares)

    return by_pieces(cost, weight, scale)


def _affine_cost(weight: Tensor, scale: Tensor, low: Tensor, shares: Tensor | None = None) -> Tensor:
    def cost(rows: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        exact = in_steps(rows, scale)
        return sum_of_squares(exact.round().add_(zero).clamp_(-128, 127).sub_(zero).sub_(exact), shares)

    return by_pieces(cost, weight, scale, _zero_point(low, scale))


def _decoded(weight: Tensor, scale: Tensor) -> Tensor:
    return _codes(weight, scale).float().mul_(scale)


def _affine_decoded(weight: Tensor, scale: Tensor, low: Tensor) -> Tensor:
    zero = _zero_point(low, scale)
    return _affine_codes(weight, scale, zero).float().sub_(zero).mul_(scale)


def _zero_point(low: Tensor, scale: Tensor) -> Tensor:
    """The code of zero, as float32. low: how far the values reach below zero."""
    return (low / scale).sub_(128).round_().clamp_(-128, 127)


def _below(weight: Tensor) -> Tensor:
    return weight.amin(1, keepdim=True).float().neg_().clamp_(min=0)


def _above(weight: Tensor) -> Tensor:
    return weight.amax(1, keepdim=True).float().clamp_(min=0)


@hookimpl
def converter_quantizers() -> Sequence[type[Quantizer]]:
    return [Int8]
