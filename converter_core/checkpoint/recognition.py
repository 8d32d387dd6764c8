"""Which model a source is: the main one where there is one, else an auxiliary one, e.g. a text encoder."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..api.contexts import SourceTensors
from ..api.models import ModelAdapter
from ..plugins.attribution import call_each, owned_by_any
from ..plugins.registry import Registry
from .checkpoint import Checkpoint
from .files import NothingKnown, open_checkpoint


def open_source(
    path: str | os.PathLike[str],
    adapters: Sequence[ModelAdapter],
    skipped: list[str],
    *,
    format: str | None = None,
    registry: Registry | None = None,
) -> Checkpoint:
    """What an adapter knows of a folder, a file or an index, as ``open_checkpoint``. skipped: gets plugins' faults."""
    main = [adapter for adapter in adapters if not adapter.auxiliary]
    try:
        return open_checkpoint(path, format=format, registry=registry, owns_key=owned_by_any(main or adapters, skipped))
    except NothingKnown:
        if not main or len(main) == len(adapters):
            raise
        return open_checkpoint(path, format=format, registry=registry, owns_key=owned_by_any(adapters, skipped))


def recognisers(
    adapters: Sequence[ModelAdapter], tensors: SourceTensors, skipped: list[str]
) -> list[tuple[ModelAdapter, str]]:
    """The adapters that recognise a checkpoint, each with the variant; auxiliary ones only if no other does."""
    answers = call_each(adapters, lambda adapter: adapter.recognise(tensors), skipped)
    known = [(adapter, variant) for adapter, variant in answers if variant is not None]
    return [one for one in known if not one[0].auxiliary] or known
