"""``source.dequantize``: a quantized source as the values that its codes and scales stand for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import converter_core
from converter_core.api.tensors import same
from converter_core.api.values import SyntheticCheckpoint
from converter_core.checkpoint.synthetic import write_synthetic
from converter_core.errors import ConverterError, PlanError
from converter_plugins.models.wan_dit import Structure, WanDit

TINY = Structure(dim=128, ffn_dim=160, num_layers=1, in_dim=16, text_dim=64, image_dim=0, image=False)
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_synthetic(folder, SyntheticCheckpoint(TINY.inventory("BF16"), WanDit().synthetic().config), shards=1)
    return folder


def asked(source: Path, output: Path, method: str = "none", target: str = "plain", **more: Any) -> dict[str, Any]:
    loras, options = more.pop("loras", []), more.pop("options", {})
    max_memory, target_options = more.pop("max_memory", "1GiB"), more.pop("target_options", {})
    return {
        "source": {"path": str(source), "loras": loras},
        "quantization": {"method": method, "options": options},
        "target": {"format": target, "options": target_options, **more},
        "output": {"path": str(output), "name": "x"},
        "performance": {"device": "cpu", "num_workers": 1, "max_memory": max_memory},
    }


def quantized(source: Path, output: Path, method: str, target: str, **more: Any) -> Path:
    recipe = asked(source, output, method, target, **more)
    if target in ("diffusers", "compressed_tensors"):
        del recipe["output"]["name"]
    converter_core.convert(recipe)
    return output


def dequantized(source: Path, output: Path, *args: Any, **more: Any) -> dict[str, Tensor]:
    recipe = asked(source, output, *args, **more)
    recipe["source"]["dequantize"] = True
    converter_core.convert(recipe)
    report = converter_core.verify(output, source)
    assert report.ok, report.problems
    return load_file(output / "x.safetensors")


def swizzled_at(row: int, block: int, blocks: int) -> int:
    tiles = -(-blocks // 4)
    return (row // 128 * tiles + block // 4) * 512 + row % 32 * 16 + row % 128 // 32 * 4 + block % 4


def unswizzled(scale: Tensor, rows: int, blocks: int) -> Tensor:
    """NVIDIA's formula, element by element."""
    flat = scale.view(torch.uint8).reshape(-1)
    at = [[swizzled_at(row, block, blocks) for block in range(blocks)] for row in range(rows)]
    return flat[torch.tensor(at)]


def nibbles(codes: Tensor) -> Tensor:
    return E2M1[torch.stack([codes & 15, codes >> 4], -1).flatten(1).long()]


def by_hand(method: str, target: str, stored: dict[str, Tensor], name: str) -> Tensor:
    codes = stored[name]
    stem = name.removesuffix(".weight")
    if target == "comfyui":
        return codes.float() * stored[f"{stem}.weight_scale"]
    if target == "diffusers":
        return codes.float() * stored[f"{stem}.scale"]
    scale = stored[f"{name}_scale"]
    if method in ("int8", "fp8"):
        return codes.float() * scale
    rows, width = codes.shape[0], {"mxfp4": 32, "nvfp4": 16, "mxfp8": 32}[method]
    values = codes.view(torch.float8_e4m3fn).float() if method == "mxfp8" else nibbles(codes)
    bytes_of = unswizzled(scale, rows, values.shape[1] // width)
    if method == "nvfp4":
        steps = bytes_of.view(torch.float8_e4m3fn).float() / stored[f"{stem}.weight_global_scale"]
    else:
        steps = torch.exp2(bytes_of.float() - 127)
    return values * steps.repeat_interleave(width, 1)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("int8", "lightx2v"),
        ("fp8", "lightx2v"),
        ("mxfp4", "lightx2v"),
        ("nvfp4", "lightx2v"),
        ("mxfp8", "lightx2v"),
        ("fp8", "comfyui"),
        ("int8", "diffusers"),
    ],
)
def test_the_values_are_those_decoded_by_hand(method: str, target: str, source: Path, tmp_path: Path) -> None:
    folder = quantized(source, tmp_path / "q", method, target)
    (file,) = folder.glob("*.safetensors")
    stored = load_file(file)
    exact = dequantized(folder, tmp_path / "f32", dtype="float32", max_memory="16MiB")
    rounded = dequantized(folder, tmp_path / "bf16")
    rename = (lambda name: WanDit().rename(name, "diffusers")) if target == "diffusers" else (lambda name: name)
    linear = [name for name in exact if name.startswith("blocks.") and exact[name].dim() == 2]
    assert len(linear) == 10
    for name in linear:
        values = by_hand(method, target, stored, rename(name))
        torch.testing.assert_close(exact[name], values, rtol=2e-7 if method == "nvfp4" else 0, atol=0)
        assert same(rounded[name], exact[name].to(torch.bfloat16))
    assert rounded.keys() == load_file(next(source.glob("*.safetensors"))).keys()


