"""Canonical storage, named in one way, for any mix of schemes: to study, to exchange, to convert further."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from converter_core.api import (
    UNQUANTIZED,
    CheckpointError,
    Extras,
    ModelFacts,
    PlannedWeight,
    QuantFormat,
    SourceTensors,
    Stored,
    Target,
    WeightContext,
    hookimpl,
)

if TYPE_CHECKING:
    from converter_core.api import Parts

FORMATS_KEY = "plain.formats"
"""The entry of a file's metadata that maps, as JSON, the name of each quantized weight to its format."""

FACTS_KEY = "plain.format_facts"
"""The entry that says, as JSON, what each of those formats is."""


class Plain(Target):
    """Canonical parts as they are: ``X.weight``, ``X.weight_scale`` ...; any mix, formats named in the metadata."""

    name = "plain"
    any_scheme = True
    row_block = 1

    def key(self, context: WeightContext, role: str, /) -> str:
        return context.name if role == "weight" else f"{context.name}_{role}"

    def encode(self, context: WeightContext, parts: Parts, /) -> Parts:
        return parts

    def decode(self, context: WeightContext, stored: Parts, /) -> Parts:
        return stored

    def extras(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Extras:
        formats = {weight.name: weight.format for weight in weights if weight.format != UNQUANTIZED}
        facts = {format.name: format.facts() for format in formats.values()}
        return Extras(
            {
                FORMATS_KEY: _json({name: format.name for name, format in formats.items()}),
                **({FACTS_KEY: _json(facts)} if facts else {}),
            }
        )

    def detect(self, tensors: SourceTensors, /) -> Mapping[str, Stored]:
        """By the metadata alone; names whose weight is not in ``tensors`` (it is in another file) are passed over."""
        formats = _formats(tensors.metadata)
        keys = {name: {"weight": name} for name in formats if name in tensors}
        for key in tensors:
            # a part is called {name}_{role}; of names that begin alike the longest is meant
            names = [key[:at] for at, letter in enumerate(key) if letter == "_" and key[:at] in keys]
            if names and key not in keys:
                keys[names[-1]][key[len(names[-1]) + 1 :]] = key
        return {name: Stored(formats[name], roles) for name, roles in keys.items()}


def _formats(metadata: Mapping[str, Any]) -> dict[str, QuantFormat]:
    """Name of a weight -> its format."""
    names, facts = _entry(metadata, FORMATS_KEY), _entry(metadata, FACTS_KEY)
    if not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"metadata {FORMATS_KEY!r} must map names of weights to formats; the file is damaged")
    return {weight: QuantFormat.from_facts(name, facts.get(name)) for weight, name in names.items()}


def _entry(metadata: Mapping[str, Any], key: str) -> dict[str, Any]:
    try:
        content = json.loads(metadata.get(key, "{}"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"metadata {key!r} is not JSON ({error}); the file is damaged") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"metadata {key!r} must be a JSON object; the file is damaged")
    return content


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


@hookimpl
def converter_targets() -> Sequence[type[Target]]:
    return [Plain]
