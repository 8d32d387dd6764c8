"""What the core tells a plugin beside tensors. These values may gain fields; the methods that take them stay."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from .formats import UNQUANTIZED, QuantFormat
from .values import TensorSpec, WeightInfo

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

SMALL_TENSOR = 64 << 10
"""Bytes of the largest tensor that ``SourceTensors.read`` gives."""


class SourceTensors(Mapping[str, TensorSpec]):
    """The tensors of a checkpoint by key, and what else its files tell.

    metadata: of the file headers. config: the ``config.json`` beside the weights; empty if there is none.
    stores: the tensors of every other file that the plugin asked for, by the name it gave.
    """

    def __init__(
        self,
        tensors: Mapping[str, TensorSpec],
        metadata: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        stores: Mapping[str, Mapping[str, TensorSpec]] | None = None,
        read: Callable[[str], Tensor] | None = None,
    ) -> None:
        self._tensors = tensors
        self.metadata: Mapping[str, Any] = metadata or {}
        self.config: Mapping[str, Any] = config or {}
        self.stores: Mapping[str, Mapping[str, TensorSpec]] = stores or {}
        self._read = read
        self._made: dict[Hashable, Any] = {}

    def __getitem__(self, key: str) -> TensorSpec:
        return self._tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def read(self, key: str) -> Tensor:
        """A tensor of at most ``SMALL_TENSOR`` bytes, e.g. a marker. ValueError for a larger one, or without data."""
        if self._read is None or self._tensors[key].nbytes > SMALL_TENSOR:
            raise ValueError(f"{key} cannot be read here: only tensors up to {SMALL_TENSOR} bytes, and only from files")
        return self._read(key)

    def remembered(self, what: Hashable, make: Callable[[], T]) -> T:
        """What is made of these tensors once, and asked for again and again."""
        if what not in self._made:
            self._made[what] = make()
        made: T = self._made[what]
        return made

    def without(self, keys: Collection[str]) -> SourceTensors:
        """The same checkpoint but for some tensors, e.g. those of other models."""
        return self.with_tensors({key: spec for key, spec in self.items() if key not in keys})

    def with_tensors(self, tensors: Mapping[str, TensorSpec]) -> SourceTensors:
        """The same checkpoint with other tensors, e.g. quantized weights in their own shapes."""
        return SourceTensors(tensors, self.metadata, self.config, self.stores, self._read)


@dataclass(frozen=True)
class ModelFacts:
    """What is known of the model: the adapter's name, its variant and facts, and the source's ``config.json``.

    files: paths of the weight files, where they are there already.
    """

    name: str = ""
    variant: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class WeightContext:
    """Which weight a method is called for.

    info: what the model adapter says of it; only the name counts where an output is read back without its source.
    name: in the target's key format.
    original: in the model's original key format, where a source is at hand.
    spec: of the assembled weight before quantization, all rows; for ``decode`` that of the rows that are decoded. None
        where it is not known yet, or no more.
    roles: of its stored parts, where they are known: for ``markers``.
    """

    info: WeightInfo
    name: str
    spec: TensorSpec | None = None
    format: QuantFormat = UNQUANTIZED
    model: ModelFacts = field(default_factory=ModelFacts)
    roles: tuple[str, ...] = ()
    original: str = ""


@dataclass(frozen=True)
class LoraChange:
    """What one LoRA changes in some rows of a weight, for ``Target.merge_lora``.

    form: ``lora`` or ``diff``. product: float32 [rows, columns], ``B A`` by the core's own sums, or the difference; of
    tensors rounded to the weight's dtype. scale: ``alpha / rank`` by what the file or the recipe says. strength, alpha:
    as the recipe has them.
    """

    form: str
    product: Tensor
    scale: float
    strength: float
    alpha: float | None
