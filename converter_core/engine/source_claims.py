"""What finished weights of an output were made of, by their checksums, and what the source has now."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace

from ..api.tensors import raw
from ..output.finished import Finished
from ..output.journal import Begun
from ..planning.plan import OutputPlan


class SourceClaims:
    """Of an interrupted run, and of a finished output that is met again.

    suspects: weights whose sources are to be read again, because inode or times are not what they were. found: the
    checksums of what was read then, to be filled in. stale: those that turned out to be made of something else.
    """

    def __init__(self, plan: OutputPlan, begun: Begun | None) -> None:
        self.plan = plan
        self.moved = begun is not None and bool(plan.fingerprint.moved(begun.identity))
        self.suspects = frozenset(begun.done) if begun is not None and self.moved else frozenset()
        if plan.state.finished is not None and plan.state.finished.moved:
            self.suspects |= plan.state.finished.sources.keys()
        self.found: dict[str, str] = {}
        self.stale: frozenset[str] = frozenset()

    def others(self, finished: Finished) -> list[str]:
        """Weights and added tensors that would come out of other values than those of a finished output."""
        if not finished.moved:
            return []
        return sorted({*self._other_weights(finished), *self._other_constants(finished)})

    def kept(self, begun: Begun) -> Begun | None:
        """The same without what is stale; None where nothing is left of it. Sets ``stale``."""
        if not self.moved:
            return begun
        self.stale = frozenset(name for name in begun.done if self.found.get(name) != begun.sources[name])
        done = {name: sums for name, sums in begun.done.items() if name not in self.stale}
        return replace(begun, done=done) if done or not begun.done else None

    def _other_weights(self, finished: Finished) -> Iterator[str]:
        for weight in self.plan.weights:
            name = weight.info.name
            if weight.info.sources and finished.sources.get(name, "") != self.found.get(name):
                yield name

    def _other_constants(self, finished: Finished) -> Iterator[str]:
        for key, tensor in self.plan.constants.items():
            held = tensor.contiguous()  # its bytes are only there as long as it is
            if finished.crc32.get(key) != zlib.crc32(raw(held)):
                yield key
