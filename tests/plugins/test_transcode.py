"""A quantized source in another target's dress: the same codes and scales, and the first bytes on the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import converter_core
from converter_core.api.tensors import same
from converter_core.api.values import SyntheticCheckpoint
from converter_core.checkpoint.synthetic import write_synthetic
from converter_core.errors import PlanError
from converter_plugins.models.wan_dit import Structure, WanDit

from .targets import comfyui_reader as reader

TINY = Structure(dim=128, ffn_dim=160, num_layers=1, in_dim=16, text_dim=64, image_dim=0, image=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_synthetic(folder, SyntheticCheckpoint(TINY.inventory("BF16"), WanDit().synthetic().config), shards=1)
    return folder


def convert(source: Path, output: Path, method: str, target: str, **more: Any) -> dict[str, torch.Tensor]:
    options = more.pop("options", {})
    recipe = {
        "source": {"path": str(source)},
        "quantization": {"method": method, "options": options},
        "target": {"format": target, **more},
        "output": {"path": str(output)},
        "performance": {"device": "cpu", "num_workers": 1},
    }
    converter_core.convert(recipe)
    (path,) = output.glob("*.safetensors")
    return load_file(path)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(same(tensor, other[key]) for key, tensor in one.items())


@pytest.mark.parametrize("method", ["int8", "nvfp4", "mxfp8"])
@pytest.mark.parametrize("through", ["comfyui", "plain"])
def test_there_and_back(method: str, through: str, source: Path, tmp_path: Path) -> None:
    first = convert(source, tmp_path / "first", method, "lightx2v")
    there = convert(tmp_path / "first", tmp_path / "there", "none", through)
    assert not equal(first, there) or (method, through) == ("int8", "plain")
    assert equal(first, convert(tmp_path / "there", tmp_path / "back", "none", "lightx2v"))
    for output, against in (("there", "first"), ("back", "there"), ("there", "")):
        report = converter_core.verify(tmp_path / output, tmp_path / against if against else source)
        assert report.ok, (output, against, report.problems)


@pytest.mark.parametrize("method", ["int8", "fp8", "nvfp4", "mxfp8"])
def test_it_is_what_a_conversion_from_the_original_gives(method: str, source: Path, tmp_path: Path) -> None:
    options = {"scale_dtype": "bfloat16"} if method == "int8" else {"per_channel": False} if method == "fp8" else {}
    convert(source, tmp_path / "plain", method, "plain", options=options)
    transcoded = convert(tmp_path / "plain", tmp_path / "one", "none", "comfyui")
    if method == "fp8":
        options = {"scale_dtype": "bfloat16"}
    assert equal(transcoded, convert(source, tmp_path / "other", method, "comfyui", options=options))
    (path,) = (tmp_path / "one").glob("*.safetensors")
    assert len(reader.load(path).layers) == 10


def test_numbers_that_the_other_dress_cannot_hold_come_back(source: Path, tmp_path: Path) -> None:
    """Of float32 global scales that others write 1 in 6 is lost in 1 / (1 / G); of ComfyUI's 1 in 6 is no 1 / G."""
    lost = {"lightx2v": ("_global_scale", 900.1), "comfyui": ("_scale_2", 1.8e-3)}
    for first, other in (("lightx2v", "comfyui"), ("comfyui", "lightx2v")):
        suffix, value = lost[first]
        number = torch.tensor(value)
        while 1 / (1 / number) == number:
            number.view(torch.int32).add_(1)
        folder = tmp_path / first
        tensors = convert(source, folder, "nvfp4", first)
        (file,) = folder.glob("*.safetensors")
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        name = f"blocks.0.ffn.0.weight{suffix}"
        tensors[name] = number
        foreign = tmp_path / f"foreign-{first}"
        foreign.mkdir()
        save_file(tensors, foreign / "model.safetensors", metadata)
        there, third = tmp_path / f"there-{first}", tmp_path / f"third-{first}"
        convert(foreign, there, "none", other)
        convert(there, third, "none", "plain")
        for last in (there, third):
            back = tmp_path / f"back-{last.name}"
            assert equal(tensors, convert(last, back, "none", first)), (first, last.name)
            assert converter_core.verify(back, last).ok
            assert converter_core.verify(last, foreign).ok


def test_scales_in_full_float32_are_not_rounded_silently(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "comfyui", "int8", "comfyui")
    with pytest.raises(PlanError, match=r"scales in full float32.*for this target give the original checkpoint"):
        convert(tmp_path / "comfyui", tmp_path / "lightx2v", "none", "lightx2v")
    (path,) = (tmp_path / "comfyui").glob("*.safetensors")
    (tmp_path / "bare").mkdir()
    save_file(load_file(path), tmp_path / "bare" / "model.safetensors")  # without our metadata: nobody says
    with pytest.raises(PlanError, match="scales in full float32"):
        convert(tmp_path / "bare", tmp_path / "lightx2v", "none", "lightx2v")


def test_the_older_style_of_comfyui_in_the_newer_one(source: Path, tmp_path: Path) -> None:
    recipe: dict[str, Any] = {
        "source": {"path": str(source)},
        "quantization": {"method": "fp8"},
        "target": {"format": "comfyui", "options": {"style": "legacy"}},
        "output": {"path": str(tmp_path / "old")},
        "performance": {"device": "cpu"},
    }
    converter_core.convert(recipe)
    new = convert(tmp_path / "old", tmp_path / "new", "none", "comfyui")
    assert equal(new, convert(source, tmp_path / "direct", "fp8", "comfyui"))
    assert not [key for key in new if "scaled_fp8" in key]


def test_another_scheme_is_refused_and_both_ways_are_told(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "int8", "int8", "lightx2v")
    with pytest.raises(PlanError, match="give the original checkpoint, or use method: none, which keeps codes"):
        convert(tmp_path / "int8", tmp_path / "out", "nvfp4", "comfyui")


def test_verify_finds_a_changed_code(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "first", "int8", "lightx2v")
    tensors = convert(tmp_path / "first", tmp_path / "there", "none", "comfyui")
    tensors["blocks.0.ffn.0.weight"][3, 5] ^= 1
    (path,) = (tmp_path / "there").glob("*.safetensors")
    (tmp_path / "wrong").mkdir()
    save_file(tensors, tmp_path / "wrong" / path.name)
    report = converter_core.verify(tmp_path / "wrong", tmp_path / "first")
    assert [problem.tensor for problem in report.problems] == ["blocks.0.ffn.0.weight"]
