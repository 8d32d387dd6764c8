"""What all schemes do with activation statistics, around their own rounding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from converter_core.api import Refused, SourceTensors, TensorRef, WeightContext, statistics

from ._bits import by_pieces, halving_sum

if TYPE_CHECKING:
    from converter_core.api import Parts


class Calibrated:
    """The part of a quantizer that follows from ``scale_rule: weighted`` and ``bias_correction``.

    A scheme writes ``rounded`` in the place of ``quantize``.
    """

    scale_rule: str | None
    bias_correction: bool

    @property
    def wants_bias(self) -> bool:
        return self.bias_correction

    def inputs(
        self, context: WeightContext, stores: Mapping[str, SourceTensors], /
    ) -> Mapping[str, TensorRef | Tensor]:
        wanted = dict(self._wanted())
        if not wanted:
            return {}
        found = statistics(context, stores)
        option = next(iter(wanted.values()))
        if found is None:
            raise Refused(f"needs activation statistics for {option}; give the file as source.calibration")
        for statistic, option in wanted.items():
            if statistic not in found:
                raise Refused(f"has no {statistic} in the calibration file, which {option} needs")
        return {statistic: found[statistic] for statistic in wanted}

    def _wanted(self) -> Iterator[tuple[str, str]]:
        """Statistics, and the options that need them."""
        if self.scale_rule == "weighted":
            yield "mean_square", "scale_rule: weighted"
        if self.bias_correction:
            yield "mean", "bias_correction"

    def rounded(self, weight: Tensor, /, *args: Any, **given: Any) -> Parts:
        raise NotImplementedError

    def dequantize(self, parts: Parts, /) -> Tensor:
        raise NotImplementedError

    def quantize(
        self, weight: Tensor, /, *args: Any, bias: Tensor | None = None, mean: Tensor | None = None, **given: Any
    ) -> Parts:
        parts = self.rounded(weight, *args, **given)
        if bias is None or mean is None:
            return parts
        return {**parts, "bias": _corrected(bias, weight, self.dequantize(parts), mean)}


def _corrected(bias: Tensor, weight: Tensor, restored: Tensor, mean: Tensor) -> Tensor:
    """The bias [O] that takes up what the rounding of a weight changes for the mean input: ``(W - Wq) E[x]``."""

    def change(rows: Tensor, restored: Tensor) -> Tensor:
        return halving_sum((rows.float() - restored).mul_(mean), 1)

    return (bias.float() + by_pieces(change, weight, restored).view(-1)).to(bias.dtype)
