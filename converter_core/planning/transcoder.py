"""Quantized weights in another target's dress: the same codes and scales, nothing rounded anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..api.contexts import WeightContext
from ..api.formats import QuantFormat
from ..api.targets import Target
from ..api.values import Stored, TensorRef, TensorSpec, WeightInfo
from .passthrough import Passthrough

if TYPE_CHECKING:
    from torch import Tensor

    from ..api.values import Parts


@dataclass(frozen=True)
class Transcoder(Passthrough):
    """Undoes the encoding of the source's target. What it gives is canonical; the output's target encodes it again.

    source: the target whose files the source is. stored: the format of the weight. shape: of the weight. primary: the
    role of the part that is read as the weight. rows: at which multiples of rows it may be cut; None: nowhere.
    """

    source: Target | None = None
    stored: QuantFormat | None = None
    shape: tuple[int, ...] = ()
    primary: str = "weight"
    rows: int | None = None

    @property
    def row_block(self) -> int | None:  # type: ignore[override]
        return self.rows

    @property
    def format(self) -> QuantFormat:
        assert self.stored is not None
        return self.stored

    def quantize(self, weight: Tensor, /, **parts: Tensor) -> Parts:
        """weight: the part with the codes; the others by their roles."""
        assert self.source is not None
        rows = weight.shape[0] if self.rows and weight.dim() else self.shape[0]
        spec = TensorSpec("F32", (rows, *self.shape[1:]))
        context = WeightContext(WeightInfo("weight", {}), "weight", spec, self.format)
        return self.source.decode(context, {self.primary: weight, **parts})


def transcoder(stored: Stored, specs: Mapping[str, TensorSpec], source: Target) -> tuple[Transcoder, dict[str, Any]]:
    """For one weight, and where its other parts are read from: role -> TensorRef. specs: of all tensors, by key.

    Parts with as many rows as the weight are read with it, slab by slab; one that is padded, or that no slab can be cut
    from, is read whole.
    """
    (primary, codes), *others = stored.keys.items()
    shape = stored.shape or specs[codes].shape
    tall = [specs[key] for key in stored.keys.values() if len(specs[key].shape) > 1]
    even = source.row_block and all(spec.shape[0] == shape[0] for spec in tall) and not shape[0] % source.row_block
    made = Transcoder(
        source=source, stored=stored.format, shape=shape, primary=primary, rows=source.row_block if even else None
    )
    refs = {role: TensorRef(key, by_rows=bool(even) and len(specs[key].shape) > 1) for role, key in others}
    return made, refs
