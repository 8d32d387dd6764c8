"""Values that describe tensors, weights and files without holding their data. Nothing here imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .formats import QuantFormat

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
"""Bytes per element of every plain dtype, by the name that headers give it (``BF16``, ``F8_E8M0`` ...)."""

FLOAT8 = frozenset({"F8_E4M3", "F8_E5M2"})
"""Floats of 8 bits. Without scales beside them they are ordinary values, each of which bf16 holds exactly."""

FLOATING = FLOAT8 | {"F16", "BF16", "F32", "F64"}
"""The dtypes that ``target.dtype`` casts and that are checked for NaN and infinity."""


@dataclass(frozen=True)
class TensorSpec:
    """Dtype (``BF16``, ``F8_E8M0`` ...; the names of ``ITEMSIZE``, or of a packed dtype) and shape.

    block: of a packed dtype such as ``Q4_K``: elements and bytes of one block; blocks lie along the last dimension.
    """

    dtype: str
    shape: tuple[int, ...]
    block: tuple[int, int] | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """ValueError for a dtype of unknown size, and for a last dimension that is not whole blocks."""
        if self.block is None:
            if self.dtype not in ITEMSIZE:
                raise ValueError(f"{self.dtype} is no plain dtype; a packed one needs TensorSpec(..., block=)")
            return self.numel * ITEMSIZE[self.dtype]
        elements, nbytes = self.block
        if not self.shape or self.shape[-1] % elements:
            raise ValueError(f"{self} is not made of whole blocks of {elements} elements")
        return self.numel // elements * nbytes

    @property
    def in_memory(self) -> TensorSpec:
        """As tensors of it are handled: a packed dtype as the bytes of its blocks, ``U8``; any other as it is."""
        if self.block is None:
            return self
        elements, nbytes = self.block
        return TensorSpec("U8", (*self.shape[:-1], self.shape[-1] // elements * nbytes))

    def from_memory(self, shape: tuple[int, ...]) -> TensorSpec:
        """The same dtype for a tensor that has ``shape`` as it is handled."""
        if self.block is not None and shape:
            elements, nbytes = self.block
            shape = (*shape[:-1], shape[-1] // nbytes * elements)
        return replace(self, shape=shape)

    def rows(self, count: int) -> TensorSpec:
        """The same with ``count`` rows (length of the first dimension)."""
        return replace(self, shape=(count, *self.shape[1:]))

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"


BASE = "base"
"""The store of the checkpoint itself."""


@dataclass(frozen=True)
class TensorRef:
    """A tensor in a named store.

    store: ``base`` is the checkpoint; the others are the files that a plugin's ``stores`` names.
    rows: a half-open run of the tensor's rows, for a part of a fused tensor; None: all of them.
    by_rows: row r of it (of that run) belongs to row r of the weight. False: every slab of the weight gets all of it.
    """

    key: str
    store: str = BASE
    rows: tuple[int, int] | None = None
    by_rows: bool = True

    def spec(self, stored: TensorSpec) -> TensorSpec:
        """Of the rows it means, given the spec of the stored tensor."""
        return stored if self.rows is None else stored.rows(self.rows[1] - self.rows[0])


@dataclass(frozen=True)
class WeightInfo:
    """What a model adapter says of one weight. A bias or a norm is a weight too.

    name: in the adapter's own key format, e.g. ``blocks.0.self_attn.q.weight``.
    sources: role -> where it is read from; ``{"weight": TensorRef(key)}`` in the ordinary case. Several tensors are
        joined along the rows, in their order: ``{"weight": (TensorRef(q), TensorRef(k), TensorRef(v))}``.
    kind: ``linear`` may be quantized, nothing else is; ``bias``, ``norm``, ``embedding``, ``modulation``, ``head``;
        ``extra`` for what the model's inventory does not know and that is copied.
    module: what ``target_modules`` selects by, e.g. ``self_attn``.
    block: number of the transformer block as a string, empty outside the blocks.
    bias: name of the same layer's bias; None: the name with ``.bias`` in the place of ``.weight``, if there is one.
    """

    name: str
    sources: Mapping[str, TensorRef | tuple[TensorRef, ...]]
    kind: str = "other"
    module: str = ""
    block: str = ""
    bias: str | None = None

    @property
    def refs(self) -> tuple[TensorRef, ...]:
        """All that it is made of."""
        return tuple(ref for source in self.sources.values() for ref in refs_of(source))


def refs_of(source: TensorRef | tuple[TensorRef, ...]) -> tuple[TensorRef, ...]:
    return (source,) if isinstance(source, TensorRef) else tuple(source)


@dataclass(frozen=True)
class OutputTensor:
    """A tensor of the output.

    row_block_nbytes: bytes that each full block of rows adds; 0: the same from every slab and written once.
    """

    key: str
    role: str
    spec: TensorSpec
    row_block_nbytes: int = 0


@dataclass(frozen=True)
class PlannedWeight:
    """All that targets, layouts and containers see of a weight.

    name: in the target's naming. spec: of the assembled weight before quantization.
    format: how its parts are stored; ``UNQUANTIZED`` where it is copied or cast.
    """

    info: WeightInfo
    name: str
    spec: TensorSpec
    format: QuantFormat
    outputs: tuple[OutputTensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(output.spec.nbytes for output in self.outputs)


@dataclass(frozen=True)
class Stored:
    """A quantized weight as it stands in a checkpoint.

    keys: role -> key; the first is the part that holds the codes. shape: of the weight; None: the codes tell.
    arrangement: how codes and scales lie, in words, where nothing but the file can tell: ``{"nibbles": "high first"}``.
    """

    format: QuantFormat
    keys: Mapping[str, str]
    shape: tuple[int, ...] | None = None
    arrangement: Mapping[str, str] = field(default_factory=dict)

    @property
    def primary(self) -> str:
        """The key of the part that holds the codes."""
        return next(iter(self.keys.values()))


@dataclass(frozen=True)
class FileLayout:
    """One file: its first bytes, where each tensor starts (from the beginning of the file), its length in bytes.

    What lies between tensors, or behind the last, is padding: zeros.
    """

    header: bytes
    offsets: Mapping[str, int]
    size: int


@dataclass(frozen=True)
class Extras:
    """What a target adds beside the weights: header metadata, side files by name, tensors by key.

    index: what stands under ``metadata`` in the index file beside ``total_size``.
    """

    metadata: Mapping[str, Any] = field(default_factory=dict)
    side_files: Mapping[str, bytes] = field(default_factory=dict)
    tensors: Parts = field(default_factory=dict)
    index: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SyntheticCheckpoint:
    """A small made-up checkpoint of a model: the tensors, and its ``config.json``."""

    tensors: Mapping[str, TensorSpec]
    config: Mapping[str, Any] = field(default_factory=dict)
