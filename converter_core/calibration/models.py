"""What is calibrated: a diffusers pipeline or a bare transformer, on prompts or on recorded calls."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint.files import open_checkpoint
from ..errors import CheckpointError, ConverterError, shown
from ..planning.stores import read_whole
from .statistics import Kept

PIPELINE, CONFIG = "model_index.json", "config.json"


@dataclass(frozen=True)
class CalibrationSettings:
    """Of the runs. None: what the pipeline does by itself.

    tokens: sampled of each input; None: 1024, or 128 beside factors. rank: of the factors that stand for the second
    moments of an input; 0: none.
    """

    seed: int = 0
    steps: int | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    tokens: int | None = None
    rank: int = 0

    @property
    def kept(self) -> Kept:
        return Kept(self.tokens, self.rank)


@dataclass(frozen=True)
class Run:
    """One prompt, or one file of recorded inputs. label: tells it from the others when a calibration is resumed."""

    label: str
    go: Callable[[], Any]


def opened(model: Any, device: str) -> Any:
    """A pipeline or a module; those that are given as objects stay where they are."""
    if not isinstance(model, str | Path):
        return model
    path = Path(model)
    try:
        import diffusers
    except ImportError:
        raise ConverterError("calibrate needs diffusers: pip install 'model-converter[calibrate]'") from None
    library: Any = diffusers
    try:
        if (path / PIPELINE).is_file():
            found = library.DiffusionPipeline.from_pretrained(path, torch_dtype=torch.bfloat16, local_files_only=True)
        elif (path / CONFIG).is_file():
            name = json.loads((path / CONFIG).read_text()).get("_class_name", "")
            cls = getattr(library, name, None)
            if cls is None:
                raise CheckpointError(f"{shown(path)}: its {CONFIG} names no model of diffusers ({name or 'none'})")
            found = cls.from_pretrained(path, torch_dtype=torch.bfloat16, local_files_only=True)
        else:
            raise CheckpointError(f"{shown(path)}: is no diffusers pipeline or model: it has no {PIPELINE} or {CONFIG}")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{shown(path)}: diffusers cannot load it: {str(error).splitlines()[0]}") from None
    return found.to(device)


def modules_of(model: Any) -> dict[str, nn.Module]:
    """The transformers that are calibrated, by the name of the component; a bare one has the empty name."""
    if isinstance(model, nn.Module):
        return {"": model}
    found = {
        name: one for name, one in vars(model).items() if name.startswith("transformer") and isinstance(one, nn.Module)
    }
    if not found:
        raise ConverterError(f"{type(model).__name__} has no transformer that could be calibrated")
    return found


def runs_of(
    model: Any, prompts: Sequence[str], inputs: Sequence[str | Path], settings: CalibrationSettings
) -> Iterator[Run]:
    """prompts: of a pipeline. inputs: files of the keyword arguments of a bare module as tensors, one for a call."""
    if isinstance(model, nn.Module):
        if not inputs:
            raise ConverterError("a bare transformer needs recorded inputs: files of its keyword arguments")
        for path in inputs:
            yield Run(Path(path).name, partial(_called, model, path))
        return
    if not prompts:
        raise ConverterError("a pipeline needs prompts: a file with one to a line")
    wanted: dict[str, Any] = {
        "num_inference_steps": settings.steps,
        "height": settings.height,
        "width": settings.width,
        "num_frames": settings.frames,
    }
    known = inspect.signature(type(model).__call__).parameters
    for name, value in wanted.items():
        if value is not None and name not in known:
            raise ConverterError(f"{type(model).__name__} takes no {name}")
    given: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    if "output_type" in known:
        given["output_type"] = "latent"  # the images themselves tell nothing
    for number, prompt in enumerate(prompts):

        def go(prompt: str = prompt, seed: int = settings.seed + number) -> Any:
            return model(prompt=prompt, generator=torch.Generator().manual_seed(seed), **given)

        yield Run(f"{number} {prompt}", go)


def _called(module: nn.Module, path: str | Path) -> Any:
    device = next(module.parameters()).device
    with open_checkpoint(path) as file:
        given = {name: read_whole(file, name) for name in file.tensors}
    return module(**{name: value.to(device) for name, value in given.items()})
