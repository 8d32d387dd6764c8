"""Checkpoints that lie elsewhere, over real HTTP: the same bytes as from a disk, and nothing staged."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import converter_core
from converter_core import CheckpointError, ConverterError, load_plugins
from converter_core.api import RemoteFile
from converter_core.checkpoint.files import open_checkpoint
from converter_core.checkpoint.synthetic import write_synthetic
from converter_plugins.models.wan_dit import WanDit

from .server import Served, served

INDEX = "diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote")
    write_synthetic(folder / "wan", WanDit().synthetic(), shards=3)
    save_file({"a": torch.arange(300_000, dtype=torch.int32)}, folder / "large.safetensors")
    return folder


@pytest.fixture
def server(source: Path) -> Iterator[Served]:
    with served(source) as state:
        yield state


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RemoteFile, "PAUSE", 0.01)


def recipe(path: str, output: Path, **target: Any) -> dict[str, Any]:
    return {
        "source": {"path": path},
        "quantization": {"method": "int8"},
        "target": {"layout": "by_block", **target},
        "output": {"path": str(output), "name": "wan"},
        "performance": {"device": "cpu", "num_workers": 2},
    }


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_a_conversion_over_https_gives_the_same_bytes(server: Served, source: Path, tmp_path: Path) -> None:
    url = f"{server.url}/wan/{INDEX}"
    converter_core.convert(recipe(str(source / "wan"), tmp_path / "local"))
    server.failures += ["503", "cut", "503"]
    converter_core.convert(recipe(url, tmp_path / "remote"))
    assert server.failures == []
    assert weights(tmp_path / "remote") == weights(tmp_path / "local")
    assert converter_core.verify(tmp_path / "remote", url).ok
    again = converter_core.convert(recipe(url, tmp_path / "remote"))
    assert again.outputs[0].status == "already done"
    seen = converter_core.inspect(url)
    assert (seen.path, seen.model, seen.format) == (url, "wan_dit", "safetensors")
    assert seen.dtypes == converter_core.inspect(source / "wan").dtypes


def test_a_plan_moves_headers_only(server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RemoteFile, "HEAD", 4 << 10)
    with converter_core.make_plan(recipe(f"{server.url}/wan/{INDEX}", tmp_path / "out")) as plan:
        total = sum(file.size for file in plan.checkpoint.files)
    assert server.sent < total / 10, (server.sent, total)


def test_large_reads_go_in_pieces(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RemoteFile, "PIECE", 100_000)
    monkeypatch.setattr(RemoteFile, "HEAD", 1000)
    server.failures += ["cut"] * 3
    with open_checkpoint(f"{server.url}/large.safetensors") as checkpoint:
        into = bytearray(checkpoint.tensors["a"].nbytes)
        checkpoint.read("a", 0, memoryview(into))
        assert bytes(into) == torch.arange(300_000, dtype=torch.int32).numpy().tobytes()
        assert sum("bytes=" in line for line in server.requests) >= 12
        checkpoint.check_unchanged()


def test_a_file_that_changes_while_it_is_read(server: Served, source: Path) -> None:
    path = source / "changing.safetensors"
    save_file({"a": torch.zeros(200_000)}, path)
    with open_checkpoint(f"{server.url}/changing.safetensors") as checkpoint:
        save_file({"a": torch.ones(200_000)}, path)
        with pytest.raises(CheckpointError, match=r"changing\.safetensors: was replaced while it was read"):
            checkpoint.read("a", 400_000, memoryview(bytearray(300_000)))
        with pytest.raises(CheckpointError, match="was replaced while it was read"):
            checkpoint.check_unchanged()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/wan/nothing.safetensors", "nothing.safetensors: cannot be opened"),
        ("/wan", "a web server does not list its folders; give the URL of a file of weights, or of the index"),
        ("/wan/config.json", "is JSON text and holds no weights"),
    ],
)
def test_what_cannot_be_opened(server: Served, path: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(server.url + path)


def test_a_server_that_is_down_is_told(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RemoteFile, "HEAD", 100)
    monkeypatch.setattr(RemoteFile, "ATTEMPTS", 2)
    with open_checkpoint(f"{server.url}/large.safetensors") as checkpoint:
        server.failures += ["cut"] * 99
        with pytest.raises(CheckpointError, match=r"large\.safetensors: cannot be read, also after 2 attempts .*same"):
            checkpoint.read("a", 0, memoryview(bytearray(1000)))


def test_an_output_that_lies_elsewhere(server: Served, source: Path) -> None:
    out = source / "uploaded"
    asked = recipe(str(source / "wan"), out)
    asked["output"]["copy_metadata"] = True
    converter_core.convert(asked)
    url = f"{server.url}/uploaded/wan.manifest.json"
    report = converter_core.verify(url, f"{server.url}/wan/{INDEX}")
    assert (report.ok, report.manifest) == (True, url)
    assert report.weights
    assert report.structure.checksums == converter_core.verify(out).structure.checksums
    path = next(out.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (out / "tokenizer/tokenizer_config.json").unlink()
    found = {problem.file: problem.reason for problem in converter_core.verify(url).problems}
    assert path.name in found
    assert "cannot be opened" in found["tokenizer/tokenizer_config.json"]
    assert len(found) == 2
    alone = converter_core.verify(f"{server.url}/uploaded/{sorted(out.glob('*.safetensors'))[-1].name}")
    assert alone.status == "structure only"


def test_an_unknown_scheme_and_an_output_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(ConverterError, match="unknown scheme 'htps'; did you mean 'https'"):
        open_checkpoint("htps://bucket/x.safetensors")
    for url, words in {
        "hf://org/repo/out": "the hub is only read from; convert into a folder .* then: hf upload",
        "https://example.org/out": "a web server is only read from; convert into a folder",
        "s3://": "must be s3://BUCKET/FOLDER",
        "s3://bucket/out?versionId=1": "must be s3://BUCKET/FOLDER",
    }.items():
        with pytest.raises(ConverterError, match=rf"output\.path: {re.escape(url)}: {words}"):
            converter_core.make_plan(recipe(str(tmp_path), url))  # type: ignore[arg-type]


def test_a_file_url_is_a_path(source: Path) -> None:
    with open_checkpoint(f"file://{source}/wan") as checkpoint:
        assert checkpoint.root.path == source / "wan"


HUB = """
import json, sys
import converter_core
from converter_core.api import RemoteFile
RemoteFile.PAUSE = 0.01
recipe = json.loads(sys.argv[1])
for path in json.loads(sys.argv[2]):
    recipe["source"]["path"] = path
    result = converter_core.convert(recipe)
    print(json.dumps([result.outputs[0].status, converter_core.inspect(path).model]))
