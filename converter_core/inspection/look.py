"""Look at a checkpoint, or at all that lies in a folder as it was downloaded."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..api.calibration import inputs_of
from ..api.contexts import ModelFacts, SourceTensors
from ..api.models import ModelAdapter
from ..api.targets import Target
from ..calibration.file import is_calibration
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.files import NothingKnown, open_checkpoint
from ..checkpoint.recognition import open_source, recognisers
from ..checkpoint.roots import components_of
from ..errors import CheckpointError, Refused
from ..output.manifest import SUFFIX, parse_manifest
from ..planning import provenance, transcode
from ..planning.planner import source_tensors
from ..planning.transcode import Quantized
from ..plugins.attribution import attribute_errors, call_each
from ..plugins.registry import Registry, load_plugins
from ..recipe.load import make_plugin
from ..trusted import MANIFEST
from . import clues
from .values import FileSummary, Inspection, QuantizedSummary, TensorSummary


def inspect(path: str | os.PathLike[str], registry: Registry | None = None) -> Inspection:
    """A folder or file of weights, ours or a stranger's; one that no adapter knows too. CheckpointError if broken."""
    registry = load_plugins() if registry is None else registry
    adapters = [adapter() for adapter in registry.models.values() if not adapter.by_name]
    skipped: list[str] = []
    with attribute_errors(registry):
        there = components_of(Path(path), adapters, registry, skipped)
        parts = {one.name: _inspect(one.path, adapters, registry, []) for one in there if one.relative != "."}
        if any(not one.adapter.auxiliary and one.relative != "." for one in there):
            found = _root(str(path), parts)
        else:
            found = replace(_inspect(path, adapters, registry, skipped), components=parts)
    return replace(found, notes=(*found.notes, *skipped))


def _inspect(
    path: str | os.PathLike[str], adapters: Sequence[ModelAdapter], registry: Registry, skipped: list[str]
) -> Inspection:
    try:
        checkpoint = open_source(path, adapters, skipped, registry=registry)
    except NothingKnown:
        checkpoint = open_checkpoint(path, registry=registry)
    with checkpoint:
        return _describe(checkpoint, adapters, registry, skipped)


def _root(path: str, parts: Mapping[str, Inspection]) -> Inspection:
    """A folder that holds nothing but components."""
    config: dict[str, Any] = {}
    for part in parts.values():
        for key, value in part.runtime_config.items():
            old = config.get(key)
            config[key] = {**old, **value} if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    names = ", ".join(parts)
    steps = [f"look at each of its folders by itself: {names}"]
    if not any(part.quantized for part in parts.values()):
        steps = [
            f"convert the main models, or choose with --component NAME ({names}): model-converter convert "
            f"--source {path} --output DIR --scheme SCHEME"
        ]
    return Inspection(
        path=path,
        format="folder",
        model=None,
        variant=None,
        facts={},
        dtypes=dict(sum((Counter(part.dtypes) for part in parts.values()), Counter())),
        parameters=sum(part.parameters for part in parts.values()),
        bytes=sum(part.bytes for part in parts.values()),
        files=(),
        skipped=(),
        quantized=None,
        runtime_config=config,
        notes=(),
        tensors=(),
        problems=tuple(f"{name}: {problem}" for name, part in parts.items() for problem in part.problems),
        next_steps=tuple(steps),
        components=parts,
    )


