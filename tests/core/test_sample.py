"""Made-up checkpoints: read back by the official library, seeded, and cut where it hurts."""

from __future__ import annotations

import json
from contextlib import closing

import pytest
import torch
from safetensors.torch import load_file

from converter_core.api.local_file import LocalFile
from converter_core.api.values import SyntheticCheckpoint, TensorSpec
from converter_core.checkpoint.synthetic import write_headers_only, write_synthetic
from converter_plugins.containers.safetensors import Safetensors

INDEX = "diffusion_pytorch_model.safetensors.index.json"


def small(layers=3):
    tensors = {"patch.weight": TensorSpec("BF16", (64, 4, 1, 2, 2)), "patch.bias": TensorSpec("BF16", (64,))}
    for number in range(layers):
        tensors[f"blocks.{number}.linear.weight"] = TensorSpec("BF16", (64, 128))
        tensors[f"blocks.{number}.linear.bias"] = TensorSpec("BF16", (64,))
        tensors[f"blocks.{number}.norm.weight"] = TensorSpec("BF16", (64,))
    return SyntheticCheckpoint(tensors, {"dim": 64})


def load(paths):
    loaded = {}
    for path in paths:
        loaded |= load_file(path)
    return loaded


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_a_sharded_checkpoint_with_what_stands_beside_it(tmp_path, dtype):
    sample = small()
    paths = write_synthetic(tmp_path / "model", sample, dtype=dtype)
    assert [path.name for path in paths] == [
        f"diffusion_pytorch_model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)
    ]
    index = json.loads((tmp_path / "model" / INDEX).read_text())
    tensors = load(paths)
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == {
        key: spec.shape for key, spec in sample.tensors.items()
    }
    kinds = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    assert {tensor.dtype for tensor in tensors.values()} == {kinds[dtype]}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert index["weight_map"] == {key: path.name for path in paths for key in load_file(path)}
    assert json.loads((tmp_path / "model" / "config.json").read_text()) == {"dim": 64}
    assert "tokenizer_class" in json.loads((tmp_path / "model/tokenizer/tokenizer_config.json").read_text())


def test_shards_cut_blocks(tmp_path):
    write_synthetic(tmp_path, small())
    files = {}
    for key, file in json.loads((tmp_path / INDEX).read_text())["weight_map"].items():
        files.setdefault(".".join(key.split(".")[:2]), set()).add(file)
    assert [block for block, names in files.items() if len(names) > 1] == ["blocks.0", "blocks.1"]


def test_values_are_like_those_of_a_trained_model(tmp_path):
    tensors = load(
        write_synthetic(tmp_path, SyntheticCheckpoint({"x.weight": TensorSpec("F32", (256, 512))}), dtype="F32")
    )
    weight = tensors["x.weight"]
    assert weight.eq(0).float().mean() < 1e-4
    rows = weight.abs().median(dim=1).values
    assert rows.max() / rows.min() > 3
    assert (weight.abs().amax(dim=1) / weight.std(dim=1)).max() > 6
    norm = load(write_synthetic(tmp_path / "b", small()))["blocks.0.norm.weight"].float()
    assert (norm.mean() - 1).abs() < 0.1
    assert norm.std() > 0.02


def test_values_depend_on_seed_and_name_alone(tmp_path):
    first = load(write_synthetic(tmp_path / "a", small(), shards=3))
    again = load(write_synthetic(tmp_path / "b", small(), shards=1))
    other = load(write_synthetic(tmp_path / "c", small(), seed=1))
    respelt = load(write_synthetic(tmp_path / "d", small(), rename=lambda name: f"model.{name}"))
    assert not (tmp_path / "b" / INDEX).exists()
    assert (tmp_path / "b" / "diffusion_pytorch_model.safetensors").exists()
    for key, tensor in first.items():
        assert torch.equal(tensor, again[key])
        assert torch.equal(tensor, respelt[f"model.{key}"])
        assert not torch.equal(tensor, other[key])
    assert not torch.equal(first["blocks.0.linear.weight"], first["blocks.1.linear.weight"])


def test_headers_only_have_the_full_length_and_take_no_disk(tmp_path):
    tensors = {f"blocks.{number}.weight": TensorSpec("F32", (20_000, 50_000)) for number in range(9)}
    paths = write_headers_only(tmp_path, tensors, shards=4)
    assert len(paths) == 4
    found = {}
    for path in paths:
        with closing(LocalFile(path)) as source:
            found |= Safetensors().read(source).tensors
        assert path.stat().st_blocks * 512 < 1 << 20
    assert found == tensors
    assert sum(path.stat().st_size for path in paths) > 9 * 4_000_000_000
    assert len(json.loads((tmp_path / INDEX).read_text())["weight_map"]) == 9
