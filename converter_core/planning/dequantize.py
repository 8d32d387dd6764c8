"""A quantized checkpoint as the values that it stands for: decoded as it is read, slab by slab."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..api.contexts import SourceTensors
from ..api.quantizers import Quantizer
from ..api.targets import Target
from ..api.tensors import raw
from ..api.values import Stored, TensorSpec
from ..checkpoint.checkpoint import Checkpoint
from ..errors import CheckpointError, ConverterError, PluginError, Refused, shown
from ..plugins.attribution import describe
from ..plugins.registry import Registry
from .decode import Read, Slicer, Slices, decode, read_slab
from .dry_run import LARGEST_ZEROS
from .exact_numbers import NO_NUMBERS, Numbers
from .transcode import Quantized, reader_of, unpacked

if TYPE_CHECKING:
    from torch import Tensor

DEQUANTIZED = "dequantized_from"
"""The entry of a header's metadata that says what the weights were before."""


@dataclass(frozen=True)
class _Decoding:
    """One weight. specs: of its parts, by role."""

    stored: Stored
    quantizer: Quantizer
    specs: Mapping[str, TensorSpec]
    slices: Slices
    numbers: Numbers = NO_NUMBERS

    @property
    def cut(self) -> bool:
        return any(self.slices.heights.values())


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
        known: dict[object, tuple[Quantizer, Slices]] = {}
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
                quantizer, slices = known[case]
                found[name] = _Decoding(stored, quantizer, specs, slices, quantized.numbers.get(name, NO_NUMBERS))
        if refused:
            raise CheckpointError(
                *(
                    f"{shown(self.location)}: {len(names)} weights cannot be dequantized, e.g. {shown(names[0])}: "
                    f"{reason}; give the original checkpoint"
                    for reason, names in refused.items()
                )
            )
        return found

    def _how(
        self, stored: Stored, spec: TensorSpec, specs: Mapping[str, TensorSpec], registry: Registry
    ) -> tuple[Quantizer, Slices]:
        quantizer = reader_of(registry, stored.format)
        if quantizer is None:
            raise Refused(f"no installed quantizer reads {stored.format}")
        rows = max(spec.shape[0], 1)
        try:
            slices = self._slicer.slices(quantizer, spec, specs)
        except (Refused, PluginError):  # stored in another way than this quantizer would: nobody says how to cut it
            slices = Slices(spec.shape, rows, rows, dict.fromkeys(specs, 0))
        self._try(_Decoding(stored, quantizer, specs, slices))
        return quantizer, slices

    def _try(self, how: _Decoding) -> None:
        """Refused if zeros cannot be decoded, so that it is known before anything is written."""
        height = min(how.slices.tile, how.slices.shape[0])
        if height * (how.slices.shape[-1] if how.slices.shape[1:] else 1) > LARGEST_ZEROS:
            return
        try:
            self._values(how, 0, height, lambda key, at, into: into.__setitem__(slice(None), bytes(len(into))))
        except ConverterError:
            raise
        except Exception as error:
            raise Refused(describe(error)) from error

    def _values(self, how: _Decoding, low: int, high: int, read: Read) -> Tensor:
        """Rows of a weight, float32."""
        parts = read_slab(read, how.stored, how.specs, how.slices, low, high)
        spec = TensorSpec("F32", (high - low, *how.slices.shape[1:]))
        values = decode(self._target, how.quantizer, parts, spec, as_loaded=False, numbers=how.numbers).weight
        if values.shape != spec.shape or values.dtype != torch.float32:
            raise Refused(f"{how.quantizer.name} decodes {list(values.shape)} where the weight has {list(spec.shape)}")
        return values.contiguous()

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
            values = self._values(how, low, high, self._base.read)
            begin, end = max(start, low * row), min(stop, high * row)
            into[begin - start : end - start] = raw(values)[begin - low * row : end - low * row]

    def will_need(self, key: str, start: int, nbytes: int) -> None:
        codes = self._codes(key)
        size, decoded = self._base.tensors[codes].nbytes, max(self.tensors[key].nbytes, 1)
        self._base.will_need(codes, start * size // decoded, -(-nbytes * size // decoded))

    def _codes(self, key: str) -> str:
        return self._weights[key].stored.primary if key in self._weights else key
