"""What a file for ComfyUI says of itself, and what files say that others have written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from converter_core.api import CheckpointError, PlannedWeight, QuantFormat, SourceTensors, Stored, TensorSpec

from ._comfyui_formats import ARRANGEMENT, FLOAT_SCALES, FORMATS, format_called, storage_of

MARKER = "comfy_quant"
"""The tensor beside a weight that names its format: UTF-8 of a JSON object."""

LEGACY_MARKER = "scaled_fp8"
"""Of the older style: 2 elements for a product in full precision, none for one in fp8."""

METADATA = "_quantization_metadata"
"""The header entry that names the format of every layer."""

OURS = "comfyui.formats"
"""The header entry, which no reader gives a meaning to, with the exact facts of formats and how their bytes lie."""

PREFIX = "model.diffusion_model."


def configuration(called: str, full_precision: bool) -> dict[str, Any]:
    """What stands in a marker, and in the metadata."""
    return {"format": called, **({"full_precision_matrix_mult": True} if full_precision else {})}


def announcement(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {METADATA: json.dumps({"format_version": "1.0", "layers": dict(sorted(layers.items()))})}


def provenance(weights: Mapping[str, PlannedWeight]) -> dict[str, str]:
    """The facts that ComfyUI's tensors do not tell: one entry for each format, weights by name under the rarer ones."""
    formats: dict[QuantFormat, list[str]] = {}
    shapes = {}
    for name, weight in sorted(weights.items()):
        formats.setdefault(weight.format, []).append(name)
        storage = storage_of(weight.format)
        if storage is not None and weight.spec.shape[0] % storage.rows:
            shapes[name] = list(weight.spec.shape)
    if not formats:
        return {}
    told = []
    for format, names in sorted(formats.items(), key=lambda item: (-len(item[1]), item[0].name)):
        storage = storage_of(format)
        called = storage.called if storage is not None else ""
        entry = {"name": format.name, "facts": format.facts(), "arrangement": dict(ARRANGEMENT.get(called, {}))}
        told.append({**entry, "weights": names} if len(formats) > 1 else entry)
    content: dict[str, Any] = {"formats": told, **({"shapes": shapes} if shapes else {})}
    return {OURS: json.dumps(content, sort_keys=True, separators=(",", ":"))}


