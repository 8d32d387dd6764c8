"""A conversion of a few kilobytes, so that it can be run thousands of times."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import converter_core
from converter_core import Registry

from ..interfaces.conftest import Plugins, Tiny, tensors


@pytest.fixture(scope="session")
def plugins() -> Registry:
    return converter_core.load_plugins(extra=[Plugins(models=[Tiny])])


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only. A side file has the name of the journal, another lies in a folder."""
    folder = tmp_path_factory.mktemp("tiny") / "source"
    (folder / "tokenizer").mkdir(parents=True)
    save_file(tensors(), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model": "tiny", "layers": 2}))
    (folder / "tokenizer" / "vocab.json").write_text('{"a": 0}')
    (folder / "journal.jsonl").write_text('{"fingerprint": "the user\'s own"}')
    return folder


Asking = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(tiny_source: Path, tmp_path: Path) -> Asking:
    """ask("int8", out=..., layout=..., overwrite=...) -> a recipe."""

    def make(
        method: str = "int8", out: Path | None = None, layout: str = "by_block", overwrite: bool = False, **output: Any
    ) -> dict[str, Any]:
        chunks = {"chunk_size": 2} if layout == "chunked" else {}
        section = {"path": str(out or tmp_path / "out"), "name": "tiny", "copy_metadata": True, "overwrite": overwrite}
        return {
            "source": {"path": str(tiny_source)},
            "quantization": {"method": method},
            "target": {"format": "plain", "layout": layout, **chunks},
            "output": section | output,
            "performance": {"device": "cpu", "num_workers": 1},
        }

    return make
