"""A source that is quantized already: recognised, with its weights in their own shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..api.contexts import SourceTensors, WeightContext
from ..api.formats import QuantFormat
from ..api.quantizers import Quantizer
from ..api.targets import Target
from ..api.tensors import dtype_of
from ..api.values import Stored, TensorSpec, WeightInfo
from ..plugins.attribution import call_each
from ..plugins.registry import Registry
from ..recipe.options import make_plugin
from . import exact_numbers
from .exact_numbers import NO_NUMBERS, Numbers


@dataclass(frozen=True)
class Quantized:
    """What a checkpoint's quantized weights are: whose format, and name -> format and keys.

    dress: the target, with the options that such files are written with. added: tensors that it added and that belong
    to no weight. options: those of its options that the checkpoint tells. numbers: that it tells beside the weights.
    """

    dress: Target
    weights: Mapping[str, Stored]
    added: frozenset[str] = frozenset()
    options: Mapping[str, Any] = field(default_factory=dict)
    numbers: Mapping[str, Numbers] = field(default_factory=dict)

    @property
    def target(self) -> str:
        return self.dress.name

    def of(self, info: WeightInfo) -> Stored | None:
        """How a weight is stored, by the key that its model adapter takes for it, whatever it calls the weight."""
        return next((self.weights[ref.key] for ref in info.refs if ref.key in self.weights), None)

    def numbers_of(self, info: WeightInfo) -> Numbers:
        """What the checkpoint tells of a weight's single numbers."""
        return next((self.numbers[ref.key] for ref in info.refs if ref.key in self.numbers), NO_NUMBERS)

    def __str__(self) -> str:
        formats = Counter(stored.format.name for stored in self.weights.values())
        return f"{self.target} " + ", ".join(f"{format} ({count} weights)" for format, count in formats.items())


def recognise(tensors: SourceTensors, registry: Registry, preferred: Target, skipped: list[str]) -> Quantized | None:
    """The target that finds the most of its own weights in a checkpoint; on a tie the preferred one. None: no such.

    skipped: gets what is to be said of targets that fail.
    """
    best: Quantized | None = None
    names = sorted(registry.targets, key=lambda name: name != preferred.name)
    targets = [preferred if name == preferred.name else registry.targets[name]() for name in names]
    for _, found in call_each(targets, lambda target: as_quantized(target, tensors), skipped):
        if found.weights and (best is None or len(found.weights) > len(best.weights)):
            best = found
    return best


def as_quantized(target: Target, tensors: SourceTensors) -> Quantized:
    """What a target makes of a checkpoint; no weights if it has none of its own there."""
    found = _detected(target, tensors)
    if not found:
        return Quantized(target, found)
    options = dict(target.options_for(tensors))
    return Quantized(
        make_plugin(type(target), options),
        found,
        frozenset(target.added(tensors)),
        options,
        exact_numbers.read(tensors.metadata),
    )


def _detected(target: Target, tensors: SourceTensors) -> Mapping[str, Stored]:
    """What a target finds. TypeError if that is not what ``detect`` must return."""
    found = target.detect(tensors)
    sound = isinstance(found, Mapping) and all(
        isinstance(stored, Stored) and isinstance(stored.format, QuantFormat) and stored.keys
        for stored in found.values()
    )
    if not sound:
        raise TypeError("detect must return Stored values by name, each with a QuantFormat and keys")
    if missing := [key for stored in found.values() for key in stored.keys.values() if key not in tensors]:
        raise ValueError(f"detect names {missing[0]}, which is not there")
    return found


def with_shapes(quantized: Quantized, tensors: Mapping[str, TensorSpec], registry: Registry) -> Quantized:
    """The same, each weight with its own shape: as the target tells it, else as a quantizer decodes it."""
    known: dict[object, tuple[int, ...]] = {}
    weights = {}
    for name, stored in quantized.weights.items():
        if stored.shape is None:
            specs = {role: tensors[key] for role, key in stored.keys.items()}
            case = (stored.format, tuple(specs.items()))
            if case not in known:
                known[case] = _shape(name, stored, specs, quantized.dress, registry)
            stored = replace(stored, shape=known[case])
        weights[name] = stored
    return replace(quantized, weights=weights)


def without(quantized: Quantized | None, foreign: Collection[str]) -> Quantized | None:
    """The same without the weights of other models in the file; None if none are left."""
    if quantized is None or not foreign:
        return quantized
    others = set(foreign)
    own = {name: stored for name, stored in quantized.weights.items() if name not in others}
    return replace(quantized, weights=own) if own else None


def unpacked(tensors: SourceTensors, quantized: Quantized) -> SourceTensors:
    """The tensors as a model adapter knows them: weights by name and in their own shapes, without scales and the like.

    The dtype of a quantized weight is that of its codes.
    """
    name_of = {stored.primary: name for name, stored in quantized.weights.items()}
    parts = {key for stored in quantized.weights.values() for key in stored.keys.values()} | quantized.added

    def all_of() -> Iterator[tuple[str, TensorSpec]]:
        for key, spec in tensors.items():
            if key in name_of:
                stored = quantized.weights[name_of[key]]
                yield name_of[key], spec if stored.shape is None else TensorSpec(spec.dtype, stored.shape)
            elif key not in parts:
                yield key, spec

    return tensors.with_tensors(dict(all_of()))


def readers(registry: Registry, stored: Stored) -> Iterator[Quantizer]:
    """Quantizers whose default options have a weight's format."""
    for cls in registry.quantizers.values():
        quantizer = cls()
        if quantizer.format.matches(stored.format):
            yield quantizer


def reader_of(registry: Registry, format: QuantFormat) -> Quantizer | None:
    """A quantizer that decodes a format, with the options that lead to it where it has such; None: there is none."""
    known = [cls() for cls in registry.quantizers.values()]
    found = [quantizer for quantizer in known if quantizer.format.matches(format)]
    reader = min(found, key=lambda quantizer: quantizer.name != format.name, default=None)
    if reader is None or reader.format == format:
        return reader
    try:
        exact = type(reader)(**reader.options_for(format))
    except Exception:  # a stranger's options; its defaults have the format's name all the same
        return reader
    return exact if exact.format.matches(format) else reader


def _shape(
    name: str, stored: Stored, specs: Mapping[str, TensorSpec], target: Target, registry: Registry
) -> tuple[int, ...]:
    codes = next(iter(specs.values()))
    if not stored.format.packing and codes.dtype != "U8":
        return codes.shape
    context = WeightContext(WeightInfo(name, {}), name, None, stored.format)

    def decoded(quantizer: Quantizer, most: int | None) -> tuple[int, ...]:
        """most: rows that are tried, of values that nobody looks at; None: all of them, without values."""
        device = "meta" if most is None else "cpu"
        few = {role: one.in_memory.shape for role, one in specs.items()}
        few = {
            role: (min(shape[0], most), *shape[1:]) if most and len(shape) > 1 else shape for role, shape in few.items()
        }
        parts = {role: torch.zeros(shape, dtype=dtype_of(specs[role]), device=device) for role, shape in few.items()}
        return tuple(quantizer.dequantize(target.decode(context, parts)).shape)

    # the first arithmetic on meta tensors imports much (71 MiB): a run of rows usually tells
    for quantizer in readers(registry, stored):
        try:
            block = target.row_block
            if block and len(codes.shape) == 2:
                shape = decoded(quantizer, block)
                if shape[0] == min(codes.shape[0], block):
                    return codes.shape[0], *shape[1:]
            return decoded(quantizer, None)
        except Exception:  # a third party's code may fail without data; the shape of the codes must do then
            continue
    return codes.shape
