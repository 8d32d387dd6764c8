"""A quantized weight as the runtime sees it, in a bounded amount of memory.

Stored parts are cut where ``encode`` joined them, so that what is decoded is always a slab: a weight with fewer rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..api.contexts import SourceTensors, WeightContext
from ..api.models import ModelAdapter
from ..api.quantizers import Quantizer
from ..api.targets import Target
from ..api.tensors import dtype_of, raw, typed
from ..api.values import Stored, TensorSpec, WeightInfo
from ..errors import PluginError, Refused
from .encoding import Encoding
from .exact_numbers import NO_NUMBERS, Numbers, exactly
from .output_schema import SourceSpec, common_row_block
from .shape_inference import ShapeInference

if TYPE_CHECKING:
    from torch import Tensor

    from ..api.values import Parts

SLAB_ELEMENTS = 640 << 10
"""Elements of a weight that are decoded at a time: their float32 values, and a few of them, stay in the cache."""

Read = Callable[[str, int, memoryview], None]
"""``read(key, start, into)``: fill ``into`` with a tensor's bytes from ``start`` on."""


class AsIs(ModelAdapter):
    """Knows no model: for dry runs of weights that stand for themselves."""

    name = "as_is"

    def owns_key(self, key: str) -> bool:
        return False

    def recognise(self, tensors: SourceTensors) -> str | None:
        return None

    def weights(self, tensors: SourceTensors) -> Iterable[WeightInfo]:
        return ()


@dataclass(frozen=True)
class Slices:
    """How the parts of a weight are cut. shape: of the weight. step: its rows at a time.

    heights: role -> rows of the part that belong to each ``tile`` rows of the weight; 0: all of it, every time.
    """

    shape: tuple[int, ...]
    tile: int
    step: int
    heights: Mapping[str, int]

    @property
    def rows(self) -> int:
        return self.shape[0] if self.shape else 1

    def runs(self) -> Iterator[tuple[int, int]]:
        for start in range(0, max(self.rows, 1), max(self.step, 1)):
            yield start, min(start + self.step, self.rows)


