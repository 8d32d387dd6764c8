"""What a recipe asks of the machine: executor, device, workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..errors import unknown
from ..storage.location import scheme_of
from ..system import cores
from .schema import Problem
from .values import Recipe

THREADS = "threads"
"""The executor of this process."""

EXECUTORS = (THREADS, "ray")

WORKERS_PER_CORE = 4


def performance_problems(recipe: Recipe, sound: Callable[..., bool]) -> Iterable[Problem]:
    """sound: whether what stands at these keys is known to be no guide."""
    performance = recipe.performance
    name, colon, number = performance.device.partition(":")
    if sound("performance.device") and colon and (name == "auto" or not number.isdecimal()):
        kind = "auto" if name == "auto" else f"{name} or {name}:0"
        yield Problem("performance.device", f"{performance.device!r} is no device; write {kind}")
    if sound("performance.executor"):
        if performance.executor not in EXECUTORS:
            yield Problem("performance.executor", unknown("executor", performance.executor, EXECUTORS))
        elif performance.executor != THREADS:
            yield from _elsewhere(recipe, sound)
    most, asked = WORKERS_PER_CORE * cores(), performance.num_workers or 1
    if performance.executor == THREADS and sound("performance.num_workers") and asked > most:
        yield Problem(
            "performance.num_workers",
            f"must be at most {most}, {WORKERS_PER_CORE} for each of the {cores()} cores, not {asked}",
        )
    elif sound("performance") and not performance.parallel and asked > 1:
        yield Problem("performance.num_workers", f"{asked} workers contradict parallel: false; drop one")


def _elsewhere(recipe: Recipe, sound: Callable[..., bool]) -> Iterable[Problem]:
    """Workers of a cluster are given a card each, and write into files that all of them see."""
    performance = recipe.performance
    name, _, number = performance.device.partition(":")
    if number.isdecimal() and sound("performance.device"):
        yield Problem(
            "performance.device",
            f"{performance.device!r}: executor {performance.executor} chooses the cards; write {name}",
        )
    for one in recipe.exports:
        path = one.output.path if one.output is not None else None
        if sound("output.path") and path and scheme_of(path):
            yield Problem(
                one.key("output.path"),
                f"executor {performance.executor} writes into a folder that all nodes share, not to {path}; use a "
                "shared folder, or executor threads",
            )
