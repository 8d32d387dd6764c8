"""What ``inspect`` finds, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..recipe.values import Rule


@dataclass(frozen=True)
class FileSummary:
    """size: bytes. tensors: how many."""

    name: str
    size: int
    tensors: int


@dataclass(frozen=True)
class TensorSummary:
    key: str
    dtype: str
    shape: tuple[int, ...]
    file: str


@dataclass(frozen=True)
class QuantizedSummary:
    """The target whose files these are; how many weights there are in each format.

    schemes: as the metadata tells them, the recipe's rules first and its own method last; empty if it does not.
    arrangement: format -> how codes and scales lie, for those of which the target says it.
    options: of the target, as the manifest tells them.
    """

    target: str
    formats: Mapping[str, int]
    schemes: tuple[Rule, ...] = ()
    arrangement: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Inspection:
    """What ``inspect`` found.

    model, variant: None if no adapter recognises it. facts: what the adapter says, e.g. naming and dimensions.
    dtypes: how many tensors of each. parameters: elements of the weights, quantized ones unpacked and without their
    scales. bytes: of all tensors. skipped: files with weights that are not part of it. runtime_config: what makes
    the runtime read it. problems: what keeps it from being converted. next_steps: what to do, in words.
    components: by name, what else lies in a folder as it was downloaded; of one that has nothing but such components
    the rest is summed up or empty.
    """

    path: str
    format: str
    model: str | None
    variant: str | None
    facts: Mapping[str, Any]
    dtypes: Mapping[str, int]
    parameters: int
    bytes: int
    files: tuple[FileSummary, ...]
    skipped: tuple[str, ...]
    quantized: QuantizedSummary | None
    runtime_config: Mapping[str, Any]
    notes: tuple[str, ...]
    tensors: tuple[TensorSummary, ...] = field(repr=False)
    problems: tuple[str, ...] = ()
    next_steps: tuple[str, ...] = ()
    components: Mapping[str, Inspection] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)
