"""Quantized weights in another target's dress: the same codes and scales, nothing rounded anew."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..api.contexts import WeightContext
from ..api.formats import QuantFormat
from ..api.quantizers import Quantizer
from ..api.targets import Target
from ..api.values import Stored, TensorRef, TensorSpec, WeightInfo
from ..errors import ConverterError
from .decode import Slicer
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


class Transcoders:
    """Makes them for the weights of one source. quantizer: finds one that has a format, where there is one."""

    def __init__(self, source: Target, quantizer: Callable[[QuantFormat], Quantizer | None]) -> None:
        self._source = source
        self._quantizer = quantizer
        self._slicer = Slicer(source)

    def of(self, stored: Stored, specs: Mapping[str, TensorSpec]) -> tuple[Transcoder, dict[str, TensorRef]]:
        """For one weight, and where its other parts are read from: role -> TensorRef. specs: of all tensors, by key.

        Parts with as many rows as the weight are read with it, slab by slab; one that is padded, or that no slab can be
        cut from, is read whole.
        """
        (primary, codes), *others = stored.keys.items()
        shape, block = stored.shape or specs[codes].shape, self._source.row_block
        cut = self._cut(stored, shape, {role: specs[key] for role, key in stored.keys.items()})
        even = block and shape and not shape[0] % block and primary in cut
        even = even and all(specs[stored.keys[role]].shape[0] == shape[0] for role in cut)
        made = Transcoder(
            source=self._source, stored=stored.format, shape=shape, primary=primary, rows=block if even else None
        )
        return made, {role: TensorRef(key, by_rows=bool(even) and role in cut) for role, key in others}

    def _cut(self, stored: Stored, shape: tuple[int, ...], parts: Mapping[str, TensorSpec]) -> Collection[str]:
        """Roles of parts that grow with the rows: as a dry run of ``encode`` shows, else those of several axes."""
        quantizer = self._quantizer(stored.format)
        if quantizer is not None:
            try:
                slices = self._slicer.slices(quantizer, TensorSpec("BF16", shape), parts)
            except ConverterError:  # a quantizer's default options may make other parts
                pass
            else:
                return [role for role, height in slices.heights.items() if height]
        return [role for role, spec in parts.items() if len(spec.shape) > 1]
