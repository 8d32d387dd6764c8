"""Hooks that gather the statistics of what linear layers multiply, while a model runs."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .statistics import Calibration, InputStatistics, Kept, generator_of

MOST_SEEN = 64
"""Tensors remembered before those that are gone are forgotten."""


class Collector:
    """Within ``with``, sees every call of the layers. Inputs that several layers share are gathered once.

    layers: module name -> name that the file gives the layer. label: of this run; it seeds the sample.
    """

    def __init__(self, module: nn.Module, layers: Mapping[str, str], kept: Kept | None = None, label: str = "") -> None:
        self.calibration = Calibration()
        self.kept = kept or Kept()
        self.label = label
        known = dict(module.named_modules())
        self._layers = {name: known[module_name] for module_name, name in layers.items()}
        self._hooks: list[Any] = []
        self._seen: dict[int, tuple[weakref.ref[Tensor], str]] = {}

    def __enter__(self) -> Collector:
        for name, layer in self._layers.items():
            self._hooks.append(layer.register_forward_pre_hook(self._hook(name)))
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _hook(self, name: str) -> Any:
        def see(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor) and args[0].numel():
                self._saw(name, args[0])

        return see

    def _saw(self, name: str, given: Tensor) -> None:
        shared = self._shared(name, given)
        if self.calibration.layers.setdefault(name, shared) == shared != name:
            return  # gathered with the layer whose input it is
        if len(self._seen) > MOST_SEEN:
            self._seen = {key: one for key, one in self._seen.items() if one[0]() is not None}
        self._seen[id(given)] = (weakref.ref(given), name)
        self.calibration.layers[name] = name  # of its own, if it ever was
        tokens = given.detach().reshape(-1, given.shape[-1])
        mine = self.calibration.inputs.get(name)
        draw = generator_of(f"{self.label} {name} {mine.count if mine else 0}")
        found = InputStatistics.of(tokens, self.kept, draw)
        if mine is None:
            self.calibration.inputs[name] = found
        else:
            mine.add(found, self.kept, draw)

    def _shared(self, name: str, given: Tensor) -> str:
        """The layer that has seen this very tensor last; the layer itself if none has."""
        before = self._seen.get(id(given))
        return before[1] if before is not None and before[0]() is given else name

    def finished(self) -> Calibration:
        layers = {layer: given for layer, given in self.calibration.layers.items() if layer != given}
        return Calibration(self.calibration.inputs, layers)


def memory_of(module: nn.Module, layers: Mapping[str, str], kept: Kept) -> int:
    """Bytes that gathering takes at the most, were no input shared."""
    known = dict(module.named_modules())
    return sum(kept.nbytes(known[name].weight.shape[1]) for name in layers)


def linear_layers(module: nn.Module) -> list[str]:
    return [name for name, one in module.named_modules() if isinstance(one, nn.Linear) and one.weight.dim() == 2]
