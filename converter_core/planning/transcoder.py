"""Quantized weights in another target's dress: the same codes and scales, nothing rounded anew."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ..api.contexts import WeightContext
from ..api.formats import QuantFormat
from ..api.quantizers import Quantizer
from ..api.targets import Target
from ..api.tensors import dtype_of, same
from ..api.values import Stored, TensorRef, TensorSpec, WeightInfo
from ..checkpoint.checkpoint import Checkpoint
from ..errors import ConverterError, Refused
from .decode import Slicer
from .encoding import Encoding
from .exact_numbers import Numbers, exactly
from .passthrough import Passthrough
from .stores import read_whole
from .transcode import Quantized

if TYPE_CHECKING:
    from torch import Tensor

    from ..api.values import Parts


@dataclass(frozen=True)
class Transcoder(Passthrough):
    """Undoes the encoding of the source's target. What it gives is canonical; the output's target encodes it again.

    source: the target whose files the source is. stored: the format of the weight. shape: of the weight. primary: the
    role of the part that is read as the weight. rows: at which multiples of rows it may be cut; None: nowhere. numbers:
    canonical parts of one number each that the stored ones tell only nearly.
    """

    source: Target | None = None
    stored: QuantFormat | None = None
    shape: tuple[int, ...] = ()
    primary: str = "weight"
    rows: int | None = None
    numbers: tuple[tuple[str, float], ...] = ()

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
        return exactly(self.source.decode(context, {self.primary: weight, **parts}), dict(self.numbers))


class Transcoders:
    """Makes them for the weights of one source. numbers: by weight, what the output's header has to tell of it.

    quantizer: finds one that has a format, where there is one.
    """

    def __init__(
        self, quantized: Quantized, checkpoint: Checkpoint, quantizer: Callable[[QuantFormat], Quantizer | None]
    ) -> None:
        self.quantized = quantized
        self.numbers: dict[str, Numbers] = {}
        self._source = quantized.dress
        self._checkpoint = checkpoint
        self._quantizer = quantizer
        self._slicer = Slicer(self._source)

    def of(self, info: WeightInfo, stored: Stored) -> tuple[Transcoder, dict[str, TensorRef]]:
        """For one weight, and where its other parts are read from: role -> TensorRef.

        Parts with as many rows as the weight are read with it, slab by slab; one that is padded, or that no slab can be
        cut from, is read whole.
        """
        specs = self._checkpoint.tensors
        (primary, codes), *others = stored.keys.items()
        shape, block = stored.shape or specs[codes].shape, self._source.row_block
        cut = self._cut(stored, shape, {role: specs[key] for role, key in stored.keys.items()})
        even = block and shape and not shape[0] % block and primary in cut
        even = even and all(specs[stored.keys[role]].shape[0] == shape[0] for role in cut)
        made = Transcoder(
            source=self._source,
            stored=stored.format,
            shape=shape,
            primary=primary,
            rows=block if even else None,
            numbers=tuple(self.quantized.numbers_of(info).canonical.items()),
        )
        return made, {role: TensorRef(key, by_rows=bool(even) and role in cut) for role, key in others}

    def dressed(
        self, info: WeightInfo, stored: Stored, made: Transcoder, refs: Mapping[str, TensorRef], encoding: Encoding
    ) -> Encoding:
        """The encoding with the numbers that its target had stored before; else they are kept for the header.

        made, refs: of this weight.
        """
        target, context, before = encoding.target, encoding.context, self.quantized.numbers_of(info)
        if known := before.stored_for(target):
            return replace(encoding, numbers=known)
        found = self.keep(info, context.name)
        specs = {role: self._checkpoint.tensors[key] for role, key in stored.keys.items()}
        single = [role for role, spec in specs.items() if spec.numel == 1 and spec.dtype == "F32"]
        if not found and single:
            given = {role: read_whole(self._checkpoint, stored.keys[role]) for role in single}
            rows = made.rows or made.shape[0]
            cut = {made.primary, *(role for role, ref in refs.items() if ref.by_rows)} if made.rows else ()
            few = {role: spec.rows(rows) if role in cut else spec for role, spec in specs.items()}
            context = replace(context, spec=TensorSpec("F32", (rows, *made.shape[1:])))
            lost = _lost(made, few, given, target, context)
            self.numbers |= {context.name: lost} if lost is not None else {}
        return encoding

    def keep(self, info: WeightInfo, name: str) -> bool:
        """Whether the source's header tells of its numbers; then the output's does, too. name: in the output."""
        before = self.quantized.numbers_of(info)
        self.numbers |= {name: before} if before.target else {}
        return bool(before.target)

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


def _lost(
    made: Transcoder, specs: Mapping[str, TensorSpec], given: Parts, target: Target, context: WeightContext
) -> Numbers | None:
    """What a target does not give back of the numbers of a weight; None if it gives back all of them.

    specs: of the stored parts by role, for the rows that are tried. given: the numbers among them, as they are stored.
    """
    assert made.source is not None
    zeros = {role: torch.zeros(spec.in_memory.shape, dtype=dtype_of(spec)) for role, spec in specs.items()}
    primary = zeros.pop(made.primary)
    canonical = made.quantize(primary, **{**zeros, **given})
    numbers = {role: float(part) for role, part in canonical.items() if part.numel() == 1 and part.is_floating_point()}
    try:
        back = target.decode(context, target.encode(context, canonical))
        again = made.source.encode(context, back)
        held = all(same(back[role], canonical[role]) for role in numbers)
        if held and all(_alike(again[role], one) for role, one in given.items()):
            return None
    except (KeyError, Refused):  # the source has parts of another make than its target writes here
        pass
    return Numbers(numbers, made.source.name, {role: float(one) for role, one in given.items()})


def _alike(one: Tensor, other: Tensor) -> bool:
    return same(one.reshape(()), other.reshape(()))
