"""Fixtures shared by all: small checkpoints with real names, and a registry."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from converter_core.checkpoint.synthetic import write_synthetic
from converter_core.plugins.registry import Registry, load_plugins
from converter_plugins.models.wan_dit import WanDit


@pytest.fixture(scope="session")
def registry() -> Registry:
    return load_plugins()


@pytest.fixture(scope="session")
def wan_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Wan2.1-I2V: bf16, three shards cut anywhere, index, config.json, a tokenizer file; read only."""
    folder = tmp_path_factory.mktemp("wan") / "Wan2.1-I2V"
    write_synthetic(folder, WanDit().synthetic())
    return folder


@pytest.fixture
def asked(wan_source: Path, tmp_path: Path) -> Any:
    """asked(method, **{"target.layout": ...}) -> a recipe as a mapping, from wan_source to tmp_path/out."""

    def make(method: str = "int8", **keys: Any) -> dict[str, dict[str, Any]]:
        recipe: dict[str, dict[str, Any]] = {
            "source": {"path": str(wan_source)},
            "quantization": {"method": method},
            "output": {"path": str(tmp_path / "out"), "name": "wan"},
            "target": {},
            "performance": {"device": "cpu"},
        }
        for key, value in keys.items():
            section, _, name = key.partition(".")
            recipe[section][name] = value
        return recipe

    return make


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """installed("acme-quant", {"acme": "module"}, folder=...) puts a distribution on the path, as pip would.

    ``module="source"`` writes modules; ``folder`` has them already.
    """
    before = set(sys.modules)

    def install(name: str, points: dict[str, str], folder: Path | None = None, **modules: str) -> Path:
        site = tmp_path / f"site-{name}"
        info = site / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = "".join(f"{point} = {value}\n" for point, value in points.items())
        (info / "entry_points.txt").write_text(f"[converter_core]\n{lines}")
        for module, source in modules.items():
            (site / f"{module}.py").write_text(source)
        for path in (folder, site):
            if path is not None:
                monkeypatch.syspath_prepend(str(path))
        return site

    yield install
    for module in set(sys.modules) - before:
        file = getattr(sys.modules[module], "__file__", None) or ""
        if file.startswith(str(tmp_path)) or "examples" in file:
            del sys.modules[module]
