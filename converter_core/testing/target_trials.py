"""What the kit for targets tries them on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from ..api.containers import Container
from ..api.contexts import WeightContext
from ..api.quantizers import Quantizer
from ..api.targets import Target
from ..api.values import OutputTensor, PlannedWeight, TensorRef, TensorSpec, WeightInfo
from ..planning.output_schema import OutputSchema
from ..planning.passthrough import Passthrough
from .samples import OneThread, context_of, given, sample_weight, schema_of

if TYPE_CHECKING:
    from torch import Tensor


INFO = WeightInfo("blocks.0.ffn.0.weight", {"weight": TensorRef("w")}, "linear", "ffn", "0")


class TargetTrials(OneThread):
    """A target, the parts that it stores, and weights as a plan has them."""

    target: Target
    quantizers: ClassVar[Sequence[Quantizer]] = ()
    refused: ClassVar[Sequence[Quantizer]] = ()
    container: ClassVar[Container | None] = None
    shapes: ClassVar[Sequence[tuple[int, int]]] = ((7, 128), (1, 128), (130, 192))

    def _all(self) -> tuple[Quantizer, ...]:
        return (*self.quantizers, Passthrough())

    def _samples(self) -> Iterator[tuple[str, Quantizer, Mapping[str, Tensor], tuple[int, int]]]:
        for quantizer in self._all():
            for shape in self.shapes:
                weight = sample_weight(shape)
                parts = quantizer.quantize(weight, **given(quantizer, weight, INFO))
                yield f"{quantizer.format} {list(shape)}", quantizer, parts, shape

    def _trial(self, quantizer: Quantizer, shape: tuple[int, ...]) -> OutputSchema:
        return schema_of(quantizer, self.target, INFO, TensorSpec("BF16", shape))

    def _context(self, quantizer: Quantizer, shape: tuple[int, ...]) -> WeightContext:
        return context_of(quantizer, INFO, TensorSpec("BF16", shape))

    def _planned(self, quantizer: Quantizer) -> list[PlannedWeight]:
        """Two blocks whose linear weights are quantized, their biases, and a norm."""
        infos = [
            WeightInfo(f"blocks.{block}.{module}.{leaf}", {}, kind, module.split(".")[0], f"{block}")
            for block in range(2)
            for module in ("ffn.0", "self_attn.q")
            for leaf, kind in (("weight", "linear"), ("bias", "bias"))
        ]
        infos.append(WeightInfo("head.norm.weight", {}, "norm"))
        planned = []
        for info in infos:
            scheme = quantizer if info.kind == "linear" else Passthrough()
            shape = self.shapes[-1] if info.kind == "linear" else self.shapes[-1][:1]
            schema = self._trial(scheme, shape)
            context = WeightContext(info, info.name, schema.spec, scheme.format)
            outputs = tuple(
                OutputTensor(self.target.key(context, role), role, spec, nbytes)
                for role, (spec, nbytes) in schema.outputs.items()
            )
            planned.append(PlannedWeight(info, info.name, schema.spec, scheme.format, outputs))
        return planned
