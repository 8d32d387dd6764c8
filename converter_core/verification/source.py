"""The source of an output: its weights in slabs of rows, and what was copied from it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch

from ..api.contexts import SourceTensors, WeightContext
from ..api.models import ModelAdapter
from ..api.targets import Target
from ..api.tensors import dtype_of, raw
from ..api.values import Stored, TensorSpec, WeightInfo
from ..engine.merging import Merger
from ..engine.reading import Reader
from ..planning.decode import Read
from ..planning.encoding import Encoding
from ..planning.exact_numbers import NO_NUMBERS, Numbers
from ..planning.jobs import bind, joined_spec
from ..planning.loras import NO_LORAS, Loras
from ..planning.output_schema import common_row_block
from ..planning.passthrough import Passthrough
from ..planning.shape_inference import ShapeInference
from ..planning.stores import Stores
from ..planning.transcode import Quantized

if TYPE_CHECKING:
    from torch import Tensor

    from ..api.values import Parts


COPY_BYTES = 4 << 20


class Source:
    """The weights of the checkpoint that an output was made of. tensors: as its model adapter sees them."""

    def __init__(
        self,
        stores: Stores,
        adapter: ModelAdapter,
        target: Target,
        tensors: SourceTensors,
        quantized: Quantized | None,
        loras: Loras = NO_LORAS,
        dressed: Target | None = None,
    ) -> None:
        """quantized: its weights that are quantized already, which are compared as they are. dressed: their target.

        loras: what was merged into it.
        """
        self.stores = stores
        self.checkpoint = stores.base
        self.adapter = adapter
        self.target = target
        self.tensors = tensors
        self.quantized = quantized
        self.loras = loras
        self.dressed = dressed
        self._inference = ShapeInference(adapter)
        self._mergers = threading.local()

    def spec(self, info: WeightInfo) -> TensorSpec:
        """Of the assembled weight."""
        specs = {role: joined_spec(bind(self.stores, source, self.adapter)) for role, source in info.sources.items()}
        encoding = Encoding(self.target, WeightContext(info, info.name))
        merged = any(term.target is None for term in self.loras.terms.get(info.name, ()))
        return self._inference.run(Passthrough(), encoding, specs, merged=merged).spec

    def nbytes(self, info: WeightInfo) -> int:
        stored = self.stored(info)
        if stored is not None:
            return sum(self.checkpoint.tensors[key].nbytes for key in stored.keys.values())
        bound = (one for source in info.sources.values() for one in bind(self.stores, source, self.adapter))
        return sum(one.stored_nbytes for one in bound)

    def stored(self, info: WeightInfo) -> Stored | None:
        """Of a weight that is quantized already."""
        return self.quantized.of(info) if self.quantized is not None else None

    def numbers(self, info: WeightInfo) -> Numbers:
        """What it tells of the single numbers of a weight that is quantized already."""
        return self.quantized.numbers_of(info) if self.quantized is not None else NO_NUMBERS

    def rows(self, info: WeightInfo, start: int, stop: int, of: int) -> Tensor:
        """Rows of the assembled weight, which has ``of``; of one without rows, all of it."""
        bound = {role: bind(self.stores, source, self.adapter) for role, source in info.sources.items()}
        reader = Reader(self.stores, _Host(), own_buffer=True)
        weight = self.adapter.assemble(WeightContext(info, info.name), reader.read(bound, start, stop, of))
        return self._merger(info.name, of).merged(weight, start, stop)

    def _merger(self, name: str, rows: int) -> Merger:
        """One for each thread, which takes weight after weight."""
        last: tuple[str, Merger] | None = getattr(self._mergers, "last", None)
        if last is None or last[0] != name:
            last = (name, Merger(self.loras.terms.get(name, ()), self.stores, _Host(), rows))
            self._mergers.last = last
        return last[1]


class _Host:
    """Tensors stay where they are."""

    def buffer(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def upload(self, host: Tensor) -> Tensor:
        return host

    def download(self, parts: Parts) -> Parts:
        return parts


def copied_equals(read: Read, key: str, spec: TensorSpec, source: Source, info: WeightInfo, target: Target) -> bool:
    """Whether a stored tensor is what its source gives when it is copied or, as its dtype tells, cast."""
    before = source.spec(info)
    if before.shape != spec.shape:
        return False
    passthrough = Passthrough(spec.dtype if spec.dtype != before.dtype else None)
    context = WeightContext(info, info.name, before)
    rows = spec.shape[0] if spec.shape else 1
    block = common_row_block(passthrough.row_block, target.row_block)
    step = max(1, COPY_BYTES * rows // max(spec.nbytes, 1) // block) * block if block else rows
    at = 0
    for start in range(0, rows, max(step, 1)):
        weight = source.rows(info, start, min(start + step, rows), rows)
        (stored,) = target.encode(context, passthrough.quantize(weight)).values()
        expected = stored.contiguous().reshape(-1).view(torch.uint8)
        if stored.dtype != dtype_of(spec) or at + expected.numel() > spec.nbytes:
            return False
        buffer = torch.empty_like(expected)
        read(key, at, raw(buffer))
        if not torch.equal(buffer, expected):
            return False
        at += expected.numel()
    return at == spec.nbytes
