"""The dtypes of weights that are not quantized, where a target has a say in them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from ..api.contexts import ModelFacts, WeightContext
from ..api.targets import Target
from ..api.values import FLOATING, TensorSpec, WeightInfo
from ..errors import PluginError
from .assignment import Assignment, Assignments
from .passthrough import Passthrough


def with_decoded(found: Assignments, decoded: Collection[str]) -> Assignments:
    """The assignments with weights that are decoded as they are read in bf16, where nobody asks for another dtype."""

    def cast(one: Assignment) -> Assignment:
        kept = isinstance(one.quantizer, Passthrough) and one.quantizer.dtype is None
        if not kept or not any(ref.key in decoded for ref in one.info.refs):
            return one
        return replace(one, quantizer=Passthrough("BF16"))

    return replace(found, all=tuple(map(cast, found.all))) if decoded else found


def with_plain_dtypes(
    found: Assignments,
    target: Target,
    model: ModelFacts,
    named: Callable[[str], str],
    spec_of: Callable[[WeightInfo], TensorSpec],
) -> Assignments:
    """The assignments with ``Target.plain_dtype`` followed. named: a weight's name in the target's key format."""
    if type(target).plain_dtype is Target.plain_dtype:
        return found

    def cast(one: Assignment) -> Assignment:
        quantizer, spec = one.quantizer, spec_of(one.info)
        if not isinstance(quantizer, Passthrough) or spec.dtype not in FLOATING:
            return one
        asked = quantizer.dtype or spec.dtype
        context = WeightContext(one.info, named(one.info.name), spec, quantizer.format, model)
        wanted = target.plain_dtype(context, asked)
        if wanted not in FLOATING:
            raise PluginError(
                f"target {target.name}: plain_dtype must return one of {sorted(FLOATING)}, not {wanted!r}"
            )
        return one if wanted == asked else replace(one, quantizer=Passthrough(wanted))

    return replace(found, all=tuple(cast(one) for one in found.all))