def _describe(
    checkpoint: Checkpoint, adapters: Sequence[ModelAdapter], registry: Registry, skipped: list[str]
) -> Inspection:
    tensors = source_tensors(checkpoint)
    is_statistics = is_calibration(checkpoint.metadata)
    manifest = _manifest_of(checkpoint)
    target, found = _target_of(tensors, manifest, registry, skipped)
    if found is not None and target is not None:
        found = transcode.with_shapes(found, tensors, registry)
    original = transcode.unpacked(tensors, found) if found else tensors
    adapter, variant = next(iter(() if is_statistics else recognisers(adapters, original, skipped)), (None, None))
    foreign = set(adapter.foreign(original)) if adapter else set()
    found = transcode.without(found, foreign)
    weights = found.weights if found else {}
    facts = dict(adapter.describe(original)) if adapter else {}
    files = tuple(str(Path(file.path).absolute()) for file in checkpoint.files)
    model = ModelFacts(adapter.name if adapter else "", variant or "", facts, tensors.config, files)
    config = dict(target.runtime_config(model, weights, _absolute(checkpoint))) if target and found else {}
    names = [*(file.name for file in checkpoint.files), *checkpoint.skipped]
    problems = [*clues.of_files(names), *(adapter.problems(original) if adapter else ())]
    notes = [*checkpoint.notes, *(target.notes(weights) if target and found else ())]
    if is_statistics:
        notes.append(_of_statistics(tensors))
    elif adapter is None and found is None:
        notes += clues.of_unrecognised(tensors, adapters)
    if found is None:
        notes += clues.of_dtypes(tensors.without(foreign), checkpoint.location)
    held = Counter(map(checkpoint.file_of, tensors))
    name = adapter.name if adapter else None
    where = str(checkpoint.location)
    return Inspection(
        path=where,
        format=checkpoint.format,
        model=name,
        variant=variant,
        facts=facts,
        dtypes=dict(Counter(spec.dtype for spec in tensors.values())),
        parameters=sum(spec.numel for spec in original.values()),
        bytes=sum(spec.nbytes for spec in tensors.values()),
        files=tuple(FileSummary(file.name, file.size, held[file.name]) for file in checkpoint.files),
        skipped=checkpoint.skipped,
        quantized=_summary(found, checkpoint.metadata, manifest) if found else None,
        runtime_config=config,
        notes=tuple(notes),
        tensors=tuple(
            TensorSummary(key, spec.dtype, spec.shape, checkpoint.file_of(key)) for key, spec in tensors.items()
        ),
        problems=tuple(problems),
        next_steps=tuple(
            [clues.use_of_statistics(where)]
            if is_statistics
            else clues.next_steps(where, name, found is not None, bool(config), bool(problems))
        ),
    )


def _absolute(checkpoint: Checkpoint) -> str:
    path = checkpoint.location.path
    return str(checkpoint.location) if path is None else str(path.absolute())


def _manifest_of(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """What a manifest beside the files says of them; empty where there is none, or where it speaks of others."""
    names = {file.name for file in checkpoint.files}
    try:
        entries = checkpoint.root.entries() or ()
    except CheckpointError:
        return {}
    for manifest in (checkpoint.root / entry.name for entry in entries if entry.name.endswith(SUFFIX)):
        try:
            content = parse_manifest(manifest.content(MANIFEST), manifest)
        except CheckpointError:
            continue
        if names <= set(content.get("files", {})):
            return content
    return {}


def _target_of(
    tensors: SourceTensors, manifest: Mapping[str, Any], registry: Registry, skipped: list[str]
) -> tuple[Target | None, Quantized | None]:
    """The target that wrote them, as the manifest says it; else the one that finds the most of its own weights."""
    named = manifest.get("target")
    if isinstance(named, str) and named in registry.targets:
        try:
            target = make_plugin(registry.targets[named], _options(manifest))
        except Refused:
            target = registry.targets[named]()
        for _, found in call_each([target], lambda target: transcode.as_quantized(target, tensors), skipped):
            if found.weights:
                return target, found
    first = min(registry.targets.values(), key=lambda cls: not cls.default, default=None)
    best = transcode.recognise(tensors, registry, first(), skipped) if first else None
    return (best.dress, best) if best else (None, None)


def _options(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the target; empty where a manifest is not laid out as one."""
    value: Any = manifest
    for key in ("recipe", "target", "options"):
        value = value.get(key, {}) if isinstance(value, Mapping) else {}
    return value if isinstance(value, Mapping) else {}


def _summary(found: Quantized, metadata: Mapping[str, Any], manifest: Mapping[str, Any]) -> QuantizedSummary:
    formats = Counter(stored.format.name for stored in found.weights.values())
    options = _options(manifest) if manifest.get("target") == found.target else {}
    stored = found.weights.values()
    arrangement = {one.format.name: dict(one.arrangement) for one in stored if one.arrangement}
    return QuantizedSummary(found.target, dict(formats), provenance.load(metadata), arrangement, options)


def _of_statistics(tensors: SourceTensors) -> str:
    counts = [key for key in tensors if key.endswith(".count")]
    sampled = [spec.shape[0] for key, spec in tensors.items() if key.endswith(".tokens")]
    ranks = [spec.shape[0] for key, spec in tensors.items() if key.endswith(".factors")]
    tokens = f"up to {max(sampled)} tokens of each" if sampled else "no tokens"
    tokens += f" and factors of rank {max(ranks)}" if ranks else ""
    shared = len(inputs_of(tensors))
    return f"activation statistics of {len(counts)} inputs, which {shared} more layers share; {tokens}"