@pytest.mark.parametrize("method", ["q8_0", "q4_0"])
def test_gguf_is_decoded_as_ggufs_own_package_does(method: str, source: Path, tmp_path: Path) -> None:
    folder = quantized(source, tmp_path / "q", method, "gguf")
    exact = dequantized(folder, tmp_path / "f32", dtype="float32")
    for one in gguf.GGUFReader(folder / "x.gguf").tensors:
        if one.tensor_type.name == method.upper():
            values = torch.from_numpy(gguf.quants.dequantize(one.data, one.tensor_type).copy())
            assert torch.equal(exact[one.name], values), one.name


def test_into_another_scheme_as_from_the_float32_values(source: Path, tmp_path: Path) -> None:
    folder = quantized(source, tmp_path / "q", "nvfp4", "comfyui")
    dequantized(folder, tmp_path / "f32", dtype="float32")
    again = dequantized(folder, tmp_path / "int8", "int8", "lightx2v")
    recipe = asked(tmp_path / "f32", tmp_path / "other", "int8", "lightx2v")
    converter_core.convert(recipe)
    expected = load_file(tmp_path / "other" / "x.safetensors")
    codes = [key for key in expected if key.startswith("blocks.") and f"{key}_scale" in expected]
    assert len(codes) == 10
    assert all(same(again[name], expected[name]) for key in codes for name in (key, f"{key}_scale"))


def test_it_is_said_everywhere(source: Path, tmp_path: Path) -> None:
    folder = quantized(source, tmp_path / "q", "int8", "diffusers")
    recipe = asked(folder, tmp_path / "out")
    recipe["source"]["dequantize"] = True
    recipe["output"]["copy_metadata"] = True
    said = "the source was quantized (diffusers int8 (10 weights)) and is dequantized: what it lost then does not come"
    with converter_core.make_plan(recipe) as plan:
        assert [warning for warning in plan.warnings if said in warning]
        assert plan.as_dict()["source"]["dequantized_from"] == "diffusers int8 (10 weights)"
        assert plan.outputs[0].bytes_before < plan.outputs[0].bytes_after
    assert [warning for warning in converter_core.convert(recipe).warnings if said in warning]
    manifest = json.loads((tmp_path / "out" / "x.manifest.json").read_text())
    assert manifest["source"]["dequantized_from"] == "diffusers int8 (10 weights)"
    with safe_open(tmp_path / "out" / "x.safetensors", "pt") as file:
        assert file.metadata()["dequantized_from"] == "diffusers int8 (10 weights)"
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "x.manifest.json").unlink()
    assert converter_core.verify(tmp_path / "out", folder).ok
    tensors = load_file(tmp_path / "out" / "x.safetensors")
    tensors["blocks.0.ffn.0.weight"][3, 5] += 1
    save_file(tensors, tmp_path / "out" / "x.safetensors", {"dequantized_from": "diffusers int8 (10 weights)"})
    report = converter_core.verify(tmp_path / "out", folder)
    assert [problem.tensor for problem in report.problems] == ["blocks.0.ffn.0.weight"]


def test_both_ways_are_told(source: Path, tmp_path: Path) -> None:
    folder = quantized(source, tmp_path / "q", "int8", "lightx2v")
    with pytest.raises(PlanError, match=r"method: none, which keeps codes.*source\.dequantize: true"):
        converter_core.make_plan(asked(folder, tmp_path / "out", "nvfp4"))
    recipe = asked(source, tmp_path / "out")
    recipe["source"]["dequantize"] = True
    with converter_core.make_plan(recipe) as plan:
        assert "source.dequantize: nothing in the source is quantized" in plan.warnings


