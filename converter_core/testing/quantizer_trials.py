"""What the kit for quantizers tries them on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch

from ..api.quantizers import Quantizer
from ..api.tensors import spec_of
from ..api.values import TensorRef, TensorSpec, WeightInfo
from ..planning.output_schema import OutputSchema
from .samples import (
    CASES,
    SOURCE_DTYPES,
    BareTarget,
    OneThread,
    copies,
    finite,
    given,
    inputs_of,
    norm,
    sample_weight,
    schema_of,
    slabs,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..api.values import Parts


class QuantizerTrials(OneThread):
    """A quantizer, the weights it takes, and what becomes of them."""

    quantizer: Quantizer
    shapes: ClassVar[Sequence[tuple[int, ...]]] = ((7, 128), (1, 128), (130, 256))
    dtypes: ClassVar[Sequence[str]] = SOURCE_DTYPES
    weight: ClassVar[WeightInfo] = WeightInfo("blocks.0.ffn.0.weight", {"weight": TensorRef("w")}, "linear", "ffn", "0")
    most_error: ClassVar[float] = 0.5
    smallest: ClassVar[float] = 1e-6

    def _samples(self, cases: Sequence[str] = CASES) -> Iterator[tuple[str, Tensor]]:
        for shape in self.shapes:
            for dtype in self.dtypes:
                for case in cases:
                    yield f"{dtype} {list(shape)}, {case}", sample_weight(shape, dtype, case)

    def _heights(self) -> Iterator[tuple[str, Tensor, Parts, int]]:
        """Weights that are cut, what they become whole, and every height of slabs (none for whole-weight schemes)."""
        tile = self.quantizer.row_block
        if not tile:
            return
        rows = 18 if tile < 8 else 4 * tile + tile // 2
        for dtype in self.dtypes:
            weight = sample_weight((rows, self.shapes[0][1]), dtype, "mixed")
            whole = copies(self._quantize(weight))
            for height in range(tile, rows, tile):
                yield f"{dtype} {list(weight.shape)}", weight, whole, height

    def _slabwise(self, weight: Tensor, height: int) -> Mapping[str, Tensor]:
        around = {name: tensor.to(weight.device) for name, tensor in inputs_of(self.quantizer, self.weight).items()}
        total: dict[str, Tensor] = {}
        for rows in slabs(weight, height):
            for name, value in self.quantizer.observe(rows).items():
                total[name] = torch.maximum(total[name], value) if name in total else value
        return {**around, **total}

    def _trial(self, spec: TensorSpec) -> OutputSchema:
        return schema_of(self.quantizer, BareTarget(), self.weight, spec)

    def _quantize(self, weight: Tensor) -> Parts:
        try:
            return self.quantizer.quantize(weight, **given(self.quantizer, weight, self.weight))
        except Warning as warning:
            raise AssertionError(f"{spec_of(weight)}: torch warns, an error in these tests: {warning}") from None
        except Exception as error:
            if tuple(weight.shape)[1:] not in {shape[1:] for shape in self.shapes}:
                raise
            raise AssertionError(
                f"{spec_of(weight)}: {type(error).__name__}: {error}; if the scheme takes no such weights, set shapes "
                "(and dtypes) in the test class to those that it takes"
            ) from error

    def _decoded(self, weight: Tensor, parts: Parts) -> Tensor:
        restored = self.quantizer.dequantize(parts)
        assert restored.dtype == torch.float32, f"dequantize must give float32, not {restored.dtype}"
        assert restored.shape == weight.shape, f"dequantize gives {list(restored.shape)} of {list(weight.shape)}"
        return restored

    def _steps(self, weight: Tensor, parts: Parts) -> Tensor | None:
        step = self.quantizer.quantization_step(parts)
        if step is not None:
            assert step.dtype == torch.float32, f"step must give float32, not {step.dtype}"
            assert step.shape == weight.shape, f"step gives {list(step.shape)} of {list(weight.shape)}"
        return step

    def _restored(self, weight: Tensor) -> Tensor:
        return self._decoded(weight, self._quantize(weight))

    def _check_finite(self, at: str, weight: Tensor, why: str) -> None:
        for role, part in self._quantize(weight).items():
            assert finite(part), f"{at}: {role} has NaN or infinity; {why}"
        assert finite(self._restored(weight)), f"{at}: comes back with NaN or infinity; {why}"

    def _check_error(self, at: str, weight: Tensor) -> None:
        parts = self._quantize(weight)
        error = norm(self._decoded(weight, parts).double() - weight.double())
        step = self._steps(weight, parts)
        if step is None:
            most = self.most_error * norm(weight)
            assert error <= most, f"{at}: error {error:.4g}, more than {self.most_error} of the weight ({most:.4g})"
            return
        assert error <= norm(step), f"{at}: error {error:.4g}, more than the declared steps ({norm(step):.4g})"
