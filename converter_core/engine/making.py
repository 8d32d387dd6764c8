"""One output of a weight, made slab by slab: observed, quantized, encoded, written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ..api.tensors import dtype_name, dtype_of, raw, same
from ..api.values import OutputTensor
from ..errors import ConversionError
from ..planning.encoding import BIAS
from ..planning.jobs import BoundTensor, Export
from ..planning.passthrough import Passthrough, as_taken
from ..planning.slab_size import Cut
from .finite import check_finite
from .merging import Merger
from .prepared import Prepared
from .reading import Reader
from .rows import Rows

if TYPE_CHECKING:
    from torch import Tensor

    from ..api.values import Parts

Write = Callable[[int, str, int, memoryview], None]
"""``write(output, key, at, data)``: in order for each key."""


class Making:
    """One export under way: what was observed, the parts of the slab so far, what is the same in every slab, counts.

    twin: another that makes the same parts; they are made once and encoded by each.
    """

    def __init__(
        self, export: Export, source: Rows, prepared: Prepared, cut: Cut, write: Write, twin: Making | None = None
    ) -> None:
        self.twin = twin
        self.export = export
        self.source = source
        self.cut = cut
        self.write = write
        self.observed: dict[str, Tensor] = {}
        self.parts: dict[str, Tensor] = {}
        self.once: dict[str, bytes] = {}
        self.counts: Counter[str] = Counter()
        stream, inputs = source.stream, export.inputs if twin is None else {}
        self._by_rows = {
            name: (given,) for name, given in inputs.items() if isinstance(given, BoundTensor) and given.ref.by_rows
        }
        whole = {
            name: (given,) for name, given in inputs.items() if isinstance(given, BoundTensor) and not given.ref.by_rows
        }
        self._held: dict[str, Tensor] = {
            name: stream.upload(given) for name, given in inputs.items() if not isinstance(given, BoundTensor)
        }
        self._bias_merger = Merger(export.bias_terms, source.stores, stream, source.rows)

        def read() -> Parts:
            held = Reader(source.stores, stream).read(whole, 0, 0, 0) if whole else {}
            for name, tensor in held.items():
                (bound,) = whole[name]
                check_finite(tensor, f"{bound.path}: {bound.ref.key!r}", 0, "make the file anew")
            # copied: the staging buffer is used again for the rows of the weight
            return {name: tensor.clone() for name, tensor in held.items()}

        self._held |= prepared.of(export, read)

    def gives(self, other: Export) -> bool:
        """Whether its parts are those of another export too: the same quantizer, given the same."""
        mine, its = self.export.inputs, other.inputs
        return (
            self.twin is None
            and self.export.quantizer == other.quantizer
            and mine.keys() == its.keys()
            and all(_equal(given, its[name]) for name, given in mine.items())
        )

    def observe(self, weight: Tensor) -> None:
        if not self.export.schema.two_pass or self.twin is not None:
            return
        for name, value in self.export.quantizer.observe(as_taken(self.export.quantizer, weight)).items():
            self.observed[name] = torch.maximum(self.observed[name], value) if name in self.observed else value

    def quantize(self, weight: Tensor, first: int, last: int, slab: tuple[int, int]) -> None:
        """Rows ``first`` to ``last`` of a slab."""
        if self.twin is not None:
            return
        given = {**self._held, **self.observed}
        if self._by_rows:
            source = self.source
            reader = Reader(source.stores, source.stream, own_buffer=True, sums=source.sums)
            given |= reader.read(self._by_rows, first, last, self.source.rows)
        if BIAS in given:
            merged = self._bias_merger.merged(given[BIAS], first, last)
            given[BIAS] = merged.to(given[BIAS].dtype)
        quantizer = self.export.quantizer
        parts = dict(quantizer.quantize(as_taken(quantizer, weight), **given))
        self.counts.update({name: int(parts.pop(name)) for name in quantizer.counted if name in parts})
        if BIAS in given:
            parts.setdefault(BIAS, given[BIAS])
        if (first, last) == slab:
            self.parts = parts
            return
        fine, start = quantizer.row_block or 1, slab[0]
        for role, part in parts.items():
            height = self._height(role)
            if not height:
                self.parts.setdefault(role, part.clone())
                continue
            at = (first - start) // fine * height
            if role not in self.parts:
                # the last block of rows may be a part of one: its part is as high as it is, never higher than a whole
                rows = -(-(slab[1] - start) // fine) * height
                self.parts[role] = part.new_empty((rows, *part.shape[1:]))
            # copied before the next read: a part may be a view of the staging buffer
            self.parts[role][at : at + part.shape[0]].copy_(part)
            if last == slab[1]:
                self.parts[role] = self.parts[role][: at + part.shape[0]]

    def _height(self, role: str) -> int:
        """Rows of a part for each row block of the quantizer; 0: the same for every slab."""
        if role == BIAS and BIAS in self.export.inputs:
            return self.export.quantizer.row_block or 1
        return self.export.schema.heights.get(role, 0)

    def store(self, start: int, stop: int) -> None:
        """Encode what was made of a slab, and write it."""
        export, name = self.export, self.source.job.info.name
        parts = self.parts if self.twin is None else self.twin.parts
        encoded = export.encoding.stored(parts, parts.get(BIAS))
        if unplanned := encoded.keys() - {tensor.role for tensor in export.tensors}:
            raise ConversionError(
                f"{name}: {export.quantizer.name} returned {', '.join(sorted(unplanned))}, which the dry run on zeros "
                "did not; quantize must not branch on values"
            )
        stored = self.source.stream.download({role: tensor.contiguous() for role, tensor in encoded.items()})
        for output in export.tensors:
            self._write(output, stored, start, stop)

    def _write(self, output: OutputTensor, stored: Parts, start: int, stop: int) -> None:
        export = self.export
        if output.role not in stored:
            raise ConversionError(
                f"{output.key}: {export.quantizer.name} returned no {output.role}, which the dry run on zeros did"
            )
        tensor = stored[output.role]
        block = export.schema.row_block or 1
        at = start // block * output.row_block_nbytes
        expected = output.spec.nbytes
        if output.row_block_nbytes:
            # another output may want the weight whole, which need not be whole row blocks of this one
            expected = min(-(-self.cut.slab // block) * output.row_block_nbytes, expected - at)
        data = raw(tensor)
        if tensor.dtype != dtype_of(output.spec) or len(data) != expected:
            raise ConversionError(
                f"{output.key}: expected {expected} bytes of {output.spec}, got {dtype_name(tensor.dtype)} "
                f"{list(tensor.shape)} for rows {start}-{stop - 1}; {export.quantizer.name} or "
                f"{export.encoding.target.name} does not do with data what it does with zeros"
            )
        if not isinstance(export.quantizer, Passthrough):
            check_finite(tensor, output.key, start, f"{export.quantizer.name} made it; report that to its author")
        elif export.quantizer.dtype is not None:
            check_finite(
                tensor, output.key, start, f"it does not fit into {output.spec.dtype}; choose a wider target.dtype"
            )
        if output.row_block_nbytes or start == 0:
            self.write(export.output, output.key, at, data)
        if not output.row_block_nbytes and self.cut.slab < self.source.rows:
            if start == 0:
                self.once[output.key] = bytes(data)
            elif self.once[output.key] != data:
                names = f"{export.quantizer.name} or {export.encoding.target.name}"
                raise ConversionError(f"{output.key}: differs between slabs; row_block of {names} is wrong")


def _equal(one: BoundTensor | Tensor, other: BoundTensor | Tensor) -> bool:
    if isinstance(one, BoundTensor) or isinstance(other, BoundTensor):
        return one is other or (type(one) is type(other) and one == other)
    return same(one, other)
