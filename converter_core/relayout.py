"""A source that is quantized already: recognised, and either refused or laid out anew without touching a byte."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from .faults import asked
from .interfaces import Target
from .registry import Registry
from .specs import Stored, TensorSpec


@dataclass(frozen=True)
class Quantized:
    """What a checkpoint's quantized weights are: whose format, and name -> format and keys."""

    target: str
    weights: Mapping[str, Stored]

    def __str__(self) -> str:
        formats = Counter(stored.format for stored in self.weights.values())
        return f"{self.target} " + ", ".join(f"{format} ({count} weights)" for format, count in formats.items())


def recognise(
    tensors: Mapping[str, TensorSpec],
    metadata: Mapping[str, str],
    registry: Registry,
    preferred: Target,
    left_out: list[str],
) -> Quantized | None:
    """The target that finds the most of its own weights in a checkpoint; on a tie the preferred one. None: no such.

    left_out: gets what is to be said of targets that fail.
    """
    best: Quantized | None = None
    targets = [registry.targets[name]() for name in sorted(registry.targets, key=lambda name: name != preferred.name)]
    for target, found in asked(targets, lambda target: target.scan(tensors, metadata), left_out):
        if found and (best is None or len(found) > len(best.weights)):
            best = Quantized(target.name, found)
    return best
