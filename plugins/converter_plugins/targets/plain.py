"""Canonical storage, named in one way, for any mix of schemes: to study, to exchange, to convert further."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from converter_core.errors import CheckpointError
from converter_core.hookspecs import hookimpl
from converter_core.interfaces import Target
from converter_core.specs import Extras, PlannedWeight, Stored, TensorSpec

if TYPE_CHECKING:
    from converter_core.specs import Parts

FORMATS_KEY = "plain.formats"
"""The entry of a file's metadata that maps, as JSON, the name of each quantized weight to its format."""


class Plain(Target):
    """Canonical parts as they are: ``X.weight``, ``X.weight_scale`` ...; any mix, formats named in the metadata."""

    name = "plain"
    row_tile = 1

    def key(self, name: str, role: str) -> str:
        return name if role == "weight" else f"{name}_{role}"

    def encode(self, format: str, parts: Parts, /) -> Parts:
        return parts

    def decode(self, format: str, stored: Parts, /) -> Parts:
        return stored

    def extras(self, weights: Sequence[PlannedWeight], /) -> Extras:
        formats = {weight.name: weight.format for weight in weights if weight.format != "none"}
        return Extras({FORMATS_KEY: json.dumps(formats, sort_keys=True, separators=(",", ":"))})

    def scan(self, tensors: Mapping[str, TensorSpec], metadata: Mapping[str, str], /) -> Mapping[str, Stored]:
        """By the metadata alone; names whose weight is not in ``tensors`` (it is in another file) are passed over."""
        formats = _formats(metadata.get(FORMATS_KEY, "{}"))
        keys = {name: {"weight": name} for name in formats if name in tensors}
        for key in tensors:
            # a part is called {name}_{role}; of names that begin alike the longest is meant
            names = [key[:at] for at, letter in enumerate(key) if letter == "_" and key[:at] in keys]
            if names and key not in keys:
                keys[names[-1]][key[len(names[-1]) + 1 :]] = key
        return {name: Stored(formats[name], roles) for name, roles in keys.items()}


def _formats(text: str) -> dict[str, str]:
    try:
        formats = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"metadata {FORMATS_KEY!r} is not JSON ({error}); the file is damaged") from None
    if not isinstance(formats, dict) or not all(isinstance(format, str) for format in formats.values()):
        raise CheckpointError(f"metadata {FORMATS_KEY!r} must map names of weights to formats; the file is damaged")
    return formats


@hookimpl
def converter_targets() -> Sequence[type[Target]]:
    return [Plain]
