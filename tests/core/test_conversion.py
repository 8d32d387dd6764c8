"""The engine end to end on a small real checkpoint: bytes, faults, cleanliness."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from converter_core.api.hookspecs import hookimpl
from converter_core.api.quantizers import Quantizer
from converter_core.api.tensors import raw
from converter_core.checkpoint.checkpoint import Checkpoint
from converter_core.checkpoint.synthetic import write_synthetic
from converter_core.engine import convert as conversion
from converter_core.engine import reading
from converter_core.engine.convert import convert
from converter_core.engine.worker_pool import Progress
from converter_core.errors import ConversionError, ConverterError, PlanError
from converter_core.planning.planner import make_plan
from converter_core.planning.slab_size import cut
from converter_core.plugins.registry import load_plugins
from converter_plugins.models.wan_dit import WanDit

SCHEMES = ("int8", "fp8", "mxfp4", "nvfp4")
LAYOUTS = ("single_file", "by_block", "chunked")
LARGEST_ERROR = {"int8": 0.012, "fp8": 0.03, "mxfp4": 0.13, "nvfp4": 0.11}
"""Relative Frobenius error of the sample's linears (gaussian rows with a few outliers)."""


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Everything in the weight files of a folder, read by the official library."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found.update(load_file(file))
    return found


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def dequantized(stored: Mapping[str, Tensor], name: str, scheme: str) -> Tensor:
    """What LightX2V would compute with, written from the format's description and nothing of ours."""
    codes, scale = stored[name], stored[name + "_scale"]
    if scheme in ("int8", "fp8"):
        return codes.float() * scale.bfloat16().float()
    grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    values = torch.cat([grid, -grid])
    rows, width = codes.shape[0], codes.shape[1] * 2
    weight = torch.empty(rows, width)
    weight[:, 0::2] = values[(codes & 15).int()]
    weight[:, 1::2] = values[(codes >> 4).int()]
    block = 32 if scheme == "mxfp4" else 16
    raw = scale.view(torch.uint8).flatten()
    tiles = -(-width // (4 * block))
    m = torch.arange(rows)[:, None]
    k = torch.arange(width // block)[None, :]
    offset = (m // 128) * (tiles * 512) + (k // 4) * 512 + (m % 32) * 16 + ((m % 128) // 32) * 4 + k % 4
    byte = raw[offset]
    if scheme == "mxfp4":
        factor = torch.exp2(byte.float() - 127)
    else:
        factor = byte.view(torch.float8_e4m3fn).float() / stored[name + "_global_scale"].bfloat16().float()
    return weight * factor.repeat_interleave(block, 1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_every_scheme_and_layout_is_within_its_error(scheme: str, layout: str, dtype: str, tmp_path: Path) -> None:
    write_synthetic(tmp_path / "source", WanDit().synthetic(), dtype=dtype)
    recipe = {
        "source": {"path": str(tmp_path / "source")},
        "quantization": {"method": scheme},
        "output": {"path": str(tmp_path / "out")},
        "target": {"layout": layout},
    }
    convert(recipe)
    source, stored = tensors_of(tmp_path / "source"), tensors_of(tmp_path / "out")
    linears = [key for key in source if re.match(r"blocks\.\d+\.(self_attn|cross_attn|ffn)\..*\.weight$", key)]
    linears = [key for key in linears if source[key].dim() == 2]
    assert len(linears) == 36
    for key in linears:
        weight = source[key].float()
        error = (dequantized(stored, key, scheme) - weight).norm() / weight.norm()
        assert 0 < error < LARGEST_ERROR[scheme], key
    for key in set(source) - set(linears):
        assert stored[key].dtype == source[key].dtype
        assert torch.equal(stored[key], source[key]), key
    extra = set(stored) - set(source)
    assert extra == {
        key + suffix for key in linears for suffix in ("_scale", *(["_global_scale"] if scheme == "nvfp4" else []))
    }


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bytes_do_not_depend_on_workers_or_slabs(
    scheme: str, asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for workers, slab in ((1, None), (3, None), (2, 3_000), (2, 40_000), (1, 1 << 30)):
        if slab is not None:
            monkeypatch.setattr("converter_plugins.devices.cpu.Cpu.slab_bytes", lambda self, device, slab=slab: slab)
        out = tmp_path / f"out-{workers}-{slab}"
        convert(asked(scheme, **{"output.path": str(out), "performance.num_workers": workers}))
        seen.append({name: digest for name, digest in digests(out).items() if "manifest" not in name})
    assert all(other == seen[0] for other in seen)


def test_what_will_be_read_is_told_ahead_and_once(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, list[tuple[int, int]]] = {}
    monkeypatch.setattr(reading, "READ_AHEAD", 4_000)
    monkeypatch.setattr("converter_plugins.devices.cpu.Cpu.slab_bytes", lambda self, device: 1_000)
    monkeypatch.setattr(
        Checkpoint,
        "will_need",
        lambda self, key, start, nbytes: told.setdefault(key, []).append((start, start + nbytes)),
    )
    convert(asked("int8"))
    spans = told["blocks.0.ffn.2.weight"]
    assert len(spans) > 3
    assert all(stop == start for (_, stop), (start, _) in pairwise(spans))
    assert spans[-1][1] >= tensors_of(Path(asked()["source"]["path"]))["blocks.0.ffn.2.weight"].nbytes


def test_single_file_equals_by_block_tensor_for_tensor(asked: Any, tmp_path: Path) -> None:
    convert(asked("int8"))
    convert(asked("int8", **{"output.path": str(tmp_path / "blocks"), "target.layout": "by_block"}))
    one, many = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "blocks")
    assert one.keys() == many.keys()
    assert all(torch.equal(one[key], many[key]) for key in one)
    index = json.loads((tmp_path / "blocks" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in many.values())
    for file in (tmp_path / "blocks").glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            assert {index["weight_map"][key] for key in opened.keys()} == {file.name}  # noqa: SIM118


def test_result_and_progress_tell_what_was_done(asked: Any, tmp_path: Path) -> None:
    events: list[Progress] = []
    result = convert(asked("fp8"), progress=events.append)
    assert result.status == "done"
    assert result.counts == {"fp8": 36, "none": 83}
    assert result.files == {"wan.safetensors": (tmp_path / "out" / "wan.safetensors").stat().st_size}
    assert events[-1].done == events[-1].total == result.bytes_before
    assert [event.done for event in events] == sorted(event.done for event in events)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["wan.manifest.json", "wan.safetensors"]


def test_metadata_tells_the_scheme_and_nothing_of_the_machine(asked: Any, tmp_path: Path) -> None:
    convert(asked("int8"))
    with safe_open(tmp_path / "out" / "wan.safetensors", "pt") as opened:
        metadata = opened.metadata()
    assert metadata["format"] == "pt"
    assert json.loads(metadata["quantization_rules"]) == [
        {"match": "(target_modules)", "method": "int8", "options": {}}
    ]
    assert set(metadata) == {"format", "model-converter", "quantization_rules", "source_sha256"}
    assert not any(str(tmp_path) in value for value in metadata.values())


def test_metadata_names_an_input_file_without_its_place(asked: Any, tmp_path: Path) -> None:
    calibration = tmp_path / "calib.json"
    calibration.write_text(json.dumps({"blocks.0.self_attn.q.weight": 3.5}))
    recipe = asked("nvfp4", **{"target.format": "plain", "quantization.method": "none"})
    recipe["quantization"]["rules"] = [
        {"match": "blocks.0.self_attn.q", "method": "nvfp4", "options": {"activation_absmax": str(calibration)}}
    ]
    convert(recipe)
    with safe_open(tmp_path / "out" / "wan.safetensors", "pt") as opened:
        (rule, _) = json.loads(opened.metadata()["quantization_rules"])
    assert rule["options"] == {"activation_absmax": "calib.json"}


@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_target_dtype_casts_what_is_not_quantized(name: str, dtype: torch.dtype, asked: Any, tmp_path: Path) -> None:
    convert(asked("int8", **{"target.dtype": name}))
    stored = tensors_of(tmp_path / "out")
    assert stored["blocks.0.norm3.weight"].dtype == dtype
    assert stored["patch_embedding.weight"].dtype == dtype
    assert stored["blocks.0.self_attn.q.weight"].dtype == torch.int8
    assert stored["blocks.0.self_attn.q.weight_scale"].dtype == torch.float32


def altered(source: Path, folder: Path, key: str, change: Any) -> Path:
    tensors = tensors_of(source)
    tensors[key] = change(tensors[key].clone())
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("key", ["blocks.1.ffn.0.weight", "blocks.2.modulation", "patch_embedding.weight"])
@pytest.mark.parametrize("scheme", ["int8", "nvfp4"])
def test_a_value_that_is_not_finite_stops_the_run_by_name(
    value: float, key: str, scheme: str, asked: Any, wan_source: Path, tmp_path: Path
) -> None:
    def spoil(tensor: Tensor) -> Tensor:
        tensor.view(-1)[tensor.numel() - 2] = value
        return tensor

    source = altered(wan_source, tmp_path / "bad", key, spoil)
    with pytest.raises(ConversionError, match=re.escape(key)) as error:
        convert(asked(scheme, **{"source.path": str(source)}))
    last = [length - 1 for length in tensors_of(source)[key].shape]
    last[-1] -= 1
    assert str(last) in str(error.value)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".wan.partial"]
    assert (tmp_path / "out" / ".wan.partial" / "journal.jsonl").exists()


def test_a_cast_that_overflows_stops_the_run(asked: Any, wan_source: Path, tmp_path: Path) -> None:
    source = altered(wan_source, tmp_path / "big", "blocks.0.norm3.weight", lambda t: t.float().fill_(1e6))
    with pytest.raises(ConversionError, match=r"blocks\.0\.norm3\.weight.*F16.*wider"):
        convert(asked("int8", **{"source.path": str(source), "target.dtype": "float16"}))


@dataclass(frozen=True)
class Liar(Quantizer):
    """Says that rows are independent, but scales by the largest of all it sees, at least of more than a few."""

    name: ClassVar[str] = "liar"
    row_block: ClassVar[int | None] = 1
    few: int = 0

    def quantize(self, weight: Tensor, /) -> dict[str, Tensor]:
        amax = weight.float().abs().amax() if weight.shape[0] > self.few else weight.new_ones((), dtype=torch.float32)
        return {"weight": (weight.float() / amax * 127).to(torch.int8), "global_scale": amax}

    def dequantize(self, parts: Mapping[str, Tensor], /) -> Tensor:
        return parts["weight"].float() * parts["global_scale"] / 127


@dataclass(frozen=True)
class Fickle(Quantizer):
    """Does with data what it does not do with zeros."""

    name: ClassVar[str] = "fickle"

    def quantize(self, weight: Tensor, /) -> dict[str, Tensor]:
        return {"weight": weight.half() if bool(weight.any()) else weight.float()}

    def dequantize(self, parts: Mapping[str, Tensor], /) -> Tensor:
        return parts["weight"].float()


@dataclass(frozen=True)
class Sparing(Fickle):
    """Has a scale only where there is something to scale."""

    name: ClassVar[str] = "sparing"

    def quantize(self, weight: Tensor, /) -> dict[str, Tensor]:
        codes = {"weight": weight.float()}
        return {**codes, "scale": weight.new_ones(weight.shape[0], 1)} if bool(weight.any()) else codes


@dataclass(frozen=True)
class Whole(Quantizer):
    """Knows nothing of slabs."""

    name: ClassVar[str] = "whole"

    def quantize(self, weight: Tensor, /) -> dict[str, Tensor]:
        scale = weight.float().abs().amax() / 127
        return {"weight": (weight.float() / scale).round().to(torch.int8), "scale": scale}

    def dequantize(self, parts: Mapping[str, Tensor], /) -> Tensor:
        return parts["weight"].float() * parts["scale"]


@dataclass(frozen=True)
class Crash(Whole):
    name: ClassVar[str] = "crash"

    def quantize(self, weight: Tensor, /) -> dict[str, Tensor]:
        if bool(weight.any()):
            raise ZeroDivisionError("a bug of its own")
        return super().quantize(weight)


@dataclass(frozen=True)
class Hungry(Quantizer):
    """Runs out of device memory on more than so many rows at a time."""

    name: ClassVar[str] = "hungry"
    row_block: ClassVar[int | None] = 1
    limit: int = 64

    def quantize(self, weight: Tensor, /) -> dict[str, Tensor]:
        under_way = threading.current_thread() is not threading.main_thread()
        if weight.shape[0] > self.limit and under_way:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return {"weight": weight.half()}

    def dequantize(self, parts: Mapping[str, Tensor], /) -> Tensor:
        return parts["weight"].float()


@pytest.fixture(scope="module")
def strange() -> Any:
    class Plugin:
        @hookimpl
        def converter_quantizers(self) -> list[type[Quantizer]]:
            return [Liar, Fickle, Sparing, Whole, Crash, Hungry]

    return load_plugins(extra=[Plugin()])


def strangers(asked: Any, method: str) -> dict[str, Any]:
    return asked(method, **{"target.format": "plain"})  # type: ignore[no-any-return]


def test_a_false_row_tile_shows_itself(asked: Any, strange: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter_plugins.devices.cpu.Cpu.slab_bytes", lambda self, device: 20_000)
    recipe = strangers(asked, "liar")
    with pytest.raises(PlanError, match=r"'weight' changes when quantized 1 rows at a time; row_block=1 is wrong"):
        convert(recipe, registry=strange)
    recipe["quantization"]["options"] = {"few": 8}
    with pytest.raises(ConversionError, match=r"differs between slabs; row_block of liar"):
        convert(recipe, registry=strange)


def test_a_result_that_differs_from_the_trial_is_not_written(asked: Any, strange: Any, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"expected .* bytes of F32.*got F16"):
        convert(strangers(asked, "fickle"), registry=strange)
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_part_that_the_trial_did_not_show_is_not_dropped(asked: Any, strange: Any, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"blocks.*: sparing returned scale, which the dry run on zeros did not"):
        convert(strangers(asked, "sparing"), registry=strange)
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_quantizer_that_knows_nothing_of_slabs_works(asked: Any, strange: Any, tmp_path: Path) -> None:
    convert(strangers(asked, "whole"), registry=strange)
    stored, source = tensors_of(tmp_path / "out"), tensors_of(Path(asked()["source"]["path"]))
    key = "blocks.0.ffn.2.weight"
    amax = source[key].float().abs().max()
    assert stored[key + "_scale"].item() == pytest.approx(amax.item() / 127)
    assert (stored[key].float() * stored[key + "_scale"] - source[key].float()).abs().max() <= amax / 127 * 0.51


def test_a_bug_in_a_plugin_shows_as_itself_and_keeps_the_journal(asked: Any, strange: Any, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="a bug of its own") as error:
        convert(strangers(asked, "crash"), registry=strange)
    if sys.version_info >= (3, 11):
        assert re.search(r"while converting blocks\.\d.* by crash", "".join(error.value.__notes__))
    assert (tmp_path / "out" / ".wan.partial" / "journal.jsonl").exists()


def test_a_weight_larger_than_the_budget_runs_alone(asked: Any, strange: Any) -> None:
    recipe = strangers(asked, "whole")
    recipe["performance"] = {"device": "cpu", "max_memory": 1000}
    plan = make_plan(recipe, strange)
    assert any("max_memory" in note and "blocks." in note for note in plan.notes)
    assert convert(plan).status == "done"


def test_out_of_device_memory_is_tried_again_with_less_then_refused(asked: Any, strange: Any, tmp_path: Path) -> None:
    recipe = strangers(asked, "hungry")
    events: list[Progress] = []
    convert(recipe, registry=strange, progress=events.append)
    assert events[-1].done == events[-1].total
    stored, source = tensors_of(tmp_path / "out"), tensors_of(Path(asked()["source"]["path"]))
    assert torch.equal(stored["blocks.1.ffn.0.weight"], source["blocks.1.ffn.0.weight"].half())
    recipe = strangers(asked, "hungry")
    recipe["quantization"]["options"] = {"limit": 0}
    recipe["output"]["path"] = str(tmp_path / "other")
    with pytest.raises(ConversionError, match=r"blocks\..*does not fit into the memory of cpu.*device: cpu"):
        convert(recipe, registry=strange)


def test_slabs_obey_the_budget() -> None:
    spec = SimpleNamespace(shape=(5120, 5120), numel=5120 * 5120)
    export = SimpleNamespace(
        schema=SimpleNamespace(row_block=128),
        quantizer=SimpleNamespace(row_block=1, prepared_bytes=lambda specs: 0),
        nbytes=5120 * 5120,
        inputs={},
        bias_terms=(),
    )
    job: Any = SimpleNamespace(spec=spec, source_nbytes=2 * 5120 * 5120, exports=[export], terms=(), sources={})
    wide = cut(job, 1_310_720, 1 << 30)
    assert (wide.slab, wide.span) == (128, 128)
    tight = cut(job, 1_310_720, 4 << 20)
    assert tight.slab == 128
    assert tight.span < 64
    assert tight.nbytes <= 4 << 20


def test_what_is_decoded_counts_in_the_budget() -> None:
    spec = SimpleNamespace(shape=(5120, 5120), numel=5120 * 5120)
    export = SimpleNamespace(
        schema=SimpleNamespace(row_block=1),
        quantizer=SimpleNamespace(row_block=1, prepared_bytes=lambda specs: 0),
        nbytes=5120 * 5120,
        inputs={},
        bias_terms=(),
    )

    def job(decoding: int) -> Any:
        bound = SimpleNamespace(row_block=1, decoding_nbytes=decoding)
        sources = {"weight": (bound, bound)}
        return SimpleNamespace(spec=spec, source_nbytes=4 * 5120 * 5120, exports=[export], terms=(), sources=sources)

    plain, decoded = cut(job(0), 1 << 30, 32 << 20), cut(job(3 << 20), 1 << 30, 32 << 20)
    assert plain.nbytes <= 32 << 20
    assert (3 << 20) < decoded.nbytes <= 32 << 20
    assert decoded.span < plain.span
    assert (plain.slab, decoded.slab) == (plain.span, decoded.span)


def test_mixed_rules_on_plain(asked: Any, tmp_path: Path) -> None:
    recipe = asked("nvfp4", **{"target.format": "plain"})
    recipe["quantization"]["rules"] = [
        {"match": "blocks.0.*", "method": "fp8"},
        {"match": "*.ffn.2", "method": "none"},
    ]
    plan = make_plan(recipe)
    assert [(rule.match, rule.matched) for rule in plan.outputs[0].rules] == [
        ("blocks.0.*", 12),
        ("*.ffn.2", 2),
        ("(target_modules)", 22),
    ]
    convert(plan)
    stored = tensors_of(tmp_path / "out")
    assert stored["blocks.0.ffn.2.weight"].dtype == torch.float8_e4m3fn
    assert stored["blocks.1.ffn.2.weight"].dtype == torch.bfloat16
    assert stored["blocks.1.ffn.0.weight"].dtype == torch.uint8


def test_a_mix_for_lightx2v_is_refused_before_anything_is_written(asked: Any, tmp_path: Path) -> None:
    recipe = asked("int8")
    recipe["quantization"]["rules"] = [{"match": "blocks.0.*", "method": "fp8"}]
    with pytest.raises(PlanError, match="one scheme"):
        convert(recipe)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([{"match": "block.0.*", "method": "none"}], "matches no weight"),
        ([{"match": "head.*", "method": "int8"}], "never quantized"),
        (
            [{"match": "blocks.*", "method": "none"}, {"match": "blocks.0.*", "method": "none"}],
            "taken by a rule before",
        ),
    ],
)
def test_rules_that_do_nothing_are_errors(rules: Any, words: str, asked: Any) -> None:
    recipe = asked("int8", **{"target.format": "plain"})
    recipe["quantization"]["rules"] = rules
    with pytest.raises(ConverterError, match=words):
        make_plan(recipe)


def test_a_quantized_source_is_refused_or_laid_out_anew(asked: Any, tmp_path: Path) -> None:
    convert(asked("nvfp4"))
    out = str(tmp_path / "out")
    again = asked("int8", **{"source.path": out, "output.path": str(tmp_path / "again")})
    with pytest.raises(PlanError, match=r"quantized already.*nvfp4.*method: none"):
        make_plan(again)
    again["quantization"]["method"] = "none"
    again["target"] = {"layout": "by_block"}
    convert(again)
    before, after = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "again")
    assert before.keys() == after.keys()
    for key in before:
        assert before[key].dtype == after[key].dtype
        assert bytes(raw(before[key])) == bytes(raw(after[key])), key
    with safe_open(tmp_path / "again" / "block_0.safetensors", "pt") as opened:
        assert {"blocks.0.ffn.0.weight", "blocks.0.ffn.0.weight_scale", "blocks.0.ffn.0.weight_global_scale"} <= set(
            opened.keys()
        )


def test_the_same_conversion_writes_the_same_manifest(asked: Any, tmp_path: Path) -> None:
    convert(asked("int8"))
    first = digests(tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    convert(asked("int8"))
    assert digests(tmp_path / "out") == first


def test_done_is_recognised_and_nothing_touched(asked: Any, tmp_path: Path) -> None:
    convert(asked("int8"))
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    result = conversion.convert(asked("int8", **{"performance.num_workers": 1}))
    assert result.status == "already done"
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