try:
    converter_core.inspect("hf://org/none")
except converter_core.CheckpointError as error:
    print(json.dumps(str(error)))
"""


def test_a_conversion_from_the_hub(server: Served, source: Path, tmp_path: Path) -> None:
    """In a process of its own: ``HF_ENDPOINT`` is read when the package is imported."""
    paths = ["hf://org/repo/wan", "hf://org/repo@main/wan"]
    arguments = [json.dumps(recipe("", tmp_path / "remote")), json.dumps(paths)]
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    environment["HF_HUB_DISABLE_TELEMETRY"] = "1"
    server.failures += ["503", "cut"]
    done = subprocess.run(
        [sys.executable, "-c", HUB, *arguments], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    *told, missing = map(json.loads, done.stdout.splitlines())
    assert told == [["done", "wan_dit"], ["already done", "wan_dit"]]
    assert "hf://org/none: cannot be read" in missing
    converter_core.convert(recipe(str(source / "wan"), tmp_path / "local"))
    assert weights(tmp_path / "remote") == weights(tmp_path / "local")
    assert not list((tmp_path / "home").rglob("*.safetensors"))


def test_a_run_goes_on_from_elsewhere(
    server: Served, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun with files on the disk, and finished with the same files at a URL: they are compared by checksums."""
    from converter_core.output.journal import Journal

    real, done = Journal.done, []

    def stop(self: Journal, weight: str, crc32: Any, sums: str) -> None:
        if len(done) == 20:
            raise KeyboardInterrupt
        real(self, weight, crc32, sums)
        done.append(weight)

    asked = recipe(str(source / "wan"), tmp_path / "remote")
    asked["performance"]["num_workers"] = 1
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Journal, "done", stop)
        converter_core.convert(asked)
    asked["source"]["path"] = f"{server.url}/wan/{INDEX}"
    assert converter_core.convert(asked).resumed["tensors"] == 20
    converter_core.convert(recipe(str(source / "wan"), tmp_path / "local"))
    assert weights(tmp_path / "remote") == weights(tmp_path / "local")
    fingerprints = {json.loads(path.read_text())["fingerprint"] for path in tmp_path.glob("*/wan.manifest.json")}
    assert len(fingerprints) == 1


OFFLINE = """
import json, sys
import converter_core
recipe = json.loads(sys.argv[1])
print(json.dumps([converter_core.convert(recipe).outputs[0].status]))
for url in ("hf://org/repo/none", "hf://org/other", "hf://org/repo@v2/wan"):
    try:
        converter_core.inspect(url)
    except converter_core.CheckpointError as error:
        print(json.dumps(str(error)))
"""


def test_offline_the_cache_is_all_there_is(source: Path, tmp_path: Path) -> None:
    """No server answers here."""
    home, commit = tmp_path / "home", "c0ffee" + "0" * 34
    repo = home / "hub/models--org--repo"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text(commit)
    (repo / "snapshots" / commit).mkdir(parents=True)
    (repo / "snapshots" / commit / "wan").symlink_to(source / "wan")
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    asked = json.dumps(recipe("hf://org/repo/wan", tmp_path / "offline"))
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, asked], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    told, *refused = map(json.loads, done.stdout.splitlines())
    assert told == ["done"]
    assert len(refused) == 3
    assert all("is not in the cache of the hub, and HF_HUB_OFFLINE is set" in one for one in refused)
    converter_core.convert(recipe(str(source / "wan"), tmp_path / "local"))
    assert weights(tmp_path / "offline") == weights(tmp_path / "local")


def test_without_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"needs the package obstore; install it with: .*object-store"):
        open_checkpoint("https://example.org/x.safetensors")
    with pytest.raises(ConverterError, match=r"output\.path: s3://.* needs the packages obstore and boto3; install it"):
        converter_core.make_plan(recipe("x", "s3://bucket/out"))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"needs the package huggingface_hub; .*model-converter\[hub\]"):
        open_checkpoint("hf://org/repo/x.safetensors")


def test_storages_are_plugins() -> None:
    assert {"local", "hub", "object_store"} <= set(load_plugins().storages)


@pytest.mark.parametrize("url", ["s3://models/wan", "https://host/wan.safetensors"])
def test_a_missing_package_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(CheckpointError, match=r"needs the package obstore; install it with: pip install"):
        open_checkpoint(url)
