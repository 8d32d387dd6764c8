"""What all schemes do with activation statistics, around their own rounding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from converter_core.api import HELD_OUT, Refused, SourceTensors, TensorRef, TensorSpec, WeightContext, statistics

from . import _gptq, _gptq_factor
from ._bits import by_pieces, halving_sum

if TYPE_CHECKING:
    from converter_core.api import Parts


_BITS: Mapping[int, torch.dtype] = MappingProxyType({1: torch.uint8, 2: torch.int16, 4: torch.int32})


ROWS, NEAREST_ROWS = "rows", "nearest_rows"


class Calibrated:
    """The part of a quantizer that follows from ``scale_rule: weighted`` and ``bias_correction``.

    A scheme writes ``rounded`` in the place of ``quantize``.
    """

    name: ClassVar[str]
    scale_rule: str | None
    bias_correction: bool
    rounding: str

    counted: ClassVar[Sequence[str]] = (ROWS, NEAREST_ROWS)

    by_activity: ClassVar[bool] = True
    """Whether gptq may round the columns in the order of their activity; not where neighbours share a scale."""

    def check_statistics(self) -> None:
        if self.bias_correction:
            self.only_exact("bias_correction", "true")
        if self.rounding != "nearest":
            self.only_exact("rounding", self.rounding)

    def only_exact(self, option: str, value: object) -> None:
        raise NotImplementedError

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
        if "tokens" in wanted:
            if "factors" in found:
                wanted |= dict.fromkeys(("factors", "mean_square"), "rounding: gptq")
            least = _gptq_factor.LEAST_HELD_OUT if "factors" in found else _gptq_factor.LEAST_TOKENS
            if (count := self._sampled(found["tokens"], stores)) < least:
                raise Refused(f"has {count} tokens in the calibration file; rounding: gptq needs {least}")
        return {statistic: found[statistic] for statistic in wanted}

    @staticmethod
    def _sampled(ref: TensorRef, stores: Mapping[str, SourceTensors]) -> int:
        return stores[ref.store][ref.key].shape[0]

    @property
    def same_everywhere(self) -> bool:
        return self.rounding != "gptq"

    def prepare(self, inputs: Parts, /) -> Parts:
        wanted = dict(self._wanted())
        others = {name: tensor for name, tensor in inputs.items() if name in wanted and name != "tokens"}
        return {**others, **_gptq_factor.prepared(inputs, self.by_activity)} if "tokens" in inputs else others

    def prepared_bytes(self, inputs: Mapping[str, TensorSpec], /) -> int:
        if "tokens" not in inputs:
            return 0
        count, columns = inputs["tokens"].shape
        rank = inputs["factors"].shape[0] if "factors" in inputs else 0
        return 4 * (4 * columns**2 + 2 * (count + rank) * columns)

    def remarks(self, weights: Mapping[str, Mapping[str, TensorSpec]], /) -> Iterable[str]:
        """How much gptq knows of the widest inputs, and of the narrowest."""
        known: dict[int, tuple[int, str]] = {}
        for given in weights.values():
            if "factors" in given:
                rank, columns = given["factors"].shape
                known.setdefault(columns, (rank, "factors"))
            elif "tokens" in given:
                tokens, columns = given["tokens"].shape
                known.setdefault(columns, (tokens - tokens // HELD_OUT, "tokens"))
        if known:
            told = (f"{count} {what} for inputs of {columns}" for columns, (count, what) in sorted(known.items()))
            yield f"rounding: gptq of {self.name} knows {', '.join(told)} channels"

    def told(self, counts: Mapping[str, int], /) -> str:
        rows, nearest = counts.get(ROWS, 0), counts.get(NEAREST_ROWS, 0)
        if not rows:
            return ""
        return (
            f"rounding: gptq of {self.name}: {nearest:,} of {rows:,} rows ({nearest / rows:.1%}) were no better for "
            "the held-out tokens and are rounded to nearest"
        )

    def _wanted(self) -> Iterator[tuple[str, str]]:
        """Statistics, and the options that need them."""
        if self.scale_rule == "weighted":
            yield "mean_square", "scale_rule: weighted"
        if self.bias_correction:
            yield "mean", "bias_correction"
        if self.rounding == "gptq":
            yield "tokens", "rounding: gptq"

    def _fitted(self, weight: Tensor, parts: Parts, fit: Parts) -> Parts:
        """By gptq, row by row where that is better for the held-out tokens than the parts of plain rounding."""
        plain = self.dequantize(parts)
        made = self.fitted(weight, parts, fit)
        better = _gptq.better_rows(weight, fit, self.dequantize(made), plain)
        nearest = len(better) - better.sum()
        chosen = {ROWS: torch.full_like(nearest, len(better)), NEAREST_ROWS: nearest}
        for role, part in made.items():
            by_rows = part.dim() and part.shape[0] == len(better)
            size = _BITS[part.element_size()]
            rows = better.view(-1, *[1] * (part.dim() - 1))
            chosen[role] = (
                torch.where(rows, part.view(size), parts[role].view(size)).view(part.dtype) if by_rows else part
            )
        return chosen

    def fitted(self, weight: Tensor, parts: Parts, fit: Parts) -> Parts:
        """The parts of a weight rounded by gptq. parts: of plain rounding, in their order."""
        raise NotImplementedError

    def rounded(self, weight: Tensor, /, *args: Any, **given: Any) -> Parts:
        raise NotImplementedError

    def dequantize(self, parts: Parts, /) -> Tensor:
        raise NotImplementedError

    def quantize(
        self, weight: Tensor, /, *args: Any, bias: Tensor | None = None, mean: Tensor | None = None, **given: Any
    ) -> Parts:
        fit: dict[str, Tensor] = {
            name: given.pop(name) for name in ("order", "factor", "gains", "held") if name in given
        }
        parts = self.rounded(weight, *args, **given)
        if fit:
            parts = self._fitted(weight, parts, fit)
        if bias is None or mean is None:
            return parts
        return {**parts, "bias": _corrected(bias, weight, self.dequantize(parts), mean)}


def _corrected(bias: Tensor, weight: Tensor, restored: Tensor, mean: Tensor) -> Tensor:
    """The bias [O] that takes up what the rounding of a weight changes for the mean input: ``(W - Wq) E[x]``."""

    def change(rows: Tensor, restored: Tensor) -> Tensor:
        return halving_sum((rows.float() - restored).mul_(mean), 1)

    return (bias.float() + by_pieces(change, weight, restored).view(-1)).to(bias.dtype)
