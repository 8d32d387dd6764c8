"""Which layers of a model are calibrated, and what a file calls them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from ..api.calibration import ORIGINAL, layer_of
from ..api.contexts import SourceTensors
from ..api.models import ModelAdapter
from ..api.tensors import spec_of
from ..api.values import WeightInfo
from ..checkpoint.inventory import inventory
from ..checkpoint.recognition import recognisers
from ..errors import PlanError
from ..planning.assignment import assign, quantizer_of
from ..planning.drafts import target_of
from ..planning.passthrough import Passthrough
from ..plugins.registry import Registry
from ..recipe.load import Recipe
from .collect import linear_layers


def layers_of(module: nn.Module, registry: Registry, recipe: Recipe | None = None) -> Mapping[str, str]:
    """Module name -> the layer's name in the model's own naming, of every linear layer that could be quantized.

    recipe: of those that it quantizes only; PlanError where it does not fit. Of a model that no adapter knows: every
    linear layer, under the name it has.
    """
    linear = linear_layers(module)
    tensors = SourceTensors({key: spec_of(value) for key, value in module.state_dict().items()})
    adapters = [adapter() for adapter in registry.models.values() if not adapter.by_name]
    known = recognisers(adapters, tensors, [])
    if not known:
        if recipe is not None:
            raise PlanError("no model adapter knows this model, so that a recipe cannot say which layers it quantizes")
        return {name: name for name in linear}
    adapter = known[0][0]
    infos = [info for info in inventory(adapter, tensors) if info.kind == "linear"]
    if recipe is not None:
        infos = _quantized(recipe, registry, adapter, infos)
    named: dict[str, str] = {}
    for info in infos:
        for ref in info.refs:
            named.setdefault(layer_of(ref.key), layer_of(adapter.rename(info.name, ORIGINAL)))
    return {name: named[name] for name in linear if name in named}


def _quantized(
    recipe: Recipe, registry: Registry, adapter: ModelAdapter, infos: Sequence[WeightInfo]
) -> list[WeightInfo]:
    """By any of its outputs."""
    chosen = set()
    problems: list[str] = []
    for one in recipe.exports:
        section = one.quantization
        target = target_of(one, registry)
        main = quantizer_of(registry, section.method, section.options, target)
        found = assign(one, registry, adapter, infos, target, Passthrough(), main)
        problems += found.problems
        chosen |= {each.info.name for each in found.all if each.quantizer.name != Passthrough.name}
    if problems:
        raise PlanError(*dict.fromkeys(problems))
    return [info for info in infos if info.name in chosen]
