"""The adapter for models that nobody knows."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from converter_core import CheckpointError, ConverterError, convert, inspect, make_plan


@pytest.fixture
def strange(tmp_path):
    generator = torch.Generator().manual_seed(5)
    tensors = {
        "stage.0.mix.weight": torch.randn(32, 64, generator=generator),
        "stage.0.mix.bias": torch.randn(32, generator=generator),
        "stage.1.mix.weight": torch.randn(32, 64, generator=generator),
        "embed.table": torch.randn(8, 8, generator=generator),
        "readout.weight": torch.randn(16, 32, generator=generator),
        "conv.weight": torch.randn(4, 3, 2, 2, generator=generator),
        "steps": torch.arange(6).reshape(2, 3),
    }
    save_file(tensors, tmp_path / "strange.safetensors")
    return tmp_path / "strange.safetensors", tensors


def recipe(path, output, **more):
    return {"source": {"path": str(path), "type": "any"}, "output": {"path": str(output), "name": "made"}, **more}


@pytest.mark.parametrize("target", ["lightx2v", "plain"])
def test_rules_choose_and_the_rest_is_copied(strange, tmp_path, target):
    path, tensors = strange
    rules = {"rules": [{"match": "stage.*", "method": "int8"}]}
    convert(recipe(path, tmp_path / "o", quantization=rules, target={"format": target}))
    made = load_file(tmp_path / "o" / "made.safetensors")
    quantized = {"stage.0.mix.weight", "stage.1.mix.weight"}
    assert set(made) == {*tensors, *(f"{name}_scale" for name in quantized)}
    assert {name for name, tensor in made.items() if tensor.dtype == torch.int8} == quantized
    assert all(torch.equal(made[name], tensors[name]) for name in set(tensors) - quantized)
    assert inspect(tmp_path / "o").quantized.formats == {"int8": 2}


def test_without_rules_there_is_nothing_to_do(strange, tmp_path):
    with pytest.raises(ConverterError, match="int8 has nothing to quantize here"):
        make_plan(recipe(strange[0], tmp_path / "o", quantization={"method": "int8"}))


def test_it_is_never_taken_unasked(strange, tmp_path):
    with pytest.raises(ConverterError, match="no model adapter recognises it"):
        make_plan({"source": {"path": str(strange[0])}, "output": {"path": str(tmp_path / "o")}})
    assert inspect(strange[0]).model is None


def test_blocks_are_told_by_the_first_number(strange, tmp_path):
    made = recipe(strange[0], tmp_path / "o", target={"layout": "by_block", "format": "plain"})
    with make_plan(made) as plan:
        assert sorted(plan.outputs[0].files) == [
            "block_0.safetensors",
            "block_1.safetensors",
            "non_block.safetensors",
        ]


def test_a_broken_file_stays_an_error(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError):
        make_plan(recipe(tmp_path / "x.safetensors", tmp_path / "o"))
