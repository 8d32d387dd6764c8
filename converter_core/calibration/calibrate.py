"""Run a model on prompts, gather what its layers multiply, and write it down after each of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ConverterError
from ..plugins.registry import Registry, load_plugins
from ..recipe.load import Recipe, load_recipe
from . import file
from .collect import Collector, memory_of
from .layers import layers_of
from .models import CalibrationSettings, Run, modules_of, opened, runs_of
from .statistics import Calibration, Kept

UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class CalibrationProgress:
    """done, total: runs. memory: bytes that the statistics take at the most, known before the first.

    label: of the run that comes next.
    """

    done: int
    total: int
    memory: int
    label: str


def calibrate(
    model: Any,
    output: str | os.PathLike[str],
    *,
    prompts: Sequence[str] = (),
    inputs: Sequence[str | Path] = (),
    settings: CalibrationSettings | None = None,
    recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    device: str = "cpu",
    progress: Callable[[CalibrationProgress], None] | None = None,
    registry: Registry | None = None,
) -> list[Path]:
    """Write the activation statistics of a model's linear layers; a file for each transformer, their paths.

    model: the folder of a diffusers pipeline or of a bare transformer, or such an object. prompts: for a pipeline.
    inputs: for a bare transformer, safetensors files of its keyword arguments, one for a call. recipe: gather for the
    layers that it quantizes only. A file is written after each of the runs, and the same call goes on after the last
    one that is in it. Raises ConverterError.
    """
    settings = settings or CalibrationSettings()
    pipeline = opened(model, device)
    modules = modules_of(pipeline)
    runs = list(runs_of(pipeline, prompts, inputs, settings))
    registry = registry or load_plugins()
    chosen = None if recipe is None else load_recipe(recipe, registry=registry)
    layers = {name: layers_of(module, registry, chosen) for name, module in modules.items()}
    for name, one in layers.items():
        if not one:
            raise ConverterError(f"{name or type(pipeline).__name__} has no linear layer that could be quantized")
    memory = sum(memory_of(module, layers[name], settings.kept) for name, module in modules.items())
    paths = {name: _path(Path(output), name, len(modules)) for name in modules}
    mark = json.dumps([asdict(settings), [run.label for run in runs], layers], sort_keys=True)
    found, done = _unfinished(paths, mark)
    for number, run in enumerate(runs):
        if progress is not None:
            progress(CalibrationProgress(number, len(runs), memory, run.label))
        if number >= done:
            _gather(run, modules, layers, found, settings.kept)
            for name, path in paths.items():
                told = {"mark": mark, "done": str(number + 1)}
                file.save(Calibration(found[name].inputs, found[name].layers, told), f"{path}{UNFINISHED}")
    for name, path in paths.items():
        told = {"made_of": f"{len(runs)} runs, {json.dumps(asdict(settings))}"}
        file.save(Calibration(found[name].inputs, found[name].layers, told), path)
        Path(f"{path}{UNFINISHED}").unlink(missing_ok=True)
    return list(paths.values())


def merge_calibrations(sources: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> None:
    """The statistics of several files of one model as if they had been gathered in one go. Raises ConverterError."""
    first, *others = [file.load(path) for path in sources]
    held = [one.kept() for one in (first, *others)]
    rank = max(one.rank for one in held)
    most = Kept(max(Kept(rank=rank).sampled, *(one.sampled for one in held)), rank)
    for path, other in zip(sources[1:], others, strict=True):
        try:
            first.add(other, most)
        except ValueError as error:
            raise ConverterError(f"{os.fspath(path)}: cannot be added to {os.fspath(sources[0])}: {error}") from None
    file.save(Calibration(first.inputs, first.layers), output)


def _gather(run: Run, modules: dict[str, nn.Module], layers: Any, found: dict[str, Calibration], kept: Kept) -> None:
    collectors = {name: Collector(module, layers[name], kept, run.label) for name, module in modules.items()}
    with torch.no_grad():
        for collector in collectors.values():
            collector.__enter__()
        try:
            run.go()
        finally:
            for collector in collectors.values():
                collector.__exit__()
    for name, collector in collectors.items():
        found[name].add(collector.finished(), kept)


def _unfinished(paths: dict[str, Path], mark: str) -> tuple[dict[str, Calibration], int]:
    """What an interrupted call has gathered, and after how many runs; nothing if it was another call."""
    found = {}
    counts = set()
    for name, path in paths.items():
        partial = Path(f"{path}{UNFINISHED}")
        if not partial.is_file():
            return {name: Calibration() for name in paths}, 0
        found[name] = file.load(partial)
        counts.add(found[name].told.get("done", "0") if found[name].told.get("mark") == mark else "0")
    if len(counts) > 1 or counts == {"0"}:
        return {name: Calibration() for name in paths}, 0
    return found, int(counts.pop())


def _path(output: Path, name: str, several: int) -> Path:
    return output if several == 1 else output.with_name(f"{output.stem}.{name}{output.suffix}")
