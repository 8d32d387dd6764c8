"""Every weight of a checkpoint: what the model adapter makes of its tensors, and what it does not claim."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from ..api.contexts import SourceTensors
from ..api.models import ModelAdapter
from ..api.values import BASE, TensorRef, TensorSpec, WeightInfo
from ..errors import PluginError, shown


def inventory(adapter: ModelAdapter, tensors: Mapping[str, TensorSpec]) -> list[WeightInfo]:
    """All weights. Unclaimed tensors get kind ``extra``; those of other models are skipped.

    Raises PluginError for an adapter that says what cannot be.
    """
    seen = tensors if isinstance(tensors, SourceTensors) else SourceTensors(tensors)
    listed = list(adapter.weights(seen))
    _check(adapter, listed, seen)
    claimed = set(adapter.foreign(seen))
    claimed |= {ref.key for info in listed for ref in info.refs if ref.store == BASE}
    extra = [WeightInfo(key, {"weight": TensorRef(key)}, "extra") for key in tensors if key not in claimed]
    return [*listed, *extra]


def skipped_tensors(adapter: ModelAdapter, tensors: SourceTensors) -> Iterator[str]:
    """What a plan warns of: tensors of other models in the same checkpoint."""
    keys = list(adapter.foreign(tensors))
    if keys:
        examples = ", ".join(map(shown, keys[:3])) + (", ..." if len(keys) > 3 else "")
        yield (
            f"skipping {len(keys)} tensors that are not of {adapter.name} ({examples}): the checkpoint holds other "
            "models too, and the output gets this one only"
        )


def _check(adapter: ModelAdapter, infos: Collection[WeightInfo], tensors: SourceTensors) -> None:
    seen: set[str] = set()
    for info in infos:
        if not isinstance(info.sources, Mapping) or not info.sources:
            raise PluginError(f"model {adapter.name}: the sources of {info.name} must be a mapping by role")
        for ref in info.refs:
            store = tensors if ref.store == BASE else tensors.stores.get(ref.store, {})
            if ref.key not in store:
                raise PluginError(f"model {adapter.name}: {info.name} is made of {ref.key}, which is not there")
        if info.name in seen:
            raise PluginError(f"model {adapter.name}: lists {info.name} twice")
        seen.add(info.name)
