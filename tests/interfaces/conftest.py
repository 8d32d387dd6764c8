"""A small checkpoint of a made-up model, and a registry with plugins that only know the public interface."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import converter_core
from converter_core import ModelAdapter, Registry, SourceTensors, TensorRef, WeightInfo, hookimpl

DIM = 64


class Tiny(ModelAdapter):
    """``layers.N.up.weight`` [96, 64] with a bias, and ``norm.weight``."""

    name = "tiny"
    modules = ("up",)

    def owns_key(self, key: str) -> bool:
        return key.startswith("layers.") or key == "norm.weight"

    def recognise(self, tensors: SourceTensors) -> str | None:
        return "tiny" if "norm.weight" in tensors else None

    def weights(self, tensors: SourceTensors) -> Iterable[WeightInfo]:
        for key in tensors:
            kind = "linear" if key.endswith("up.weight") else "norm" if key == "norm.weight" else "bias"
            block = key.split(".")[1] if key.startswith("layers.") else ""
            yield WeightInfo(key, {"weight": TensorRef(key)}, kind, "up" if kind == "linear" else "", block)


class Plugins:
    """A plugin module by hand."""

    def __init__(self, **kinds: Sequence[type]) -> None:
        for kind, classes in kinds.items():
            hook = self._hook(classes)
            hook.__name__ = f"converter_{kind}"
            setattr(self, f"converter_{kind}", hookimpl(hook))

    @staticmethod
    def _hook(classes: Sequence[type]) -> Callable[[], list[type]]:
        def hook() -> list[type]:
            return list(classes)

        return hook


def tensors(seed: int = 0, layers: int = 2, rows: int = 96) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    found = {"norm.weight": 1 + 0.1 * torch.randn(DIM, generator=draw)}
    for layer in range(layers):
        found[f"layers.{layer}.up.weight"] = torch.randn(rows, DIM, generator=draw) * 0.05
        found[f"layers.{layer}.up.bias"] = torch.randn(rows, generator=draw) * 0.01
    return {key: tensor.to(torch.bfloat16) for key, tensor in found.items()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    save_file(tensors(), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model": "tiny", "layers": 2}))
    return folder


@pytest.fixture
def load() -> Callable[..., Registry]:
    """load(targets=[Mine], ...) -> the installed plugins and these."""

    def make(**kinds: Sequence[type]) -> Registry:
        kinds.setdefault("models", [Tiny])
        return converter_core.load_plugins(extra=[Plugins(**kinds)])

    return make


@pytest.fixture
def recipe(source: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """recipe("int8", "mine", layout="chunked") -> a mapping in the schema of the YAML file."""

    def make(method: str, target: str, options: Mapping[str, Any] | None = None, **section: Any) -> dict[str, Any]:
        return {
            "source": {"path": str(source)},
            "quantization": {"method": method, "options": dict(options or {})},
            "target": {"format": target, **section},
            "output": {"path": str(tmp_path / "out"), "name": "tiny"},
            "performance": {"device": "cpu", "num_workers": 2},
        }

    return make
