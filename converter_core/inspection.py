"""What a checkpoint is, told from its headers alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .api.calibration import inputs_of
from .api.contexts import ModelFacts, SourceTensors
from .api.models import ModelAdapter
from .api.values import Stored
from .calibration.file import is_calibration
from .checkpoint.files import Checkpoint, NothingKnown, open_checkpoint
from .checkpoint.recognition import open_source, recognisers
from .planning import provenance, transcode
from .planning.planner import source_tensors
from .plugins.attribution import attribute_errors
from .plugins.registry import Registry, load_plugins
from .recipe.values import Rule


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
    """

    target: str
    formats: Mapping[str, int]
    schemes: tuple[Rule, ...] = ()
    arrangement: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Inspection:
    """What ``inspect`` found.

    model, variant: None if no adapter recognises it. facts: what the adapter says, e.g. naming and dimensions.
    dtypes: how many tensors of each. parameters: elements of the weights, quantized ones unpacked and without their
    scales. bytes: of all tensors. skipped: files with weights that are not part of it. runtime_config: what makes
    the runtime read it.
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

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def inspect(path: str | os.PathLike[str], registry: Registry | None = None) -> Inspection:
    """A folder or file of weights, ours or a stranger's; one that no adapter knows too. CheckpointError if broken."""
    registry = load_plugins() if registry is None else registry
    adapters = [adapter() for adapter in registry.models.values() if not adapter.by_name]
    skipped: list[str] = []
    with attribute_errors(registry):
        try:
            checkpoint = open_source(path, adapters, skipped, registry=registry)
        except NothingKnown:
            checkpoint = open_checkpoint(path, registry=registry)
        with checkpoint:
            found = _describe(checkpoint, adapters, registry, skipped)
    return replace(found, notes=(*found.notes, *skipped))


def _absolute(checkpoint: Checkpoint) -> str:
    path = checkpoint.location.path
    return str(checkpoint.location) if path is None else str(path.absolute())


def _describe(
    checkpoint: Checkpoint, adapters: list[ModelAdapter], registry: Registry, skipped: list[str]
) -> Inspection:
    tensors = source_tensors(checkpoint)
    is_statistics = is_calibration(checkpoint.metadata)
    first = min(registry.targets.values(), key=lambda cls: not cls.default, default=None)
    found = transcode.recognise(tensors, registry, first(), skipped) if first else None
    target = registry.targets[found.target]() if found else None
    if found is not None and target is not None:
        found = transcode.with_shapes(found, tensors, target, registry)
    weights = found.weights if found else {}
    original = transcode.unpacked(tensors, found) if found else tensors
    adapter, variant = next(iter(() if is_statistics else recognisers(adapters, original, skipped)), (None, None))
    facts = dict(adapter.describe(original)) if adapter else {}
    files = tuple(str(Path(file.path).absolute()) for file in checkpoint.files)
    model = ModelFacts(adapter.name if adapter else "", variant or "", facts, tensors.config, files)
    held = Counter(map(checkpoint.file_of, tensors))
    return Inspection(
        path=str(checkpoint.location),
        format=checkpoint.format,
        model=adapter.name if adapter else None,
        variant=variant,
        facts=facts,
        dtypes=dict(Counter(spec.dtype for spec in tensors.values())),
        parameters=sum(spec.numel for spec in original.values()),
        bytes=sum(spec.nbytes for spec in tensors.values()),
        files=tuple(FileSummary(file.name, file.size, held[file.name]) for file in checkpoint.files),
        skipped=checkpoint.skipped,
        quantized=_summary(found.target, weights, checkpoint.metadata) if found else None,
        runtime_config=dict(target.runtime_config(model, weights, _absolute(checkpoint))) if target else {},
        notes=(
            *checkpoint.notes,
            *(target.notes(weights) if target else ()),
            *([_of_statistics(tensors)] if is_statistics else []),
        ),
        tensors=tuple(
            TensorSummary(key, spec.dtype, spec.shape, checkpoint.file_of(key)) for key, spec in tensors.items()
        ),
    )


def _of_statistics(tensors: SourceTensors) -> str:
    counts = [key for key in tensors if key.endswith(".count")]
    sampled = [spec.shape[0] for key, spec in tensors.items() if key.endswith(".tokens")]
    tokens = f"up to {max(sampled)} tokens of each" if sampled else "no tokens"
    shared = len(inputs_of(tensors))
    return f"activation statistics of {len(counts)} inputs, which {shared} more layers share; {tokens}"


def _summary(target: str, weights: Mapping[str, Stored], metadata: Mapping[str, Any]) -> QuantizedSummary:
    formats = Counter(stored.format.name for stored in weights.values())
    arrangement = {stored.format.name: dict(stored.arrangement) for stored in weights.values() if stored.arrangement}
    return QuantizedSummary(target, dict(formats), provenance.load(metadata), arrangement)