def test_a_lora_is_added_to_what_is_decoded(source: Path, tmp_path: Path) -> None:
    folder = quantized(source, tmp_path / "q", "int8", "lightx2v")
    name = "blocks.0.self_attn.q"
    down, up = torch.randn(2, 128), torch.randn(128, 2)
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, tmp_path / "lora.safetensors")
    loras = [{"path": str(tmp_path / "lora.safetensors")}]
    with pytest.raises(ConverterError, match=r"a LoRA is merged before that.*source\.dequantize: true"):
        converter_core.make_plan(asked(folder, tmp_path / "no", loras=loras))
    made = dequantized(folder, tmp_path / "out", loras=loras, dtype="float32")[f"{name}.weight"]
    stored = load_file(folder / "x.safetensors")
    values = stored[f"{name}.weight"].double() * stored[f"{name}.weight_scale"].double() + up.double() @ down.double()
    torch.testing.assert_close(made.double(), values, rtol=1e-6, atol=1e-6)


def test_scales_of_one_dimension_are_read_with_their_rows(source: Path, tmp_path: Path) -> None:
    """As BFL's; row by row, for a weight that is taken whole needs memory for all of it."""
    folder = quantized(source, tmp_path / "q", "fp8", "diffusers", target_options={"style": "bfl"})
    (file,) = folder.glob("*.safetensors")
    stored = load_file(file)
    exact = dequantized(folder, tmp_path / "f32", dtype="float32", max_memory="16MiB")
    for name in [name for name in exact if f"{name}_scale" in stored]:
        assert torch.equal(exact[name], stored[name].float() * stored[f"{name}_scale"][:, None])
    recipe = asked(folder, tmp_path / "plan")
    recipe["source"]["dequantize"] = True
    with converter_core.make_plan(recipe) as plan:
        sources = [bound for job in plan.jobs for several in job.sources.values() for bound in several]
        assert {bound.row_block for bound in sources} == {1}


def test_the_plan_knows_what_decoding_takes(source: Path, tmp_path: Path) -> None:
    folder = quantized(source, tmp_path / "q", "int8", "lightx2v")
    recipe = asked(folder, tmp_path / "plan")
    recipe["source"]["dequantize"] = True
    with converter_core.make_plan(recipe) as plan:
        bounds = {bound.ref.key: bound for job in plan.jobs for several in job.sources.values() for bound in several}
    ffn = bounds["blocks.0.ffn.2.weight"]  # 128 rows of 160 codes, and a float32 scale for each
    assert ffn.decoding_nbytes == 2 * (128 * 160 + 4 * 128) + 20 * 128 * 160
    assert bounds["blocks.0.ffn.2.bias"].decoding_nbytes == 0


def test_a_format_that_no_quantizer_decodes_is_refused(source: Path, tmp_path: Path) -> None:
    folder = quantized(source, tmp_path / "q", "int8", "plain")
    tensors = load_file(folder / "x.safetensors")
    (tmp_path / "odd").mkdir()
    named = {"plain.formats": json.dumps({key: "odd" for key in tensors if f"{key}_scale" in tensors})}
    save_file(tensors, tmp_path / "odd" / "x.safetensors", named)
    recipe = asked(tmp_path / "odd", tmp_path / "out")
    recipe["source"]["dequantize"] = True
    with pytest.raises(ConverterError, match=r"10 weights cannot be dequantized, e\.g\..*no installed quantizer reads"):
        converter_core.make_plan(recipe)


@pytest.mark.parametrize(("method", "target"), [("nvfp4", "plain"), ("fp8", "comfyui"), ("q4_k", "gguf")])
def test_a_source_at_another_time_is_compared_as_it_is_decoded(
    source: Path, tmp_path: Path, method: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = quantized(source, tmp_path / "first", method, target)
    recipe = asked(first, tmp_path / "out", "int8", max_memory="8MiB")
    recipe["source"]["dequantize"] = True
    converter_core.convert(recipe)
    for path in first.glob("x.*"):
        os.utime(path, ns=(1, 2))
    monkeypatch.setattr("converter_core.engine.source_sums.PIECE", 5000)
    assert converter_core.convert(recipe).status == "already done"
