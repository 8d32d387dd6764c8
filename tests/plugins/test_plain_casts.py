"""Weights that were only cast to fp8, without scales beside them, are ordinary values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import converter_core
from converter_core.api.tensors import same
from converter_core.api.values import SyntheticCheckpoint
from converter_core.checkpoint.synthetic import write_synthetic
from converter_core.engine.finite import check_finite
from converter_core.errors import ConversionError
from converter_plugins.models.wan_dit import Structure, WanDit

TINY = Structure(dim=128, ffn_dim=160, num_layers=1, in_dim=16, text_dim=64, image_dim=0, image=False)
Q = "blocks.0.self_attn.q.weight"


def is_linear(key: str) -> bool:
    return key.startswith("blocks.") and key.endswith(".weight") and "norm" not in key


def original(folder: Path) -> dict[str, Tensor]:
    write_synthetic(folder, SyntheticCheckpoint(TINY.inventory("BF16"), WanDit().synthetic().config), shards=1)
    return load_file(next(folder.glob("*.safetensors")))


def written(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(params=[torch.float8_e4m3fn, torch.float8_e5m2], ids=["e4m3", "e5m2"])
def cast(request: Any, tmp_path: Path) -> dict[str, Tensor]:
    tensors = original(tmp_path / "original")
    return {key: tensor.to(request.param) if is_linear(key) else tensor for key, tensor in tensors.items()}


def asked(source: Path, output: Path, method: str = "none", target: str = "lightx2v", **more: Any) -> dict[str, Any]:
    return {
        "source": {"path": str(source)},
        "quantization": {"method": method},
        "target": {"format": target, **more},
        "output": {"path": str(output), "name": "x"},
        "performance": {"device": "cpu", "num_workers": 1},
    }


def converted(*args: Any, **more: Any) -> dict[str, Tensor]:
    recipe = asked(*args, **more)
    converter_core.convert(recipe)
    report = converter_core.verify(recipe["output"]["path"], recipe["source"]["path"])
    assert report.ok, report.problems
    return load_file(Path(recipe["output"]["path"]) / "x.safetensors")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_code_that_is_no_number_is_found(dtype: torch.dtype) -> None:
    for code in range(256):
        tensor = torch.zeros(3, 5, dtype=torch.uint8)
        tensor[1, 2] = code
        tensor = tensor.view(dtype)
        if bool(tensor.float().isfinite().all()):
            check_finite(tensor, "w", 7)
        else:
            with pytest.raises(ConversionError, match=r"^w: -?(nan|inf) at \[8, 2\]"):
                check_finite(tensor, "w", 7)


@pytest.mark.parametrize(("method", "target"), [("int8", "lightx2v"), ("nvfp4", "plain")])
def test_schemes_give_what_they_give_of_the_same_values_in_bf16(
    method: str, target: str, cast: dict[str, Tensor], tmp_path: Path
) -> None:
    wide = {key: tensor.to(torch.bfloat16) for key, tensor in cast.items()}
    one, other = written(tmp_path / "cast", cast), written(tmp_path / "wide", wide)
    made = converted(one, tmp_path / "a", method, target)
    expected = converted(other, tmp_path / "b", method, target)
    assert made.keys() == expected.keys()
    assert all(same(made[key], expected[key]) for key in expected)


def test_copied_cast_and_said(cast: dict[str, Tensor], tmp_path: Path) -> None:
    source = written(tmp_path / "cast", cast)
    dtype = {torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"}[cast[Q].dtype]
    kept = converted(source, tmp_path / "kept")
    assert all(same(kept[key], tensor) for key, tensor in cast.items())
    wide = converted(source, tmp_path / "wide", dtype="float32")
    assert all(same(wide[key], tensor.float()) for key, tensor in cast.items())
    said = f"10 weights are plain casts to {dtype}, without scales"
    with converter_core.make_plan(asked(source, tmp_path / "o", "int8")) as plan:
        assert [note for note in plan.notes if said in note]
    assert [note for note in converter_core.inspect(source).notes if said in note]


def test_a_code_that_is_no_number_is_refused(cast: dict[str, Tensor], tmp_path: Path) -> None:
    cast[Q].view(torch.uint8)[3, 4] = 0xFF
    source = written(tmp_path / "cast", cast)
    for method in ("none", "int8"):
        with pytest.raises(ConversionError, match=rf"model.safetensors: '{Q}': -?nan at \[3, 4\]"):
            converter_core.convert(asked(source, tmp_path / method, method))


def test_gguf_gets_dtypes_that_it_has(cast: dict[str, Tensor], tmp_path: Path) -> None:
    cast["blocks.0.norm3.weight"] = cast["blocks.0.norm3.weight"].to(cast[Q].dtype)
    source = written(tmp_path / "cast", cast)
    converter_core.convert(asked(source, tmp_path / "out", target="gguf"))
    found = {one.name: one.tensor_type.name for one in gguf.GGUFReader(tmp_path / "out" / "x.gguf").tensors}
    assert (found[Q], found["blocks.0.norm3.weight"]) == ("BF16", "F32")


def test_a_lora_is_added_to_the_values(cast: dict[str, Tensor], tmp_path: Path) -> None:
    source = written(tmp_path / "cast", cast)
    down, up = torch.randn(2, 128), torch.randn(128, 2)
    stem = f"diffusion_model.{Q.removesuffix('.weight')}"
    save_file({f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}, tmp_path / "lora.safetensors")
    recipe = asked(source, tmp_path / "out", dtype="float32")
    recipe["source"]["loras"] = [{"path": str(tmp_path / "lora.safetensors")}]
    converter_core.convert(recipe)
    made = load_file(tmp_path / "out" / "x.safetensors")[Q]
    torch.testing.assert_close(made.double(), cast[Q].double() + up.double() @ down.double(), rtol=1e-6, atol=1e-6)
    recipe["source"]["lora_numerics"] = "lightx2v"
    with pytest.raises(converter_core.PlanError, match="in which lightx2v does not compute"):
        converter_core.make_plan(recipe)
