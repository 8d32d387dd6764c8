"""Files for ComfyUI, opened as ComfyUI opens them: by a restatement of its loader, and by the package that decodes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import converter_core
from converter_core.api.contexts import ModelFacts, SourceTensors, WeightContext
from converter_core.api.formats import UNQUANTIZED, QuantFormat
from converter_core.api.tensors import same, spec_of
from converter_core.api.values import OutputTensor, PlannedWeight, SyntheticCheckpoint, TensorSpec, WeightInfo
from converter_core.checkpoint.synthetic import write_synthetic
from converter_core.cli import run
from converter_core.errors import CheckpointError, PlanError, RecipeError, Refused
from converter_core.plugins.registry import load_plugins
from converter_plugins.models.wan_dit import Structure, WanDit
from converter_plugins.quantizers.fp8 import Fp8
from converter_plugins.quantizers.int8 import Int8
from converter_plugins.quantizers.mxfp4 import Mxfp4
from converter_plugins.quantizers.mxfp8 import Mxfp8
from converter_plugins.quantizers.nvfp4 import Nvfp4
from converter_plugins.targets._comfyui_formats import PIECE, swap_nibbles
from converter_plugins.targets.comfyui import ComfyUI

from . import comfyui_reader as reader

TINY = Structure(dim=128, ffn_dim=160, num_layers=1, in_dim=36, text_dim=64, image_dim=64, image=True)
LAYERS = 12
DECODED = ("blocks.0.self_attn.q", "blocks.0.ffn.0", "blocks.0.ffn.2")
Q = "blocks.0.self_attn.q.weight"
MOST_ERROR = {"int8": 0.012, "fp8": 0.04, "nvfp4": 0.11, "mxfp8": 0.04}
"""Relative Frobenius error of a weight."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny Wan2.1-I2V in both namings."""
    root = tmp_path_factory.mktemp("tiny")
    sample = SyntheticCheckpoint(TINY.inventory("BF16"))
    write_synthetic(root / "original", sample, shards=1)
    write_synthetic(root / "diffusers", sample, shards=1, rename=lambda name: WanDit().rename(name, "diffusers"))
    return {name: root / name for name in ("original", "diffusers")}


@pytest.fixture(scope="module")
def originals(sources: dict[str, Path]) -> dict[str, torch.Tensor]:
    return load_file(next(sources["original"].glob("*.safetensors")))


def recipe(source: Path, output: Path, method: str, target: Mapping[str, Any] | None = None, **section: Any) -> Any:
    return {
        "source": {"path": str(source)},
        "quantization": {"method": method, **section},
        "target": {"format": "comfyui", **(target or {})},
        "output": {"path": str(output), "name": "wan"},
        "performance": {"device": "cpu", "num_workers": 1},
    }


def converted(source: Path, output: Path, method: str, target: Mapping[str, Any] | None = None, **section: Any) -> Path:
    converter_core.convert(recipe(source, output, method, target, **section))
    return output / "wan.safetensors"


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory, originals: dict[str, torch.Tensor]) -> Path:
    path = tmp_path_factory.mktemp("calib") / "calib.json"
    names = [name for name, tensor in originals.items() if name.startswith("blocks.") and tensor.dim() == 2]
    path.write_text(json.dumps({"absmax": {name: 3.0 + number for number, name in enumerate(names)}}))
    return path


