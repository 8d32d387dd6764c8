"""A small Wan and LoRAs for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import converter_core
from converter_core.checkpoint.synthetic import write_synthetic
from converter_core.planning.plan import Plan
from converter_core.plugins.registry import Registry
from converter_plugins.models._wan_inventory import Structure
from converter_plugins.models.wan_dit import WanDit

SMALL = Structure(dim=128, ffn_dim=192, num_layers=2, in_dim=36, text_dim=64, image_dim=64, image=True)


class SmallWan(WanDit):
    """The same model, two blocks of it."""

    def synthetic(self) -> converter_core.SyntheticCheckpoint:
        return converter_core.SyntheticCheckpoint(SMALL.inventory("BF16"))


def random(*shape: int, seed: int, dtype: torch.dtype = torch.bfloat16, scale: float = 0.05) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


@pytest.fixture(scope="session")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan")
    write_synthetic(folder, SmallWan().synthetic())
    return folder


@pytest.fixture(scope="session")
def weights(wan: Path) -> Mapping[str, Tensor]:
    return {key: tensor for file in wan.glob("*.safetensors") for key, tensor in load_file(file).items()}


@pytest.fixture
def lora(tmp_path: Path) -> Callable[..., Path]:
    """lora({key: tensor}, name="a", metadata={...}) -> the path of that file."""

    def write(tensors: Mapping[str, Tensor], name: str = "lora", metadata: Mapping[str, str] | None = None) -> Path:
        path = tmp_path / f"{name}.safetensors"
        save_file(dict(tensors), path, dict(metadata or {}))
        return path

    return write


@pytest.fixture
def recipe(wan: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """recipe(paths or sections of LoRAs, method) -> a mapping in the schema of the YAML file."""

    def make(loras: Sequence[Any], method: str = "none", output: str = "out", **source: Any) -> dict[str, Any]:
        sections = [one if isinstance(one, dict) else {"path": str(one)} for one in loras]
        return {
            "source": {"path": str(wan), "loras": sections, **source},
            "quantization": {"method": method},
            "target": {"format": "plain"},
            "output": {"path": str(tmp_path / output), "name": "x"},
            "performance": {"device": "cpu", "num_workers": 1},
        }

    return make


@pytest.fixture(scope="session")
def registry() -> Registry:
    return converter_core.load_plugins()


@pytest.fixture
def plan(recipe: Any, registry: Registry) -> Callable[..., Plan]:
    """plan(loras, ...) -> what these would do; the files stay open until the test ends."""
    return lambda loras, **more: converter_core.make_plan(recipe(loras, **more), registry)


@pytest.fixture
def merged(recipe: Any, registry: Registry, tmp_path: Path) -> Callable[..., dict[str, Tensor]]:
    """merged(loras) -> every tensor of the checkpoint with these merged, not quantized."""

    def make(loras: Sequence[Any], **source: Any) -> dict[str, Tensor]:
        output = f"merged{len(list(tmp_path.glob('merged*')))}"
        converter_core.convert(recipe(loras, output=output, **source), registry=registry)
        return load_file(tmp_path / output / "x.safetensors")

    return make
