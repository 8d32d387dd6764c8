"""fp8: float8_e4m3fn, one scale per row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from converter_core.api import QuantFormat, Quantizer, Refused, hookimpl

from . import _loops
from ._bits import absmax_of_all, absmax_of_rows, admit, by_pieces, decode_e4m3
from ._calibration import ActivationScaled
from ._fp8_scales import best_steps
from ._gptq import TO_E4M3, fitted
from ._importance import counted, shares_of
from ._reference import Numerics, Reference
from ._rows import (
    ScaleDtype,
    in_steps,
    kept_where_better,
    moved,
    options_for,
    reference_quotient,
    reference_scale,
    scale_facts,
    scale_for,
    sum_of_squares,
)

if TYPE_CHECKING:
    from converter_core.api import Parts

E4M3_MAX = 448.0
SMALLEST_FP16 = 2.0**-24


@dataclass(frozen=True)
class Fp8(Reference, ActivationScaled, Quantizer):
    """8-bit floats (E4M3) with a scale per row, or per tensor: half the size of bf16, for GPUs that multiply them.

    Parts: ``weight`` float8_e4m3fn [O, I], ``scale`` float32 [O, 1], or [] with ``per_channel=False``; with statistics
    ``input_absmax`` float32 []. A weight is ``weight * scale``.

    per_channel: a scale for each row; otherwise one for the whole weight. Left out: what the target takes.
    scale_dtype: what scales are rounded to; they are stored as float32 all the same. Left out: what the target takes.
    numerics: ``exact``, or ``lightx2v`` for the bytes that LightX2V's own converter writes.
    scale_rule: ``absmax``, or ``mse``: absmax times the ratio in [1, 2) with the least squared error in each row.
        Nothing is clipped; the ratio moves the weights over the grid of mantissas. ``weighted``: the same with each
        column's error weighted by ``E[x^2]`` of source.calibration. Left out: ``mse``; ``absmax`` where there is one
        scale for the weight, or under ``numerics: lightx2v``.
    bias_correction: the layer's bias takes up what rounding changes for the mean input, ``(W - Wq) E[x]`` of
        source.calibration; layers without a bias are left alone.
    rounding: ``nearest``, or ``gptq``: each column takes up what rounding the columns before it changed, for the tokens
        of source.calibration. Much better, and minutes for a large weight.
    activation_absmax: file of activation statistics (LightX2V's ``calib.pt``, or the same in safetensors or JSON), for
        runtimes that quantize activations with a scale from the file.
    """

    name: ClassVar[str] = "fp8"
    row_block: ClassVar[int | None] = 1

    per_channel: bool = True
    numerics: Numerics = "exact"
    scale_rule: Literal["mse", "absmax", "weighted"] | None = None
    bias_correction: bool = False
    rounding: Literal["nearest", "gptq"] = "nearest"
    scale_dtype: ScaleDtype = "bfloat16"
    activation_absmax: str | None = None

    def __post_init__(self) -> None:
        self.check_choices()
        self.check_statistics()
        if not self.per_channel:
            self.only_exact("per_channel", "false")
            if self.rounding == "gptq":
                raise Refused("rounding: gptq needs per_channel: true")
        if self.scale_dtype != "bfloat16":
            self.only_exact("scale_dtype", self.scale_dtype)
        if self.scale_rule in ("mse", "weighted"):
            self.only_exact("scale_rule", self.scale_rule)
            if not self.per_channel:
                raise Refused(f"scale_rule: {self.scale_rule} chooses a scale for each row; it needs per_channel: true")

    @property
    def _rule(self) -> str:
        return self.scale_rule or ("mse" if self.per_channel and not self.is_reference else "absmax")

    @property
    def format(self) -> QuantFormat:
        if self.is_reference:
            return QuantFormat(self.name, "e4m3", 8, "row")
        return QuantFormat(self.name, "e4m3", 8, **scale_facts(self.per_channel, self.scale_dtype))

    def options_for(self, wanted: QuantFormat, /) -> Mapping[str, Any]:
        return {} if self.is_reference else options_for(wanted)

    def observe(self, rows: Tensor, /) -> Parts:
        return {} if self.per_channel else {"amax": absmax_of_all(admit(rows))}

    def fitted(self, weight: Tensor, parts: Parts, fit: Parts) -> Parts:
        values, scale = fitted(weight, fit, weight.shape[1], parts["scale"], _nearest, TO_E4M3)
        return {**parts, "weight": _codes(values, scale)}

    def rounded(
        self,
        weight: Tensor,
        /,
        *,
        amax: Tensor | None = None,
        input_absmax: Tensor | None = None,
        mean_square: Tensor | None = None,
    ) -> Parts:
        weight = admit(weight)
        if self.is_reference:
            scale = reference_scale(weight, absmax_of_rows(weight), E4M3_MAX)
            codes = _reference_codes(weight, scale)
        else:
            amax = absmax_of_rows(weight) if amax is None else amax
            scale = scale_for(amax, E4M3_MAX, self.scale_dtype)
            if self._rule != "absmax":
                scale = _best_scale(weight, amax, scale, shares_of(mean_square))
            codes = _codes(weight, scale.expand(weight.shape[0], 1))
        parts = {"weight": codes, "scale": scale}
        return parts if input_absmax is None else {**parts, "input_absmax": input_absmax}

    def dequantize(self, parts: Parts, /) -> Tensor:
        codes, scale = parts["weight"], parts["scale"].float()
        return _loops.e4m3_values(codes, scale) if _loops.suit(codes) else decode_e4m3(codes).mul_(scale)

    def quantization_step(self, parts: Parts, /) -> Tensor:
        codes, scale = parts["weight"], parts["scale"].float()
        if _loops.suit(codes):
            steps = _loops.e4m3_steps(codes, scale)
        else:
            steps = _binade(decode_e4m3(codes)).mul_(2.0**-3).mul_(scale)
        # a row whose scale fp16 rounded to zero comes back as zeros: the next it could have had is one smallest scale
        return steps.add_((scale == 0).float().mul_(E4M3_MAX * SMALLEST_FP16))


def _reference_codes(weight: Tensor, scale: Tensor) -> Tensor:
    """The codes of LightX2V's converter, which divides by a scale of zero: positive ones become +448, all else -448.

    (0 / 0 is NaN with its sign set on x86; qtorch takes it for a number too large and torch's cast saturates.)
    """
    codes = _ties_away(reference_quotient(weight, scale).clamp_(-E4M3_MAX, E4M3_MAX))
    of_zero_scale = torch.where(weight > 0, E4M3_MAX, -E4M3_MAX)
    return torch.where(scale == 0, of_zero_scale, codes).to(torch.float8_e4m3fn)


def _nearest(values: Tensor, scale: Tensor) -> Tensor:
    steps = in_steps(values, scale).clamp_(-E4M3_MAX, E4M3_MAX)
    return steps.add_(_residual(steps, torch.ones_like(scale))).mul_(scale)


def _codes(weight: Tensor, scale: Tensor) -> Tensor:
    if _loops.suit(weight):
        return _loops.e4m3_codes(weight, scale)

    def codes(rows: Tensor, scale: Tensor) -> Tensor:
        return in_steps(rows, scale).clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)

    return by_pieces(codes, weight, scale)


def _best_scale(weight: Tensor, amax: Tensor, first: Tensor, shares: Tensor | None) -> Tensor:
    """Of the bf16 numbers from ``first`` to twice as much, after which the grid of mantissas returns. [O, 1]"""
    steps = best_steps(weight, amax, first, counted(shares))
    scale = moved(first, steps)
    relative = scale / first
    least = _cost(weight, scale, shares).mul_(relative).mul_(relative)
    of_first = _cost(weight, first, shares)
    return moved(first, kept_where_better(weight, first, steps, of_first, least, _decoded, shares=shares))


def _cost(weight: Tensor, scale: Tensor, shares: Tensor | None = None) -> Tensor:
    if _loops.suit(weight):
        return _loops.e4m3_costs(weight, scale, shares)
    return by_pieces(lambda rows, of: sum_of_squares(_residual(rows, of), shares), weight, scale)


def _decoded(weight: Tensor, scale: Tensor) -> Tensor:
    return decode_e4m3(_codes(weight, scale)).mul_(scale)


def _binade(values: Tensor) -> Tensor:
    """The power of two at or below each magnitude, at least E4M3's smallest normal number 2^-6; a step is 1/8 of it."""
    return (values.view(torch.int32) & 0x7F800000).view(torch.float32).clamp_(min=2.0**-6)


def _residual(rows: Tensor, scale: Tensor) -> Tensor:
    """Distance of rows / scale, at most 464 (from where on 448 is not the nearest), to the nearest E4M3 value.

    Adding 1.5 * 2^23 steps leaves a float32 no bit below the step; taking them off again gives the rounded value.
    """
    exact = in_steps(rows, scale)
    binade = _binade(exact)
    steps = 1.5 * 2.0**20
    return torch.add(exact, binade, alpha=steps).sub_(binade, alpha=steps).sub_(exact)


def _ties_away(values: Tensor) -> Tensor:
    """E4M3 values as qtorch's ``float_quantize(exp=4, man=3, "nearest")`` rounds them: ties away from zero, nothing
    negative rounds to -0. Below 2^-6 it rounds values shifted by 2^-6, where the grid of subnormals goes on.
    """
    shift = torch.copysign((values.abs() < 2.0**-6).float().mul_(2.0**-6), values)
    bits = (values + shift).view(torch.int32)
    return bits.add_(0x80000).bitwise_and_(-0x100000).view(torch.float32).sub_(shift).add_(0.0)


@hookimpl
def converter_quantizers() -> Sequence[type[Quantizer]]:
    return [Fp8]
