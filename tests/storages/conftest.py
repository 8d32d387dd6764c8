"""A bucket on loopback, and a conversion of a few kilobytes whose files still have many parts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import converter_core
from converter_core import Registry
from converter_core.api import ByteSource, Entry, RemoteFile, Writer
from converter_plugins.storages import _s3_writer, object_store
from converter_plugins.storages._obstore_writer import ObstoreWriter
from converter_plugins.storages.object_store import ObjectStore

from ..interfaces.conftest import Plugins, Tiny, tensors
from .s3 import BUCKET, S3, moto, proxied

PART = 2048
"""Bytes; S3 itself takes no part below 5 MiB but the last."""

_numbers = itertools.count()

Asking = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def served() -> Iterator[S3]:
    with moto() as port, proxied(port) as state:
        yield state


@pytest.fixture
def s3(served: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3:
    """With requests and faults of this test alone. State goes below tmp_path."""
    served.begin()
    for name, value in served.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(object_store, "_stores", {})
    monkeypatch.setattr(_s3_writer.S3Writer, "smallest_part", PART)
    monkeypatch.setattr(RemoteFile, "PAUSE", 0.01)
    return served


@pytest.fixture
def url(s3: S3) -> str:
    """A folder that nobody else has."""
    return f"s3://{BUCKET}/test-{next(_numbers)}/out"


class Whole(ObjectStore):
    """whole://: a bucket that takes whole files alone, as those of Google Cloud and Azure do here."""

    name = "whole"
    schemes = ("whole",)

    def open(self, url: str, /) -> ByteSource:
        return super().open(url.replace("whole://", "s3://"))

    def entries(self, url: str, /) -> Sequence[Entry] | None:
        return super().entries(url.replace("whole://", "s3://"))

    def writer(self, url: str, /) -> Writer:
        return ObstoreWriter(lambda url: object_store._store(url.replace("whole://", "s3://")))


@pytest.fixture(scope="session")
def plugins() -> Registry:
    return converter_core.load_plugins(extra=[Plugins(models=[Tiny], storages=[Whole])])


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    folder = tmp_path_factory.mktemp("tiny") / "source"
    (folder / "tokenizer").mkdir(parents=True)
    save_file(tensors(layers=6), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model": "tiny", "layers": 6}))
    (folder / "tokenizer" / "vocab.json").write_text('{"a": 0}')
    return folder


@pytest.fixture
def ask(tiny_source: Path) -> Asking:
    """ask(out, "int8", layout=..., overwrite=...) -> a recipe."""

    def make(out: object, method: str = "int8", layout: str = "by_block", **output: Any) -> dict[str, Any]:
        return {
            "source": {"path": str(tiny_source)},
            "quantization": {"method": method},
            "target": {"format": "plain", "layout": layout},
            "output": {"path": str(out), "name": "tiny", "copy_metadata": True, **output},
            "performance": {"device": "cpu", "num_workers": 2},
        }

    return make
