"""What a checkpoint is, told from its headers alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from . import schemes
from .checkpoint import Checkpoint, NothingKnown, open_checkpoint
from .faults import asked, knowing, of_plugins
from .interfaces import ModelAdapter, Target
from .recipe_values import Rule
from .registry import Registry, load_plugins
from .relayout import recognise
from .specs import Stored, TensorSpec
from .tensors import torch_dtype


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
    """

    target: str
    formats: Mapping[str, int]
    schemes: tuple[Rule, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """What ``inspect`` found.

    model, variant: None if no adapter recognises it. facts: what the adapter says, e.g. naming and dimensions.
    dtypes: how many tensors of each. parameters: elements of the weights, quantized ones unpacked and without their
    scales. bytes: of all tensors. left_out: files with weights that are not part of it. runtime_config: what makes
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
    left_out: tuple[str, ...]
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
    adapters = [adapter() for adapter in registry.models.values()]
    left_out: list[str] = []
    with of_plugins(registry):
        try:
            checkpoint = open_checkpoint(path, knows=knowing(adapters, left_out))
        except NothingKnown:
            checkpoint = open_checkpoint(path)
        with checkpoint:
            found = _describe(checkpoint, adapters, registry, left_out)
    return replace(found, notes=(*found.notes, *left_out))


def _describe(
    checkpoint: Checkpoint, adapters: list[ModelAdapter], registry: Registry, left_out: list[str]
) -> Inspection:
    tensors = checkpoint.tensors
    first = min(registry.targets.values(), key=lambda cls: not cls.default, default=None)
    found = recognise(tensors, checkpoint.metadata, registry, first(), left_out) if first else None
    target = registry.targets[found.target]() if found else None
    weights = found.weights if found else {}
    original = _unpacked(tensors, weights, target, registry) if target else tensors
    answers = asked(adapters, lambda adapter: adapter.recognise(original), left_out)
    adapter, variant = next(((adapter, variant) for adapter, variant in answers if variant is not None), (None, None))
    held = Counter(map(checkpoint.file_of, tensors))
    return Inspection(
        path=str(checkpoint.path),
        format=checkpoint.format,
        model=adapter.name if adapter else None,
        variant=variant,
        facts=dict(adapter.describe(original)) if adapter else {},
        dtypes=dict(Counter(spec.dtype for spec in tensors.values())),
        parameters=sum(spec.numel for spec in original.values()),
        bytes=sum(spec.nbytes for spec in tensors.values()),
        files=tuple(FileSummary(file.name, file.size, held[file.name]) for file in checkpoint.files),
        left_out=checkpoint.left_out,
        quantized=_summary(found.target, weights, checkpoint.metadata) if found else None,
        runtime_config=dict(target.runtime_config(weights, str(checkpoint.path.absolute()))) if target else {},
        notes=tuple(target.notes(weights)) if target else (),
        tensors=tuple(
            TensorSummary(key, spec.dtype, spec.shape, checkpoint.file_of(key)) for key, spec in tensors.items()
        ),
    )


def _summary(target: str, weights: Mapping[str, Stored], metadata: Mapping[str, str]) -> QuantizedSummary:
    formats = Counter(stored.format for stored in weights.values())
    return QuantizedSummary(target, dict(formats), schemes.load(metadata))


def _unpacked(
    tensors: Mapping[str, TensorSpec], weights: Mapping[str, Stored], target: Target, registry: Registry
) -> Mapping[str, TensorSpec]:
    """The tensors as a model adapter knows them: weights in their own shapes, without scales and other parts."""
    shapes: dict[tuple[str, tuple[tuple[str, TensorSpec], ...]], tuple[int, ...]] = {}
    unpacked = dict(tensors)
    for stored in weights.values():
        parts = tuple((role, tensors[key]) for role, key in stored.keys.items())
        if (stored.format, parts) not in shapes:
            shapes[stored.format, parts] = _shape(stored.format, dict(parts), target, registry)
        for role, key in stored.keys.items():
            if role != "weight":
                unpacked.pop(key, None)
            else:
                unpacked[key] = TensorSpec(tensors[key].dtype, shapes[stored.format, parts])
    return unpacked


def _shape(format: str, parts: Mapping[str, TensorSpec], target: Target, registry: Registry) -> tuple[int, ...]:
    """Of a quantized weight: that of its codes or, as a byte may hold two, of what its quantizer makes of them."""
    codes = parts["weight"]
    if codes.dtype != "U8":
        return codes.shape
    stored = {
        role: torch.empty(spec.shape, dtype=torch_dtype(spec.dtype), device="meta") for role, spec in parts.items()
    }
    for quantizer in (cls() for cls in registry.quantizers.values()):
        if quantizer.format == format:
            try:
                return tuple(quantizer.dequantize(target.decode(format, stored)).shape)
            except Exception:  # a stranger's code that cannot do without data: the codes as they are stored must do
                continue
    return codes.shape
