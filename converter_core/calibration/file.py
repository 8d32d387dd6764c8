"""Calibration files on the disk."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..api.calibration import HELD_OUT, inputs_of
from ..api.contexts import SourceTensors
from ..api.formats import UNQUANTIZED
from ..api.tensors import raw, spec_of
from ..api.values import OutputTensor, PlannedWeight, WeightInfo
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.files import open_checkpoint
from ..errors import CheckpointError, Refused, shown
from ..planning.stores import read_whole
from ..plugins.registry import load_plugins
from .statistics import Calibration, InputStatistics

FORMAT, VERSION = "calibration", "1"


def save(calibration: Calibration, path: str | os.PathLike[str]) -> None:
    """Written beside and renamed: a file of that name is always whole."""
    tensors: dict[str, Tensor] = {}
    for name, one in calibration.inputs.items():
        tensors |= {
            f"{name}.count": torch.tensor(one.count),
            f"{name}.absmax": torch.tensor(one.absmax),
            f"{name}.mean": (one.total / max(one.count, 1)).float(),
            f"{name}.mean_square": (one.squares / max(one.count, 1)).float(),
        }
        if len(one.tokens):
            tensors[f"{name}.tokens"] = one.tokens.contiguous()
        if len(one.factors):
            tensors[f"{name}.factors"] = one.factors / math.sqrt(_seen(one.count))
    layers = json.dumps(dict(sorted(calibration.layers.items())))
    metadata = {**calibration.told, "format": FORMAT, "version": VERSION, "inputs": layers}
    containers = load_plugins().containers
    placed = containers[containers.default()]().place([_planned(*one) for one in tensors.items()], metadata)
    partial = Path(f"{os.fspath(path)}.part")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(placed.header)
            for key, at in placed.offsets.items():
                file.seek(at)
                file.write(raw(tensors[key]))
        partial.replace(path)
    except OSError as error:
        raise CheckpointError(f"{shown(path)}: cannot be written ({error.strerror or error})") from None


def _planned(key: str, tensor: Tensor) -> PlannedWeight:
    spec = spec_of(tensor)
    return PlannedWeight(WeightInfo(key, {}), key, spec, UNQUANTIZED, (OutputTensor(key, "weight", spec),))


def load(path: str | os.PathLike[str]) -> Calibration:
    """CheckpointError if it is none, or lacks the counts that adding up needs."""
    with open_checkpoint(path) as file:
        if not is_calibration(file.metadata):
            raise CheckpointError(f"{shown(path)}: is no calibration file; its metadata says no format: {FORMAT}")
        try:
            layers = dict(inputs_of(SourceTensors(file.tensors, file.metadata)))
        except Refused:
            raise CheckpointError(f'{shown(path)}: its metadata "inputs" is no JSON object layer: input') from None
        names = [key.removesuffix(".count") for key in file.tensors if key.endswith(".count")]
        found = {name: _read(file, name, path) for name in names}
        others = {key: text for key, text in file.metadata.items() if key not in ("format", "version", "inputs")}
        return Calibration(found, layers, others)


def is_calibration(metadata: Mapping[str, str]) -> bool:
    return metadata.get("format") == FORMAT


def _read(file: Checkpoint, name: str, path: str | os.PathLike[str]) -> InputStatistics:
    def part(statistic: str) -> Tensor:
        key = f"{name}.{statistic}"
        if key not in file.tensors:
            raise CheckpointError(f"{shown(path)}: has {name}.count and no {shown(key)}")
        return read_whole(file, key)

    count = int(part("count"))
    mean, mean_square = part("mean").double(), part("mean_square").double()
    tokens = factors = torch.empty(0, len(mean))
    if f"{name}.tokens" in file.tensors:
        tokens = part("tokens")
    if f"{name}.factors" in file.tensors:
        factors = part("factors") * math.sqrt(_seen(count))
    absmax = float(part("absmax"))
    return InputStatistics(count, absmax, mean * count, mean_square * count, tokens.to(torch.bfloat16), factors)


def _seen(count: int) -> float:
    """Of so many tokens, those that are in the factors."""
    return max(count, 1) * (1 - 1 / HELD_OUT)
