"""Which device a recipe means, and how much of the machine a run may take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..api.devices import DeviceBackend
from ..errors import RecipeError
from ..plugins.registry import Registry
from ..recipe.load import THREADS, Recipe
from ..system import cores

if TYPE_CHECKING:
    import torch

MOST_WORKERS = 8
DEFAULT_MEMORY = 4 << 30
WORKER_MEMORY = DEFAULT_MEMORY // MOST_WORKERS
"""Of a worker elsewhere: what the workers here have each when there are most of them."""


@dataclass(frozen=True)
class Resources:
    """What a run works with. name: as the user would write it; devices: empty if it is not there.

    max_memory: bytes of tensor data in flight, on the host and on each device; with an executor that is not
    ``threads``, of each worker. workers: 0: as many as the executor finds. absence: what is not here, and
    absent: the key of the recipe that asks for it.
    """

    backend: DeviceBackend
    name: str
    devices: tuple[torch.device, ...]
    workers: int
    max_memory: int
    absence: str = ""
    absent: str = "performance.device"
    executor: str = THREADS

    @property
    def share(self) -> int:
        """Bytes that one worker may take without making others wait."""
        return self.max_memory // self.workers if self.executor == THREADS else self.max_memory

    @property
    def upload_memory(self) -> int:
        """Bytes, beside ``max_memory``, that parts of outputs elsewhere take while they are sent."""
        return self.max_memory // 8


def choose(recipe: Recipe, registry: Registry) -> Resources:
    found = _choose(recipe, registry)
    performance = recipe.performance
    if performance.executor == THREADS:
        return found
    installed = find_spec(performance.executor) is not None
    return replace(
        found,
        executor=performance.executor,
        workers=(performance.num_workers or 0) if performance.parallel else 1,
        max_memory=performance.max_memory or WORKER_MEMORY,
        # the device is that of the workers, not of this machine
        absence="" if installed else f"{performance.executor} is not installed: pip install 'model-converter[ray]'",
        absent="performance.executor",
    )


def _choose(recipe: Recipe, registry: Registry) -> Resources:
    wanted = recipe.performance.device
    backends = {name: registry.devices[name]() for name in registry.devices}
    if wanted == "auto":
        ranked = sorted(backends.values(), key=lambda backend: backend.last_resort)
        backend = next((backend for backend in ranked if backend.devices()), None)
        if backend is None:
            raise RecipeError(
                f"{recipe.where('performance.device')}: no device plugin has a device; known: {list(backends)}"
            )
        return _means(recipe, backend, backend.name, tuple(backend.devices()[:1]))
    name, _, number = wanted.partition(":")
    if name not in backends:
        try:
            registry.devices[name]
        except Exception as error:
            raise RecipeError(f"{recipe.where('performance.device')}: {error}") from None
    backend = backends[name]
    found = tuple(backend.devices())
    if number and not number.isdecimal():
        raise RecipeError(f"{recipe.where('performance.device')}: {wanted!r}; write {name} or {name}:0")
    if not found:
        return _means(recipe, backend, wanted, (), f"{wanted} is not here: {backend.absence()}; {_present(backends)}")
    if not number:
        return _means(recipe, backend, wanted, found)
    if int(number) >= len(found):
        return _means(recipe, backend, wanted, (), f"{wanted} is not here; {_present(backends)}")
    return _means(recipe, backend, wanted, (found[int(number)],))


def _present(backends: dict[str, DeviceBackend]) -> str:
    there = [
        name if len(backend.devices()) == 1 and backend.last_resort else f"{name}:{number}"
        for name, backend in backends.items()
        for number in range(len(backend.devices()))
    ]
    return f"here are: {', '.join(there) or 'none'}"


def _means(
    recipe: Recipe, backend: DeviceBackend, name: str, devices: tuple[torch.device, ...], absence: str = ""
) -> Resources:
    performance = recipe.performance
    workers = performance.num_workers or max(min(cores(), MOST_WORKERS), len(devices))
    if not performance.parallel:
        workers = 1
    memory = performance.max_memory
    if memory is None:
        free = min((backend.free_memory(device) for device in devices), default=DEFAULT_MEMORY)
        memory = min(DEFAULT_MEMORY, free // 2)
    return Resources(backend, name, devices, workers, memory, absence)
