"""What quantizers make once of inputs that several weights share: one at a time, kept until another is asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, TypeVar

from ..api.quantizers import Quantizer
from ..planning.jobs import BoundTensor, Export

if TYPE_CHECKING:
    from ..api.values import Parts
    from ..planning.jobs import Job

T = TypeVar("T", bound="Job")


class Prepared:
    """For all workers of one device. A worker that still uses an older one keeps it alive by itself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: Hashable = None
        self._parts: Parts = {}

    def of(self, export: Export, read: Callable[[], Parts]) -> Parts:
        """read: gives the inputs, whole."""
        key = shared_key(export)
        if key is None:
            return read()
        with self._lock:
            if key != self._key:
                self._key, self._parts = None, {}  # gone before the next takes its room
                self._parts = export.quantizer.prepare(read())
                self._key = key
            return self._parts


def shared_key(export: Export) -> Hashable:
    """The same for weights that share what their quantizer prepares; None where it prepares nothing."""
    if type(export.quantizer).prepare is Quantizer.prepare:
        return None
    whole = tuple(
        (name, given.path, given.ref)
        for name, given in sorted(export.inputs.items())
        if isinstance(given, BoundTensor) and not given.ref.by_rows
    )
    return (export.quantizer, whole) if whole else None


def grouped(jobs: Sequence[T]) -> list[T]:
    """Those that share something prepared one after the other, at the place of the first; in order otherwise."""
    place: dict[Hashable, int] = {}
    ranks = []
    for number, job in enumerate(jobs):
        keys = [key for export in job.exports if (key := shared_key(export)) is not None]
        ranks.append(min([place.setdefault(key, number) for key in keys], default=number))
    return [job for _, _, job in sorted(zip(ranks, range(len(jobs)), jobs, strict=True), key=lambda one: one[:2])]
