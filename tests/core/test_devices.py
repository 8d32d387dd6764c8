"""Which device a recipe means, with faked backends."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch

from converter_core.api.devices import DeviceBackend
from converter_core.errors import RecipeError
from converter_core.planning import resources as devices
from converter_core.plugins.registry import load_plugins
from converter_core.recipe.load import OutputSection, PerformanceSection, Recipe, SourceSection


def backend(label: str, count: int, last: bool = False) -> type[DeviceBackend]:
    class Fake(DeviceBackend):
        name = label
        last_resort = last

        def devices(self) -> Sequence[torch.device]:
            return [torch.device("meta", number) for number in range(count)]

        def absence(self) -> str:
            return f"no {label} in this machine"

        def free_memory(self, device: torch.device) -> int:
            return 10 << 30

        def slab_bytes(self, device: torch.device) -> int:
            return 1 << 20

        def stream(self, device: torch.device) -> AbstractContextManager[Any]:
            raise NotImplementedError

    return Fake


def registry_of(*backends: type[DeviceBackend]) -> Any:
    class Plugin:
        pass

    registry = load_plugins()
    catalogue = type(registry.devices)("device", {cls.name: cls for cls in backends}, {})
    return replace(registry, devices=catalogue)


def chosen(device: str, *backends: type[DeviceBackend], **performance: Any) -> devices.Resources:
    recipe = Recipe(
        source=SourceSection("s"),
        output=OutputSection("o"),
        performance=PerformanceSection(device=device, **performance),
    )
    return devices.choose(recipe, registry_of(*backends))


HOST = backend("host", 1, last=True)


def test_auto_takes_the_first_kind_that_has_a_device_and_the_last_resort_last() -> None:
    assert chosen("auto", HOST, backend("none", 0), backend("card", 3)).name == "card"
    assert chosen("auto", HOST, backend("card", 0)).name == "host"
    with pytest.raises(RecipeError, match="no device"):
        chosen("auto", backend("card", 0))


def test_a_name_means_all_of_them_and_a_number_one() -> None:
    cards = backend("card", 3)
    assert [device.index for device in chosen("card", HOST, cards).devices] == [0, 1, 2]
    assert [device.index for device in chosen("card:1", HOST, cards).devices] == [1]


def test_as_many_workers_as_devices_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert chosen("card", HOST, backend("card", 3)).workers == 3
    assert chosen("card", HOST, backend("card", 3), num_workers=5).workers == 5
    assert chosen("card", HOST, backend("card", 3), parallel=False).workers == 1


def test_memory_is_half_of_what_is_free_at_most_4_gib() -> None:
    assert chosen("host", HOST).max_memory == 4 << 30
    assert chosen("host", HOST, max_memory=123).max_memory == 123


def test_what_is_not_here_says_what_is() -> None:
    cards = backend("card", 2)
    assert "here are: host, card:0, card:1" in chosen("card:2", HOST, cards).absence
    absent = chosen("none", HOST, backend("none", 0)).absence
    assert "no none in this machine" in absent
    assert "here are: host" in absent
    with pytest.raises(RecipeError, match="did you mean 'card'"):
        chosen("crd:0", HOST, cards)
    with pytest.raises(RecipeError, match="card:0"):
        chosen("card:one", HOST, cards)
