"""Our storages under the kit that authors of others use."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from converter_core.testing import StorageConformance, WriterConformance
from converter_plugins.storages import object_store
from converter_plugins.storages.local import Local
from converter_plugins.storages.object_store import ObjectStore

from .conftest import Whole
from .s3 import S3
from .server import served


def written(folder: Path, files: Mapping[str, bytes]) -> Path:
    here = Path(tempfile.mkdtemp(dir=folder))
    for name, content in files.items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_bytes(content)
    return here


class TestLocal(StorageConformance):
    storage = Local()

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def put(self, files: Mapping[str, bytes]) -> str:
        return str(written(self.folder, files))


class TestWeb(StorageConformance):
    storage = ObjectStore()
    lists = False

    @pytest.fixture(autouse=True)
    def _server(self, tmp_path: Path) -> Iterator[None]:
        self.folder = tmp_path
        with served(tmp_path) as state:
            self.url = state.url
            yield

    def put(self, files: Mapping[str, bytes]) -> str:
        return f"{self.url}/{written(self.folder, files).name}"


class TestBucket(StorageConformance):
    """Over the protocol of S3, of a server that obstore is led to as it would be to a company's own."""

    storage = ObjectStore()

    @pytest.fixture(autouse=True)
    def _server(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        self.folder = tmp_path
        monkeypatch.setattr(object_store, "_stores", {})
        with served(tmp_path) as state:
            for name, value in {
                "AWS_ENDPOINT_URL": state.url,
                "AWS_ALLOW_HTTP": "true",
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_REGION": "us-east-1",
            }.items():
                monkeypatch.setenv(name, value)
            yield

    def put(self, files: Mapping[str, bytes]) -> str:
        return f"s3://bucket/{written(self.folder, files).name}"


class TestS3Writer(WriterConformance):
    storage = ObjectStore()

    @pytest.fixture(autouse=True)
    def _url(self, s3: S3, url: str) -> None:
        self.url = url

    def folder(self) -> str:
        return self.url


class TestObstoreWriter(TestS3Writer):
    """As Google Cloud and Azure are written; over the protocol of S3, because that is what moto speaks."""

    storage = Whole()

    def folder(self) -> str:
        return self.url.replace("s3://", "whole://")
