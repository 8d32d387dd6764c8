"""Every weight of a checkpoint: what the model adapter makes of its tensors, and what it does not claim."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from .errors import PluginError
from .interfaces import ModelAdapter
from .specs import Source, TensorSpec, WeightInfo


def inventory(adapter: ModelAdapter, tensors: Mapping[str, TensorSpec], parts: Collection[str]) -> list[WeightInfo]:
    """What no weight claims is ``extra``; what is made of ``parts`` (scales and the like) of quantized weights is none.

    Raises PluginError for an adapter that says what cannot be.
    """
    listed = list(adapter.weights(tensors))
    _check(adapter, listed, tensors)
    claimed = {source.key for info in listed for source in info.sources.values()}
    extra = [WeightInfo(key, {"weight": Source(key)}, "extra") for key in tensors if key not in claimed]
    return [info for info in (*listed, *extra) if not any(source.key in parts for source in info.sources.values())]


def _check(adapter: ModelAdapter, infos: Collection[WeightInfo], tensors: Mapping[str, TensorSpec]) -> None:
    seen: set[str] = set()
    for info in infos:
        if not isinstance(info.sources, Mapping):
            raise PluginError(f"model {adapter.name}: the sources of {info.name} must be a mapping by role")
        for source in info.sources.values():
            if source.key not in tensors:
                raise PluginError(f"model {adapter.name}: {info.name} is made of {source.key}, which is not there")
        if info.name in seen:
            raise PluginError(f"model {adapter.name}: lists {info.name} twice")
        seen.add(info.name)