def kitchen(layer: reader.Layer, shape: tuple[int, int]) -> torch.Tensor:
    """What comfy-kitchen makes of a layer: ``QuantizedTensor.dequantize``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = pytest.importorskip("comfy_kitchen.tensor")
    called = {
        "int8_tensorwise": "TensorWiseINT8Layout",
        "float8_e4m3fn": "TensorCoreFP8Layout",
        "nvfp4": "TensorCoreNVFP4Layout",
        "mxfp8": "TensorCoreMXFP8Layout",
    }[layer.format]
    params = getattr(tensors, called).Params(**layer.params, orig_dtype=torch.float32, orig_shape=shape)
    return tensors.QuantizedTensor(layer.weight, called, params).dequantize()


@pytest.mark.parametrize("naming", ["original", "diffusers"])
@pytest.mark.parametrize("method", MOST_ERROR)
def test_comfyui_reads_what_is_written(
    method: str, naming: str, sources: dict[str, Path], originals: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    found = reader.load(converted(sources[naming], tmp_path / "out", method))
    assert found.unet == {
        "image_model": "wan2.1",
        "dim": 128,
        "out_dim": 16,
        "num_heads": 1,
        "ffn_dim": 160,
        "num_layers": 1,
        "in_dim": 36,
        "model_type": "i2v",
    }
    assert len(found.layers) == LAYERS
    assert {layer.full_precision for layer in found.layers.values()} == {method == "fp8"}
    for stem in DECODED:
        layer, original = found.layers[stem], originals[f"{stem}.weight"].double()
        decoded = reader.decode(layer, tuple(original.shape))
        assert (decoded - original).norm() / original.norm() < MOST_ERROR[method], stem
        theirs = kitchen(layer, tuple(original.shape)).double()[: original.shape[0], : original.shape[1]]
        assert torch.allclose(theirs, decoded, rtol=1e-6, atol=0), stem
    copied = {name: tensor for name, tensor in originals.items() if name.removesuffix(".weight") not in found.layers}
    assert found.others.keys() == copied.keys()
    assert all(same(found.others[name], tensor) for name, tensor in copied.items())
    report = converter_core.verify(tmp_path / "out", sources[naming])
    assert report.ok, report.problems


def test_header_and_markers_agree(sources: dict[str, Path], tmp_path: Path) -> None:
    rules = [{"match": "blocks.0.ffn.0", "method": "fp8"}, {"match": "blocks.0.ffn.2", "method": "nvfp4"}]
    path = converted(sources["original"], tmp_path / "out", "int8", rules=rules)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        keys = set(file.keys())
        markers = {key: bytes(file.get_tensor(key).tolist()) for key in keys if key.endswith(".comfy_quant")}
    told = json.loads(metadata["_quantization_metadata"])
    assert told["format_version"] == "1.0"
    assert {f"{name}.comfy_quant": conf for name, conf in told["layers"].items()} == {
        key: json.loads(text) for key, text in markers.items()
    }
    assert markers["blocks.0.self_attn.q.comfy_quant"] == b'{"format": "int8_tensorwise"}'
    assert markers["blocks.0.ffn.0.comfy_quant"] == b'{"format": "float8_e4m3fn", "full_precision_matrix_mult": true}'
    assert markers["blocks.0.ffn.2.comfy_quant"] == b'{"format": "nvfp4"}'
    meant = {"config", "quantization_config", "quant_format"}
    assert not meant & set(metadata)
    layers = reader.load(path).layers
    assert {layer.format for layer in layers.values()} == {"int8_tensorwise", "float8_e4m3fn", "nvfp4"}
    summary = converter_core.inspect(tmp_path / "out").quantized
    assert summary is not None
    assert (summary.target, summary.formats) == ("comfyui", {"int8": 10, "fp8": 1, "nvfp4": 1})
    assert summary.arrangement == {"nvfp4": {"nibbles": "high first", "scales": "swizzled 128x4"}}


def test_options_left_out_follow_the_target(sources: dict[str, Path], tmp_path: Path) -> None:
    written = load_file(converted(sources["original"], tmp_path / "out", "fp8"))
    scale = written["blocks.0.ffn.0.weight_scale"]
    assert (scale.dtype, scale.shape) == (torch.float32, ())
    assert not same(scale, scale.bfloat16().float())
    rows = load_file(converted(sources["original"], tmp_path / "rows", "int8"))["blocks.0.ffn.0.weight_scale"]
    assert (rows.dtype, rows.shape) == (torch.float32, (160, 1))
    assert not same(rows, rows.bfloat16().float())
    rounded = converted(sources["original"], tmp_path / "bf16", "int8", options={"scale_dtype": "bfloat16"})
    scale = load_file(rounded)["blocks.0.ffn.0.weight_scale"]
    assert same(scale, scale.bfloat16().float())
    whole = converted(sources["original"], tmp_path / "whole", "int8", options={"per_channel": False})
    assert load_file(whole)["blocks.0.ffn.0.weight_scale"].shape == ()
    assert all(layer.params["scale"].dim() == 0 for layer in reader.load(whole).layers.values())


@pytest.mark.parametrize(
    ("method", "section", "target", "reason"),
    [
        ("fp8", {"options": {"per_channel": True}}, {}, "leave per_channel out, or write per_channel: false"),
        ("fp8", {"options": {"scale_rule": "mse"}}, {}, "target comfyui takes fp8 with per_channel: false"),
        ("int8", {"options": {"symmetric": False}}, {}, "cannot store the zero_point of asymmetric int8"),
        ("q8_0", {}, {}, r"'q8_0', which ComfyUI does not read.* or target\.format: gguf"),
        ("mxfp4", {}, {}, r"'mxfp4', which ComfyUI does not read \(it reads int8, fp8, nvfp4"),
        ("int8", {}, {"layout": "by_block"}, "target.layout: target comfyui reads one file, and layout by_block"),
        ("int8", {}, {"layout": "chunked", "chunk_size": 20}, "reads one file, and layout chunked makes"),
        ("int8", {}, {"options": {"style": "legacy"}}, "style: legacy holds fp8 only"),
        ("int8", {}, {"options": {"style": "old"}}, "target.options.style"),
        ("int8", {"options": {"numerics": "lightx2v"}}, {}, "is for target lightx2v"),
    ],
)
def test_what_comfyui_does_not_read_is_refused(
    method: str, section: Any, target: Any, reason: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises((PlanError, RecipeError), match=reason):
        converter_core.make_plan(recipe(sources["original"], tmp_path / "out", method, target, **section))
    assert not (tmp_path / "out").exists()


def context(format: QuantFormat, shape: tuple[int, ...] = (32, 64), roles: tuple[str, ...] = ()) -> WeightContext:
    return WeightContext(WeightInfo(Q, {}, "linear"), Q, TensorSpec("BF16", shape), format, roles=roles)


INT8 = QuantFormat("int8", "int8", 8, "row", scale_dtype="F32")
FP8 = QuantFormat("fp8", "e4m3", 8, "tensor", scale_dtype="F32")
CODES = torch.ones(32, 64, dtype=torch.int8)


@pytest.mark.parametrize(
    ("format", "parts", "reason"),
    [
        (INT8, {"weight": CODES, "scale": torch.ones(32)}, r"scale of int8 as F32 or BF16 or F16 \[32, 1\]"),
        (INT8, {"weight": CODES, "scale": torch.ones(1, 64)}, r"\[32, 1\]"),
        (INT8, {"weight": CODES}, "needs scale"),
        (INT8, {"weight": CODES[0], "scale": torch.ones(1)}, r"I8 \[rows, columns\], not I8 \[64\]"),
        (INT8, {"weight": torch.ones(8, 4, 1, 2, 2, dtype=torch.int8), "scale": torch.ones(8, 1)}, "rows, columns"),
        (INT8, {"weight": CODES, "scale": torch.ones(32, 1), "spice": CODES}, "no place for spice"),
        (FP8, {"weight": CODES.to(torch.float8_e4m3fn), "scale": torch.ones(1)}, r"F16 \[\]"),
        (UNQUANTIZED, {"weight": torch.ones(8).to(torch.float8_e4m3fn)}, "target.dtype: bfloat16"),
        (UNQUANTIZED, {"weight": torch.ones(8), "scale": torch.ones(8)}, "no place for scale"),
    ],
)
def test_parts_that_would_be_read_wrongly_are_refused(format: QuantFormat, parts: Any, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        ComfyUI().encode(context(format), parts)


def test_only_linear_weights_may_be_quantized() -> None:
    info = WeightInfo("patch_embedding.weight", {}, "embedding")
    weight = PlannedWeight(info, info.name, TensorSpec("BF16", (8, 4)), INT8, ())
    (reason,) = ComfyUI().refuse(ModelFacts(), [weight])
    assert "patch_embedding.weight unquantized only" in reason


def test_calibrated_fp8_multiplies_in_fp8(sources: dict[str, Path], calibration: Path, tmp_path: Path) -> None:
    given = {"activation_absmax": str(calibration)}
    path = converted(sources["original"], tmp_path / "out", "fp8", options=given)
    layers = reader.load(path).layers
    table = json.loads(calibration.read_text())["absmax"]
    assert not any(layer.full_precision for layer in layers.values())
    for stem, layer in layers.items():
        assert layer.extra["input_scale"].item() == (torch.tensor(table[f"{stem}.weight"]) / 448).item()
    assert converter_core.verify(tmp_path / "out", sources["original"]).ok
    nvfp4 = reader.load(converted(sources["original"], tmp_path / "nvfp4", "nvfp4", options=given)).layers
    first = next(iter(nvfp4))
    assert nvfp4[first].extra["input_scale"].item() == (torch.tensor(table[f"{first}.weight"]) / 2688).item()
    with pytest.raises(PlanError, match="no place for input_absmax"):
        converter_core.make_plan(
            recipe(sources["original"], tmp_path / "no", "fp8", {"format": "lightx2v"}, options=given)
        )


@pytest.mark.parametrize(("option", "method", "expected"), [(False, "fp8", False), (True, "int8", True)])
def test_full_precision_can_be_chosen(
    option: bool, method: str, expected: bool, sources: dict[str, Path], tmp_path: Path
) -> None:
    target = {"options": {"full_precision_matrix_mult": option}}
    layers = reader.load(converted(sources["original"], tmp_path / "out", method, target)).layers
    assert {layer.full_precision for layer in layers.values()} == {expected}


@pytest.mark.parametrize("calibrated", [False, True])
def test_the_older_style(
    calibrated: bool, sources: dict[str, Path], calibration: Path, originals: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    options = {"activation_absmax": str(calibration)} if calibrated else {}
    path = converted(sources["original"], tmp_path / "out", "fp8", {"options": {"style": "legacy"}}, options=options)
    with safe_open(path, "pt") as file:
        assert "_quantization_metadata" not in file.metadata()
        assert file.get_tensor("scaled_fp8").dtype == torch.float8_e4m3fn
        assert not [key for key in file.keys() if key.endswith(("comfy_quant", "weight_scale"))]  # noqa: SIM118
    layers = reader.load(path).layers
    assert len(layers) == LAYERS
    assert {(layer.format, layer.full_precision) for layer in layers.values()} == {("float8_e4m3fn", not calibrated)}
    for stem, layer in layers.items():
        original = originals[f"{stem}.weight"].double()
        assert (reader.decode(layer, tuple(original.shape)) - original).norm() / original.norm() < 0.04
        assert ("input_scale" in layer.extra) == calibrated
    assert converter_core.verify(tmp_path / "out", sources["original"]).ok
    (tmp_path / "out" / "wan.manifest.json").unlink()
    alone = converter_core.verify(path, sources["original"])
    assert alone.ok, alone.problems
    summary = converter_core.inspect(tmp_path / "out").quantized
    assert summary is not None
    assert (summary.target, summary.formats) == ("comfyui", {"fp8": LAYERS})


@pytest.mark.parametrize("rows", [16, 37, 130])
def test_rows_of_nvfp4_are_padded_to_16(rows: int) -> None:
    """comfy_kitchen/tensor/nvfp4.py ``get_padded_shape``."""
    quantizer = Nvfp4()
    weight = torch.randn(rows, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    parts = quantizer.quantize(weight, **quantizer.observe(weight))
    stored = ComfyUI().encode(context(quantizer.format, (rows, 64)), parts)
    assert stored["weight"].shape == (-(-rows // 16) * 16, 32)
    assert not stored["weight"][rows:].any()
    layer = reader.Layer(
        "nvfp4", stored["weight"], {"scale": stored["global_scale"], "block_scale": stored["scale"]}, False
    )
    decoded = reader.decode(layer, (rows, 64))
    assert torch.allclose(decoded, quantizer.dequantize(parts).double(), rtol=1e-6, atol=0)
    assert torch.allclose(kitchen(layer, (rows, 64)).double()[:rows], decoded, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", [0x3F80, 0x3F81, 0x42AB, 0x4755, 0x3FFF, 0x7A01, 0x0180])
def test_the_global_scale_comes_back_from_its_reciprocal(bits: int) -> None:
    whole = torch.tensor(bits << 16, dtype=torch.int32).view(torch.float32)
    parts = {
        "weight": torch.full((16, 8), 0x21, dtype=torch.uint8),
        "scale": torch.ones(16, 1).to(torch.float8_e4m3fn),
        "global_scale": whole,
    }
    format = Nvfp4().format
    stored = ComfyUI().encode(context(format, (16, 16)), parts)
    assert stored["global_scale"].item() == (1 / whole).item()
    assert int(stored["weight"][0, 0]) == 0x12
    back = ComfyUI().decode(context(format, (16, 16)), stored)
    assert all(same(back[role], part) for role, part in parts.items())


def test_a_foreign_global_scale_gets_one_whose_reciprocal_it_is() -> None:
    draw = torch.Generator().manual_seed(3)
    for value in (torch.rand(200, generator=draw) + 1).mul(1e-4).tolist():
        stored = {
            "weight": torch.zeros(16, 8, dtype=torch.uint8),
            "scale": torch.zeros(128, 4).to(torch.float8_e4m3fn),
            "global_scale": torch.tensor(value),
        }
        whole = ComfyUI().decode(context(Nvfp4().format, (16, 16)), stored)["global_scale"]
        every = whole.view(torch.int32) + torch.arange(-4, 5, dtype=torch.int32)
        possible = 1 / every.view(torch.float32) == torch.tensor(value)
        assert bool(possible.any()) == ((1 / whole).item() == torch.tensor(value).item())


def stored_specs(quantizer: Any, prefix: str = "", roles: Mapping[str, str] | None = None) -> dict[str, TensorSpec]:
    weight = torch.randn(160, 128, generator=torch.Generator().manual_seed(2)).bfloat16()
    parts = quantizer.quantize(weight, **quantizer.observe(weight))
    target = ComfyUI()
    stored = target.encode(context(quantizer.format, (160, 128)), parts)
    at = context(quantizer.format)
    return {prefix + target.key(at, role): target.stored_spec(at, role, spec_of(part)) for role, part in stored.items()}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize(
    "quantizer", [Int8(), Int8(per_channel=False), Fp8(per_channel=False), Nvfp4(), Mxfp8()], ids=str
)
def test_files_of_others_are_recognised_by_their_markers(quantizer: Any, prefix: str, tmp_path: Path) -> None:
    specs = stored_specs(quantizer, prefix)
    called = {"int8": "int8_tensorwise", "fp8": "float8_e4m3fn"}.get(quantizer.name, quantizer.name)
    conf = json.dumps({"format": called})
    stem = f"{prefix}{Q}".removesuffix(".weight")
    marked = SourceTensors(
        {**specs, f"{stem}.comfy_quant": TensorSpec("U8", (len(conf),))},
        read=lambda key: torch.tensor(list(conf.encode()), dtype=torch.uint8),
    )
    announced = SourceTensors(specs, {"_quantization_metadata": json.dumps({"layers": {Q[:-7]: {"format": called}}})})
    for tensors in (marked, announced):
        (found,) = ComfyUI().detect(tensors).values()
        assert found.format.matches(quantizer.format)
        assert found.format.granularity == quantizer.format.granularity
        # nobody says that its scales are rounded
        assert found.format.scale_precision == ("" if quantizer.name == "mxfp8" else "F32")
    assert not ComfyUI().detect(SourceTensors(specs))
    other = load_plugins().targets["lightx2v"]()
    assert not other.detect(marked)


def test_codes_rotated_before_they_were_rounded_are_not_taken_for_plain_ones() -> None:
    conf = b'{"format": "int8_tensorwise", "convrot": true, "convrot_groupsize": 256}'
    specs = {**stored_specs(Int8()), f"{Q[:-7]}.comfy_quant": TensorSpec("U8", (len(conf),))}
    read = SourceTensors(specs, read=lambda key: torch.tensor(list(conf), dtype=torch.uint8))
    assert not ComfyUI().detect(read)
    told = {"_quantization_metadata": json.dumps({"layers": {Q[:-7]: json.loads(conf)}})}
    assert not ComfyUI().detect(SourceTensors(stored_specs(Int8()), told))


@pytest.mark.parametrize("key", ["_quantization_metadata", "comfyui.formats"])
@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_damaged_metadata_is_an_error(key: str, text: str) -> None:
    with pytest.raises(CheckpointError, match=f"{key}.* the file is damaged"):
        ComfyUI().detect(SourceTensors({Q: TensorSpec("I8", (4, 4))}, {key: text}))


def test_metadata_that_names_another_arrangement_is_not_believed(sources: dict[str, Path], tmp_path: Path) -> None:
    path = converted(sources["original"], tmp_path / "out", "nvfp4")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    metadata["comfyui.formats"] = metadata["comfyui.formats"].replace("high first", "low first")
    (tmp_path / "lie").mkdir()
    save_file(load_file(path), tmp_path / "lie" / "wan.safetensors", metadata)
    with pytest.raises(CheckpointError, match=r"nibbles.*low first.*ComfyUI reads"):
        converter_core.inspect(tmp_path / "lie")


def test_it_is_chosen_by_the_flag_of_another_converter(sources: dict[str, Path], tmp_path: Path) -> None:
    for spelling in ("--comfyui_mode", "--comfyui-mode"):
        out = tmp_path / spelling.strip("-")
        words = ["-s", str(sources["original"]), "-o", str(out), "--quantized", "--linear_type", "int8", spelling]
        assert run([*words, "--quiet"]) == 0
        (path,) = out.glob("*.safetensors")
        assert len(reader.load(path).layers) == LAYERS


def test_planned_weights_without_a_marker_are_none(tmp_path: Path) -> None:
    info = WeightInfo("norm.weight", {}, "norm")
    out = OutputTensor(info.name, "weight", TensorSpec("BF16", (4,)))
    weight = PlannedWeight(info, info.name, out.spec, UNQUANTIZED, (out,))
    assert ComfyUI().extras(ModelFacts(), [weight]).metadata == {}
    assert ComfyUI(style="legacy").extras(ModelFacts(), [weight]).tensors == {}
    assert Mxfp4().format not in (INT8, FP8)


@pytest.mark.parametrize("shape", [(2 * PIECE // 3000 + 5, 3000), (3, 2 * PIECE)])
def test_nibbles_are_swapped_in_every_run_of_rows(shape: tuple[int, int]) -> None:
    codes = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    before = codes.clone()
    assert torch.equal(swap_nibbles(codes), codes % 16 * 16 + codes // 16)
    assert torch.equal(codes, before)
