"""A quantized checkpoint as the values that it stands for: decoded as it is read, slab by slab."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ..api.contexts import SourceTensors
from ..api.quantizers import Quantizer
from ..api.targets import Target
from ..api.tensors import raw, same
from ..api.values import Stored, TensorSpec
from ..checkpoint.checkpoint import Checkpoint
from ..errors import CheckpointError, ConverterError, PluginError, Refused, shown
from ..plugins.attribution import describe
from ..plugins.registry import Registry
from .decode import Read, Slicer, Slices, canonical, dequantized, read_slab
from .dry_run import LARGEST_ZEROS
from .exact_numbers import NO_NUMBERS, Numbers
from .transcode import Quantized, reader_of, unpacked

if TYPE_CHECKING:
    from torch import Tensor

PIECE = 1 << 17
"""Elements that are dequantized at a time: 0.5 MiB of float32, and a few temporaries of that size."""

DECODING_BYTES = 20
"""What one of them takes: its float32 value, and temporaries such as codes of 4 bytes and an index of them."""

DEQUANTIZED = "dequantized_from"
"""The entry of a header's metadata that says what the weights were before."""


@dataclass(frozen=True)
class _Decoding:
    """One weight. specs: of its parts, by role. fine: each row of it can be dequantized by itself."""

    stored: Stored
    quantizer: Quantizer
    specs: Mapping[str, TensorSpec]
    slices: Slices
    numbers: Numbers = NO_NUMBERS
    fine: bool = False

    @property
    def cut(self) -> bool:
        return any(self.slices.heights.values())


def _grows(part: Tensor, rows: int) -> bool:
    return part.dim() > 1 and part.shape[0] == rows


