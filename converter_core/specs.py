"""Values that describe tensors, weights and files without holding their data. Nothing here imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Parts = Mapping[str, "Tensor"]
"""Role -> tensor, e.g. ``{"weight": codes, "scale": scales}``. Roles are open strings."""

ITEMSIZE: Mapping[str, int] = MappingProxyType(
    {
        "BOOL": 1,
        "U8": 1,
        "I8": 1,
        "F8_E4M3": 1,
        "F8_E5M2": 1,
        "F8_E8M0": 1,
        "U16": 2,
        "I16": 2,
        "F16": 2,
        "BF16": 2,
        "U32": 4,
        "I32": 4,
        "F32": 4,
        "U64": 8,
        "I64": 8,
        "F64": 8,
        "C64": 8,
    }
)
"""Bytes per element of every dtype this project reads, by its name in a safetensors header."""

FLOATING = frozenset({"F16", "BF16", "F32", "F64"})
"""The dtypes that ``target.dtype`` casts and that are checked for NaN and infinity."""


@dataclass(frozen=True)
class TensorSpec:
    """Dtype (as a safetensors header names it: ``BF16``, ``F8_E8M0`` ...) and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * ITEMSIZE[self.dtype]

    def rows(self, count: int) -> TensorSpec:
        """The same with ``count`` rows (length of the first dimension)."""
        return TensorSpec(self.dtype, (count, *self.shape[1:]))

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Source:
    """A tensor of the checkpoint that goes into a weight.

    ``by_rows``: row r of it belongs to row r of the weight. False: every slab of the weight gets all of it.
    """

    key: str
    by_rows: bool = True


@dataclass(frozen=True)
class WeightInfo:
    """What a model adapter says of one weight. A bias or a norm is a weight too.

    name: in the adapter's own naming, e.g. ``blocks.0.self_attn.q.weight``.
    sources: role -> source; ``{"weight": Source(key)}`` in the ordinary case.
    kind: ``linear`` may be quantized, nothing else is; ``bias``, ``norm``, ``embedding``, ``modulation``, ``head``;
        ``extra`` for what the model's inventory does not know and that is copied.
    module: what ``target_modules`` selects by, e.g. ``self_attn``.
    block: number of the block as a string, empty outside the blocks.
    """

    name: str
    sources: Mapping[str, Source]
    kind: str = "other"
    module: str = ""
    block: str = ""


@dataclass(frozen=True)
class OutputTensor:
    """A tensor of the output.

    tile_nbytes: bytes that each full tile of rows adds; 0: the same from every slab and written once.
    """

    key: str
    role: str
    spec: TensorSpec
    tile_nbytes: int = 0


@dataclass(frozen=True)
class PlannedWeight:
    """All that targets, layouts and containers see of a weight.

    name: in the target's naming. spec: of the assembled weight before quantization.
    format: the storage its parts form, e.g. ``int8``; ``none`` where it is copied or cast.
    """

    info: WeightInfo
    name: str
    spec: TensorSpec
    format: str
    outputs: tuple[OutputTensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(output.spec.nbytes for output in self.outputs)


@dataclass(frozen=True)
class Stored:
    """A quantized weight as it stands in a checkpoint: the format of its parts, and role -> key."""

    format: str
    keys: Mapping[str, str]


@dataclass(frozen=True)
class Placed:
    """One file: its first bytes, where each tensor starts (from the beginning of the file), its length in bytes."""

    header: bytes
    offsets: Mapping[str, int]
    size: int


@dataclass(frozen=True)
class Extras:
    """What a target adds beside the weights: header metadata, side files by name, tensors by key."""

    metadata: Mapping[str, str] = field(default_factory=dict)
    side_files: Mapping[str, bytes] = field(default_factory=dict)
    tensors: Parts = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """A small made-up checkpoint of a model: the tensors, and its ``config.json``."""

    tensors: Mapping[str, TensorSpec]
    config: Mapping[str, Any] = field(default_factory=dict)
