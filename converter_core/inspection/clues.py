"""What the names and dtypes of a file betray, and what to do next."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from ..api.contexts import SourceTensors
from ..api.models import ModelAdapter
from ..api.values import TensorSpec
from ..checkpoint.recognition import recognisers
from ..errors import shown
from ..planning.prequantized import plain_casts, unread_scales
from ..storage.location import Location

_ADAPTER = re.compile(r"(.+?)[._](?:lora_(?:up|down|A|B|linear_layer)|lora\.(?:up|down)|hada_w|lokr_w|dora_scale)\b.*")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)")
MOST_PARTS = 3
"""Dotted parts of an unknown prefix that are tried."""


def of_unrecognised(tensors: SourceTensors, adapters: Sequence[ModelAdapter]) -> Iterator[str]:
    """What a checkpoint that no adapter knows may be."""
    adapted = [match[1] for key in tensors if (match := _ADAPTER.fullmatch(key))]
    if 2 * len(adapted) > len(tensors):
        yield (
            f"this is a LoRA or another adapter for {len(set(adapted))} layers, e.g. {shown(min(adapted))}, and no "
            "model by itself: give it as source.loras (--lora-path) of the conversion of the model it was made for"
        )
        return
    for prefix in unknown_prefixes(tensors):
        bare = tensors.with_tensors({key.removeprefix(prefix): spec for key, spec in tensors.items()})
        for adapter, variant in recognisers(adapters, bare, []):
            yield (
                f"without {shown(prefix)!r} before its names this is {adapter.name} {variant}; that prefix is not "
                "known here: write the file anew without it"
            )
            return


def unknown_prefixes(tensors: Mapping[str, TensorSpec]) -> Iterator[str]:
    """What most keys begin with, a part more at a time."""
    for count in range(1, MOST_PARTS + 1):
        heads = Counter(".".join(parts[:count]) for key in tensors if len(parts := key.split(".")) > count)
        if heads:
            head, times = heads.most_common(1)[0]
            if 2 * times > len(tensors):
                yield f"{head}."


def of_dtypes(tensors: SourceTensors, location: Location) -> Iterator[str]:
    """Weights of 8 bits that no target finds: with scales they cannot be read, without they are plain casts."""
    scaled = list(unread_scales(tensors, location))
    yield from scaled
    if not scaled:
        yield from plain_casts(tensors)


def of_files(names: Sequence[str]) -> Iterator[str]:
    """Shards that the names of the others count."""
    sets: dict[tuple[str, str, str], set[int]] = {}
    for name in names:
        if match := _SHARD.fullmatch(name):
            sets.setdefault((match[1], match[3], match[4]), set()).add(int(match[2]))
    for (stem, count, suffix), there in sets.items():
        missing = [number for number in range(1, min(int(count), 1000) + 1) if number not in there]
        if missing:
            named = ", ".join(shown(f"{stem}-{number:05d}-of-{count}{suffix}") for number in missing[:3])
            yield f"{len(missing)} of {int(count)} shards are missing: {named}{' ...' if len(missing) > 3 else ''}"


def use_of_statistics(path: str) -> str:
    return f"convert with it: model-converter convert ... --set source.calibration={shown(path)}"


def next_steps(path: str, model: str | None, quantized: bool, has_config: bool, problems: bool) -> Iterator[str]:
    """What one types next."""
    if problems:
        yield "get what is missing or damaged (see the problems), then look again"
    elif quantized:
        if has_config:
            yield f"to paste into the runtime's configuration: model-converter inspect {shown(path)} --runtime-config"
        yield f"check it against its source: model-converter verify {shown(path)} --against SOURCE"
    elif model:
        yield (
            f"convert it: model-converter convert --source {shown(path)} --output DIR --scheme SCHEME "
            "(model-converter plugins lists the schemes)"
        )
    else:
        yield (
            "if it is a model that no adapter knows: name a generic adapter (source.type) and choose weights by "
            "quantization.rules"
        )