class Dequantized(Checkpoint):
    """The same open files; quantized weights are float32 under their names, and their parts are not there.

    Nothing is rounded beyond the float32 of ``Quantizer.dequantize``. Raises CheckpointError for formats that no
    installed quantizer decodes.
    """

    def __init__(self, base: Checkpoint, quantized: Quantized, registry: Registry) -> None:
        vars(self).update(vars(base))
        self._base = base
        self._target: Target = quantized.dress
        self._slicer = Slicer(self._target)
        self._weights = self._decodings(quantized, registry)
        specs = unpacked(SourceTensors(base.tensors), quantized)
        self.tensors = {
            key: TensorSpec("F32", spec.shape) if key in self._weights else spec for key, spec in specs.items()
        }
        self.decoded = self._weights.keys()
        self.decoded_from = str(quantized)

    def _decodings(self, quantized: Quantized, registry: Registry) -> dict[str, _Decoding]:
        found: dict[str, _Decoding] = {}
        known: dict[object, _Decoding] = {}
        refused: dict[str, list[str]] = {}
        for name, stored in quantized.weights.items():
            specs = {role: self._base.tensors[key] for role, key in stored.keys.items()}
            shape = stored.shape or specs[next(iter(specs))].shape
            case = (stored.format, shape, tuple(specs.items()))
            try:
                if case not in known:
                    known[case] = self._how(stored, TensorSpec("F32", shape), specs, registry)
            except ConverterError as error:
                refused.setdefault("; ".join(error.problems), []).append(name)
            else:
                numbers = quantized.numbers.get(name, NO_NUMBERS)
                found[name] = replace(known[case], stored=stored, specs=specs, numbers=numbers)
        if refused:
            raise CheckpointError(
                *(
                    f"{shown(self.location)}: {len(names)} weights cannot be dequantized, e.g. {shown(names[0])}: "
                    f"{reason}; give the original checkpoint"
                    for reason, names in refused.items()
                )
            )
        return found

    def _how(self, stored: Stored, spec: TensorSpec, specs: Mapping[str, TensorSpec], registry: Registry) -> _Decoding:
        quantizer = reader_of(registry, stored.format)
        if quantizer is None:
            raise Refused(f"no installed quantizer reads {stored.format}")
        rows = max(spec.shape[0], 1)
        try:
            slices = self._slicer.slices(quantizer, spec, specs)
        except (Refused, PluginError):  # stored in another way than this quantizer would: nobody says how to cut it
            slices = Slices(spec.shape, rows, rows, dict.fromkeys(specs, 0))
        how = _Decoding(stored, quantizer, specs, slices)
        return replace(how, fine=self._try(how))

    def _try(self, how: _Decoding) -> bool:
        """Whether rows can be dequantized by themselves, as noise shows it; Refused if it cannot be decoded at all, so
        that it is known before anything is written.
        """
        height = min(how.slices.tile, how.slices.shape[0])
        if height * (how.slices.shape[-1] if how.slices.shape[1:] else 1) > LARGEST_ZEROS:
            return False
        noise = torch.Generator().manual_seed(0)

        def read(key: str, at: int, into: memoryview) -> None:
            drawn = torch.randint(0, 120, (len(into),), dtype=torch.uint8, generator=noise)
            into[:] = raw(drawn)

        try:
            (whole,), several = self._values(how, 0, height, read), []
            noise.manual_seed(0)
            several = list(self._values(replace(how, fine=True), 0, height, read, most=1))
            return len(several) == height and same(torch.cat(several), whole)
        except ConverterError:
            raise
        except Exception as error:
            raise Refused(describe(error)) from error

    def _values(self, how: _Decoding, low: int, high: int, read: Read, most: int = 0) -> Iterator[Tensor]:
        """Rows of a weight, float32, in their order; of a fine one so few at a time that little memory is needed.

        most: rows at a time; 0: as many as are worth the work.
        """
        stored = read_slab(read, how.stored, how.specs, how.slices, low, high)
        rows, shape = high - low, how.slices.shape[1:]
        spec = TensorSpec("F32", (rows, *shape))
        parts = canonical(self._target, how.quantizer, stored, spec, as_loaded=False, numbers=how.numbers)
        step = (most or max(1, PIECE // max(math.prod(shape), 1))) if how.fine else rows
        for start in range(0, rows, max(step, 1)):
            stop = min(start + step, rows)
            some = {role: part[start:stop] if _grows(part, rows) else part for role, part in parts.items()}
            values = dequantized(self._target, how.quantizer, some if step < rows else parts)
            if values.shape != (stop - start, *shape) or values.dtype != torch.float32:
                raise Refused(
                    f"{how.quantizer.name} decodes {list(values.shape)} where the weight has {list(spec.shape)}"
                )
            yield values.contiguous()

    def file_of(self, key: str) -> str:
        return self._base.file_of(self._codes(key))

    def row_block(self, key: str) -> int | None:
        how = self._weights.get(key)
        return 1 if how is None else how.slices.tile if how.cut else None

    def stored_nbytes(self, key: str) -> int:
        how = self._weights.get(key)
        return super().stored_nbytes(key) if how is None else sum(spec.nbytes for spec in how.specs.values())

    def read(self, key: str, start: int, into: memoryview) -> None:
        how = self._weights.get(key)
        if how is None:
            self._base.read(key, start, into)
            return
        rows, tile, step = how.slices.rows, how.slices.tile, how.slices.step
        row = self.tensors[key].nbytes // max(rows, 1)
        stop = start + len(into)
        first, last = (start // row, -(-stop // row)) if row else (0, 0)
        for low in range(first // tile * tile, last, step):
            high = min(low + step, -(-last // tile) * tile, rows)
            at = low * row
            for values in self._values(how, low, high, self._base.read):
                data = raw(values)
                begin, end = max(start, at), min(stop, at + len(data))
                if begin < end:
                    into[begin - start : end - start] = data[begin - at : end - at]
                at += len(data)

    def decoding_nbytes(self, key: str) -> int:
        how = self._weights.get(key)
        if how is None:
            return 0
        slices, stored = how.slices, self.stored_nbytes(key)
        columns = max(math.prod(slices.shape[1:]), 1)
        high = min(slices.step, slices.rows)
        rows = min(high, max(1, PIECE // columns)) if how.fine else high
        # the parts as they are stored and as they are canonical, and what is made of some rows of them
        return 2 * stored * high // max(slices.rows, 1) + rows * columns * DECODING_BYTES

    def will_need(self, key: str, start: int, nbytes: int) -> None:
        codes = self._codes(key)
        size, decoded = self._base.tensors[codes].nbytes, max(self.tensors[key].nbytes, 1)
        self._base.will_need(codes, start * size // decoded, -(-nbytes * size // decoded))

    def _codes(self, key: str) -> str:
        return self._weights[key].stored.primary if key in self._weights else key