class _Told:
    """What our own metadata says; nothing in files of others."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        content = _json(metadata, OURS)
        self.by_name: dict[str, QuantFormat] = {}
        self.of_all: QuantFormat | None = None
        self.arrangement: dict[str, Mapping[str, str]] = {}
        try:
            self.shapes = {name: tuple(map(int, shape)) for name, shape in content.get("shapes", {}).items()}
            for entry in content.get("formats", ()):
                format = QuantFormat.from_facts(entry["name"], entry["facts"])
                self.arrangement[format.name] = dict(entry["arrangement"])
                if "weights" in entry:
                    self.by_name.update(dict.fromkeys(entry["weights"], format))
                else:
                    self.of_all = format
        except (AttributeError, KeyError, TypeError, ValueError):
            raise CheckpointError(f"metadata {OURS!r} is not what this tool writes; the file is damaged") from None

    def exact(self, name: str, found: QuantFormat) -> QuantFormat:
        """The format in full, where what we say fits what the tensors say."""
        told = self.by_name.get(name, self.of_all)
        if told is None or storage_of(told) != storage_of(found) or told.granularity != found.granularity:
            return found
        return told

    def arranged(self, called: str, format: QuantFormat) -> Mapping[str, str]:
        """How the bytes lie; CheckpointError if the file says that they lie in a way that ComfyUI does not read."""
        known = ARRANGEMENT.get(called, {})
        told = self.arrangement.get(format.name, known)
        if dict(told) != dict(known):
            raise CheckpointError(f"metadata {OURS!r} says {dict(told)} of {format}; ComfyUI reads {dict(known)}")
        return known


def detect(tensors: SourceTensors) -> dict[str, Stored]:
    """By the marker tensors, else by the metadata, else by the marker of the older style."""
    told = _Told(tensors.metadata)
    found: dict[str, Stored] = {}
    for stem, called, legacy in _layers(tensors):
        name = f"{stem}.weight"
        ends = ("scale_weight", "", "scale_input") if legacy else ("weight_scale", "weight_scale_2", "input_scale")
        keys = {"weight": name}
        for role, end in zip(("scale", "global_scale", "input_absmax"), ends, strict=True):
            if end and f"{stem}.{end}" in tensors:
                keys[role] = f"{stem}.{end}"
        if f"{stem}.{MARKER}" in tensors:
            keys[MARKER] = f"{stem}.{MARKER}"
        if "scale" not in keys or name not in tensors or f"{stem}.pre_quant_scale" in tensors:
            continue
        format = format_called(called, tensors[keys["scale"]])
        if format is None or not _fits(format, tensors, keys):
            continue
        bare = name.removeprefix(PREFIX)
        exact = told.exact(bare, _with_scale(format, tensors[keys["scale"]]))
        found[name] = Stored(exact, keys, told.shapes.get(bare), told.arranged(called, format))
    return found


def markers(tensors: SourceTensors) -> Iterator[str]:
    """Those of the older style, which belong to no weight."""
    return (key for prefix in ("", PREFIX) if (key := prefix + LEGACY_MARKER) in tensors)


def notes(weights: Mapping[str, Stored]) -> Iterator[str]:
    """Of formats by the version that reads them, and of bytes that lie in a way no tensor shows."""
    names = {stored.format.name for stored in weights.values()}
    needed = {storage.called: storage.since for format, storage in FORMATS.items() if format.name in names}
    if needed:
        listed = ", ".join(f"{called} (ComfyUI {since} or newer)" for called, since in needed.items())
        yield f"put the file into ComfyUI/models/diffusion_models; it holds {listed}"


def _layers(tensors: SourceTensors) -> Iterator[tuple[str, str, bool]]:
    """(layer with its prefix, ComfyUI's name of its format, whether in the older style)."""
    seen = set()
    for key in tensors:
        stem, _, leaf = key.rpartition(".")
        if leaf == MARKER and (called := _called(tensors, key)):
            seen.add(stem)
            yield stem, called, False
    layers = _json(tensors.metadata, METADATA).get("layers", {})
    for layer, conf in layers.items() if isinstance(layers, dict) else ():
        stem = next((one for one in (layer, PREFIX + layer) if f"{one}.weight" in tensors), "")
        if stem and stem not in seen and (called := _named(conf)):
            seen.add(stem)
            yield stem, called, False
    if METADATA in tensors.metadata:
        return
    for prefix in ("", PREFIX):
        if prefix + LEGACY_MARKER in tensors:
            for key in tensors:
                if key.startswith(prefix) and key.endswith(".scale_weight"):
                    yield key.removesuffix(".scale_weight"), "float8_e4m3fn", True
            return


def _called(tensors: SourceTensors, key: str) -> str:
    """What a marker says; empty if it cannot be read here, or says nothing."""
    try:
        content = json.loads(bytes(tensors.read(key).tolist()))
    except (ValueError, RecursionError, TypeError):
        return ""
    return _named(content)


def _named(conf: Any) -> str:
    """The format that a configuration names; empty for codes of a weight that was rotated before it was rounded."""
    if not isinstance(conf, dict) or not isinstance(conf.get("format"), str):
        return ""
    more = conf.get("params")
    rotated = conf.get("convrot") or (isinstance(more, dict) and more.get("convrot"))
    return "" if rotated else str(conf["format"])


def _fits(format: QuantFormat, tensors: SourceTensors, keys: Mapping[str, str]) -> bool:
    """Whether the tensors are what ComfyUI's loader takes as this format."""
    storage = storage_of(format)
    weight, scale = tensors[keys["weight"]], tensors[keys["scale"]]
    if storage is None or weight.dtype != storage.weight or len(weight.shape) != 2:
        return False
    if storage.block == 16 and "global_scale" not in keys:
        return False
    if storage.block:
        return scale.dtype in (format.scale_dtype, "U8") and scale.shape == storage.scales(weight)
    return scale.dtype in FLOAT_SCALES and scale.shape in ((), (1,), (weight.shape[0], 1))


def _with_scale(format: QuantFormat, scale: TensorSpec) -> QuantFormat:
    """The format with scales of that header dtype, where they are no blocks'; nobody says that they are rounded."""
    if format.granularity in ("row", "tensor"):
        format = replace(format, scale_dtype=scale.dtype)
    rounded = scale.dtype in ("BF16", "F16") or format.scale_dtype == "F8_E8M0"
    return format if rounded else replace(format, scale_precision="F32")


def _json(metadata: Mapping[str, Any], key: str) -> dict[str, Any]:
    """An entry of the metadata; empty if there is none. CheckpointError if it is no JSON object."""
    try:
        content = json.loads(metadata.get(key, "{}"))
    except (ValueError, RecursionError, TypeError) as error:
        raise CheckpointError(f"metadata {key!r} is not JSON ({error}); the file is damaged") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"metadata {key!r} must be a JSON object; the file is damaged")
    return content


__all__ = ["LEGACY_MARKER", "MARKER", "announcement", "configuration", "detect", "notes", "provenance"]