class Slicer:
    """Finds the slices of weights by dry runs; a model has a handful of different shapes, and those are remembered."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._inference = ShapeInference(AsIs())

    def slices(self, quantizer: Quantizer, spec: TensorSpec | None, parts: Mapping[str, TensorSpec]) -> Slices:
        """spec: of the weight before quantization. None: as the quantizer decodes it, or in one piece.

        Refused if these are no parts of such a weight.
        """
        if spec is not None:
            try:
                return self._by_dry_run(quantizer, spec, parts)
            except PluginError:
                if type(quantizer).inputs is Quantizer.inputs:
                    raise
                return self._by_rows(quantizer, spec, parts)  # quantizing needs inputs, reading back does not
        try:
            decoded = decode(self.target, quantizer, {role: _stand_in(part) for role, part in parts.items()})
            return self._by_dry_run(quantizer, TensorSpec("BF16", tuple(decoded.weight.shape)), parts)
        except Exception:  # a stranger's code may fail without data, and options unknown here may make other parts
            shape = next(iter(parts.values())).shape
            rows = max(shape[0], 1) if shape else 1
            return Slices(shape, rows, rows, dict.fromkeys(parts, 0))

    def _by_rows(self, quantizer: Quantizer, spec: TensorSpec, parts: Mapping[str, TensorSpec]) -> Slices:
        """Parts with as many rows as the weight are cut with it, the others are small enough to be read each time."""
        rows = max(spec.shape[0], 1) if spec.shape else 1
        block = common_row_block(quantizer.row_block, self.target.row_block)
        by_rows = {role: bool(part.shape) and part.shape[0] == rows for role, part in parts.items()}
        if block is None or not any(by_rows.values()):
            return Slices(spec.shape, rows, rows, dict.fromkeys(parts, 0))
        heights = {role: block if cut else 0 for role, cut in by_rows.items()}
        return Slices(spec.shape, block, rows_at_a_time(spec, block), heights)

    def _by_dry_run(self, quantizer: Quantizer, spec: TensorSpec, parts: Mapping[str, TensorSpec]) -> Slices:
        context = WeightContext(WeightInfo("weight", {}), "weight", spec, quantizer.format)
        encoding = Encoding(self.target, context)
        schema = self._inference.run(quantizer, encoding, {"weight": SourceSpec(spec, True)})
        heights = {}
        for role, part in parts.items():
            made, row_block_nbytes = schema.outputs.get(role, (part, 0))
            if made.shape != part.shape:
                raise Refused(f"{role} is {part}; of {spec} {quantizer.name} makes {made}")
            heights[role] = row_block_nbytes * made.shape[0] // made.nbytes if row_block_nbytes and made.nbytes else 0
        rows = spec.shape[0] if spec.shape else 1
        if schema.row_block is None or not any(heights.values()):
            return Slices(spec.shape, max(rows, 1), max(rows, 1), dict.fromkeys(parts, 0))
        return Slices(spec.shape, schema.row_block, rows_at_a_time(spec, schema.row_block), heights)


def rows_at_a_time(spec: TensorSpec, tile: int) -> int:
    rows = spec.shape[0] if spec.shape else 1
    columns = spec.numel // max(rows, 1)
    if not columns:  # rows without elements cost nothing, however many they are
        return max(1, -(-rows // tile)) * tile
    return max(1, SLAB_ELEMENTS // max(columns, 1) // tile) * tile


def _stand_in(spec: TensorSpec) -> Tensor:
    return torch.empty(spec.in_memory.shape, dtype=dtype_of(spec), device="meta")


@dataclass(frozen=True)
class Decoded:
    """weight: float32, as the runtime computes with it. parts: canonical, as its loader makes them."""

    weight: Tensor
    parts: Parts


def decode(
    target: Target,
    quantizer: Quantizer,
    stored: Parts,
    spec: TensorSpec | None = None,
    as_loaded: bool = True,
    numbers: Numbers = NO_NUMBERS,
) -> Decoded:
    """spec: of these rows before quantization, where it is known. as_loaded: with what the runtime's loader does.

    numbers: those that the stored parts tell only nearly.
    """
    parts = canonical(target, quantizer, stored, spec, as_loaded, numbers)
    return Decoded(dequantized(target, quantizer, parts), parts)


def canonical(
    target: Target, quantizer: Quantizer, stored: Parts, spec: TensorSpec | None, as_loaded: bool, numbers: Numbers
) -> Parts:
    context = WeightContext(WeightInfo("weight", {}), "weight", spec, quantizer.format)
    parts = target.decode(context, target.simulate_load(context, stored) if as_loaded else stored)
    return exactly(parts, numbers.canonical)


def dequantized(target: Target, quantizer: Quantizer, parts: Parts) -> Tensor:
    """Float32; Refused where the target's parts are not those that the quantizer needs."""
    try:
        return quantizer.dequantize(parts)
    except KeyError as error:  # what a quantizer says of a part that is not there
        roles = ", ".join(parts) or "nothing"
        raise Refused(
            f"target {target.name} decodes {quantizer.format} to {roles}; quantizer {quantizer.name} needs {error}"
        ) from error


def read_slab(
    read: Read, stored: Stored, specs: Mapping[str, TensorSpec], slices: Slices, start: int, stop: int
) -> Parts:
    """The stored parts of rows ``start`` to ``stop``."""
    parts = {}
    for role, key in stored.keys.items():
        spec, at = specs[role], 0
        height = slices.heights[role]
        if height:
            first = start // slices.tile * height
            last = min(-(-stop // slices.tile) * height, spec.shape[0])
            at, spec = first * (spec.nbytes // spec.shape[0]), spec.rows(last - first)
        parts[role] = filled(read, key, spec, at)
    return parts


def filled(read: Read, key: str, spec: TensorSpec, at: int) -> Tensor:
    buffer = torch.empty(spec.nbytes, dtype=torch.uint8)
    read(key, at, raw(buffer))
    return typed(buffer, spec)
