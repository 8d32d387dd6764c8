"""What happens to a weight that is not quantized: it is copied, or cast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from ..api.formats import UNQUANTIZED, QuantFormat
from ..api.quantizers import Quantizer
from ..api.tensors import torch_dtype, upcast
from ..api.values import FLOATING

if TYPE_CHECKING:
    from torch import Tensor

    from ..api.values import Parts

_CAST = frozenset(torch_dtype(name) for name in FLOATING)


@dataclass(frozen=True)
class Passthrough(Quantizer):
    """The quantizer behind ``method: none``, so that the engine knows one path only.

    dtype: header dtype that floating tensors are cast to, round to nearest even; None: as they are.
    """

    name: ClassVar[str] = "none"
    row_block: ClassVar[int | None] = 1

    dtype: str | None = None

    @property
    def format(self) -> QuantFormat:
        return UNQUANTIZED

    def quantize(self, weight: Tensor, /) -> Parts:
        cast = self.dtype is not None and weight.dtype in _CAST
        return {"weight": weight.to(torch_dtype(self.dtype)) if cast and self.dtype else weight}

    def dequantize(self, parts: Parts, /) -> Tensor:
        return parts["weight"].to(torch.float32)


def as_taken(quantizer: Quantizer, weight: Tensor) -> Tensor:
    """A weight as a quantizer gets it: floats of 8 bits as bf16, but where they are copied or cast."""
    return weight if isinstance(quantizer, Passthrough) else upcast(weight)
