"""A quantized weight as the runtime sees it, in a bounded amount of memory.

Stored parts are cut where ``encode`` joined them, so that what is decoded is always a slab: a weight with fewer rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .errors import Refused
from .interfaces import ModelAdapter, Quantizer, Target
from .specs import Stored, TensorSpec, WeightInfo
from .tensors import raw, torch_dtype, typed
from .trial import Piece, Trials

if TYPE_CHECKING:
    from torch import Tensor

    from .specs import Parts

SLAB_ELEMENTS = 640 << 10
"""Elements of a weight that are decoded at a time: their float32 values, and a few of them, stay in the cache."""

Read = Callable[[str, int, memoryview], None]
"""``read(key, start, into)``: fill ``into`` with a tensor's bytes from ``start`` on."""


class AsIs(ModelAdapter):
    """Knows no model: for trials of weights that stand for themselves."""

    name = "as_is"

    def knows(self, key: str) -> bool:
        return False

    def recognise(self, tensors: Mapping[str, TensorSpec]) -> str | None:
        return None

    def weights(self, tensors: Mapping[str, TensorSpec]) -> Iterable[WeightInfo]:
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
    """Finds the slices of weights by trial; a model has a handful of different shapes, and those are remembered."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._trials = Trials(AsIs(), target)

    def slices(self, quantizer: Quantizer, spec: TensorSpec | None, parts: Mapping[str, TensorSpec]) -> Slices:
        """spec: of the weight before quantization. None: as the quantizer decodes it, or in one piece.

        Refused if these are no parts of such a weight.
        """
        if spec is not None:
            return self._by_trial(quantizer, spec, parts)
        try:
            decoded = decode(self.target, quantizer, {role: _stand_in(part) for role, part in parts.items()})
            return self._by_trial(quantizer, TensorSpec("BF16", tuple(decoded.weight.shape)), parts)
        except Exception:  # a stranger's code may fail without data, and options unknown here may make other parts
            shape = parts["weight"].shape
            rows = max(shape[0], 1) if shape else 1
            return Slices(shape, rows, rows, dict.fromkeys(parts, 0))

    def _by_trial(self, quantizer: Quantizer, spec: TensorSpec, parts: Mapping[str, TensorSpec]) -> Slices:
        outcome = self._trials.run(quantizer, {"weight": Piece(spec, True)}, {})
        heights = {}
        for role, part in parts.items():
            made, tile_nbytes = outcome.outputs.get(role, (part, 0))
            if made.shape != part.shape:
                raise Refused(f"{role} is {part}; of {spec} {quantizer.name} makes {made}")
            heights[role] = tile_nbytes * made.shape[0] // made.nbytes if tile_nbytes and made.nbytes else 0
        rows = spec.shape[0] if spec.shape else 1
        if outcome.tile is None or not any(heights.values()):
            return Slices(spec.shape, max(rows, 1), max(rows, 1), dict.fromkeys(parts, 0))
        return Slices(spec.shape, outcome.tile, rows_at_a_time(spec, outcome.tile), heights)


def rows_at_a_time(spec: TensorSpec, tile: int) -> int:
    columns = spec.numel // max(spec.shape[0], 1)
    return max(1, SLAB_ELEMENTS // max(columns, 1) // tile) * tile


def _stand_in(spec: TensorSpec) -> Tensor:
    return torch.empty(spec.shape, dtype=torch_dtype(spec.dtype), device="meta")


@dataclass(frozen=True)
class Decoded:
    """weight: float32, as the runtime computes with it. parts: canonical, as its loader makes them."""

    weight: Tensor
    parts: Parts


def decode(target: Target, quantizer: Quantizer, stored: Parts) -> Decoded:
    parts = target.decode(quantizer.format, target.as_loaded(stored))
    return Decoded(quantizer.dequantize(parts), parts)


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
