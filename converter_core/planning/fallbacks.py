"""Weights that their quantizer cannot take, and another that it names can."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from ..api.quantizers import Quantizer
from ..api.values import TensorSpec, WeightInfo
from ..errors import PluginError, shown
from .assignment import Assignment, Assignments


def with_fallbacks(found: Assignments, spec_of: Callable[[WeightInfo], TensorSpec]) -> tuple[Assignments, list[str]]:
    """The assignments with ``Quantizer.fallback`` followed, and what the plan should say of it.

    spec_of: of the weight's source, all rows.
    """
    changed: dict[tuple[str, str, tuple[int, ...]], list[str]] = {}
    assigned: list[Assignment] = []
    for one in found.all:
        quantizer = one.quantizer
        if type(quantizer).fallback is not Quantizer.fallback:
            spec = spec_of(one.info)
            quantizer = list(_followed(quantizer, spec))[-1]
            if quantizer is not one.quantizer:
                changed.setdefault((one.quantizer.name, quantizer.name, spec.shape), []).append(one.info.name)
        assigned.append(one if quantizer is one.quantizer else replace(one, quantizer=quantizer))
    told = [
        f"{asked} cannot take weights of shape {list(shape)}: {shown(names[0])}"
        f"{f' and {len(names) - 1} more' if len(names) > 1 else ''} {'get' if len(names) > 1 else 'gets'} {given}"
        for (asked, given, shape), names in changed.items()
    ]
    return replace(found, all=tuple(assigned)), told


def _followed(quantizer: Quantizer, spec: TensorSpec) -> Iterator[Quantizer]:
    """The quantizer, the one that it names, the one that this names ..."""
    seen = [quantizer]
    yield quantizer
    while (other := seen[-1].fallback(spec)) is not None:
        if not isinstance(other, Quantizer):
            raise PluginError(f"{seen[-1].name}: fallback must return a quantizer or None, not {type(other).__name__}")
        if other in seen:
            raise PluginError(f"{seen[0].name}: fallback leads back to {other.name} for {spec}")
        seen.append(other)
        yield other
