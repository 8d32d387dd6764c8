"""verify: every flipped bit and cut file is named, and errors are what an independent computation says."""

from __future__ import annotations

import json
import math
import random
import shutil
import zlib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from converter_core.api.local_file import LocalFile
from converter_core.api.quantizers import Quantizer
from converter_core.checkpoint.synthetic import write_synthetic
from converter_core.engine.convert import convert
from converter_core.errors import VerificationError
from converter_core.inspection import inspect
from converter_core.output.manifest import dump, load_manifest
from converter_core.planning import decode as read_back
from converter_core.planning.passthrough import Passthrough
from converter_core.plugins.registry import load_plugins
from converter_core.verification.verify import verify
from converter_plugins.containers.safetensors import Safetensors
from converter_plugins.models.wan_dit import WanDit

LINEAR = 36
"""Quantized weights of the sample: three blocks of twelve."""


def problems_of(report):
    return "\n".join(map(str, report.problems))


def source_tensors(folder):
    tensors = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


@pytest.fixture
def converted(asked, tmp_path):
    def make(method="int8", **keys):
        convert(asked(method, **keys))
        return tmp_path / "out"

    return make


@pytest.fixture(scope="module")
def chunks(wan_source, tmp_path_factory):
    """A conversion with everything that an output can hold: several files, an index, side files. Changed and mended."""
    out = tmp_path_factory.mktemp("chunks") / "out"
    convert(
        {
            "source": {"path": str(wan_source)},
            "quantization": {"method": "nvfp4"},
            "target": {"layout": "chunked", "chunk_size": "1MB"},
            "output": {"path": str(out), "name": "wan", "copy_metadata": True},
            "performance": {"device": "cpu"},
        }
    )
    return out


@pytest.mark.parametrize("layout", ["single_file", "by_block", "chunked"])
@pytest.mark.parametrize("method", ["int8", "fp8", "mxfp4", "nvfp4"])
def test_a_conversion_is_right(converted, wan_source, registry, method, layout):
    out = converted(method, **{"target.layout": layout, "output.copy_metadata": True})
    report = verify(out, wan_source, registry=registry)
    assert report.ok, problems_of(report)
    assert len(report.weights) == LINEAR
    assert all(0 < weight.relative_error < weight.limit / 2 for weight in report.weights)
    assert report.copied.compared
    assert report.copied.count == len(source_tensors(wan_source)) - LINEAR
    written = {path.relative_to(out).as_posix(): path.stat().st_size for path in out.rglob("*") if path.is_file()}
    assert report.structure.files == {name: size for name, size in written.items() if name != "wan.manifest.json"}
    weights = sum(name.endswith(".safetensors") for name in report.structure.files)
    assert report.structure.checksums == len(report.structure.files) + report.structure.tensors
    assert weights == {"single_file": 1, "by_block": 4, "chunked": 1}[layout]
    assert report.bytes_before == sum(t.numel() * t.element_size() for t in source_tensors(wan_source).values())
    assert verify(out, registry=registry).ok


def test_errors_are_what_an_independent_computation_says(converted, wan_source, registry, monkeypatch):
    out = converted("int8")
    # slabs of one tile, so that every weight is cut several times
    monkeypatch.setattr(read_back, "SLAB_ELEMENTS", 128 * 256)
    stored, source = load_file(out / "wan.safetensors"), source_tensors(wan_source)
    report = verify(out, wan_source, registry=registry)
    assert {weight.name for weight in report.weights} == {
        name for name, tensor in stored.items() if tensor.dtype == torch.int8
    }
    for weight in report.weights:
        # LightX2V multiplies the codes with scales that its loader has cast to bfloat16
        codes = stored[weight.name].numpy().astype(numpy.float64)
        scale = stored[weight.name + "_scale"].bfloat16().double().numpy()
        exact = source[weight.name].double().numpy()
        decoded = codes * scale
        error = decoded - exact
        signal = (exact**2).sum()
        assert weight.shape == exact.shape
        assert weight.relative_error == pytest.approx(math.sqrt((error**2).sum() / signal), rel=1e-5)
        assert weight.sqnr_db == pytest.approx(10 * math.log10(signal / (error**2).sum()), abs=1e-4)
        cosine = (exact * decoded).sum() / math.sqrt(signal * (decoded**2).sum())
        assert 1 - weight.cosine == pytest.approx(1 - cosine, rel=1e-2)
        assert weight.worst.error == pytest.approx(numpy.abs(error).max(), rel=1e-5)
        assert abs(error[weight.worst.position]) == pytest.approx(numpy.abs(error).max(), rel=1e-5)
        steps = (scale**2).sum() * exact.shape[1]
        assert weight.limit == pytest.approx(math.sqrt(steps / signal), rel=1e-5)
        assert weight.bytes_before == exact.size * 2
        assert weight.bytes_after == codes.size + 4 * len(codes)
        assert weight.block == weight.name.split(".")[1]
        assert weight.module == weight.name.split(".")[2]


@pytest.mark.parametrize("method", ["mxfp4", "nvfp4"])
@pytest.mark.parametrize("target", ["lightx2v", "plain"])
def test_slabs_change_nothing(converted, wan_source, registry, monkeypatch, method, target):
    out = converted(method, **{"target.format": target})
    whole = verify(out, wan_source, registry=registry)
    monkeypatch.setattr(read_back, "SLAB_ELEMENTS", 100 * 256)
    slabs = verify(out, wan_source, registry=registry)
    assert whole.ok
    assert slabs.ok
    for one, other in zip(whole.weights, slabs.weights, strict=True):
        assert other.relative_error == pytest.approx(one.relative_error, rel=1e-6)
        assert other.worst == one.worst
        assert other.limit == pytest.approx(one.limit, rel=1e-6)


def flip(path, at, bit):
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def tensor_at(path, at):
    with closing(LocalFile(path)) as source:
        found = Safetensors().read(source)
    spans = ((key, begin, found.tensors[key].nbytes) for key, begin in found.offsets.items())
    return next((key for key, begin, nbytes in spans if begin <= at < begin + nbytes), "")


def test_any_flipped_bit_is_named(chunks, registry):
    choose = random.Random(7)
    files = sorted(path for path in chunks.rglob("*") if path.is_file())
    assert {"wan.manifest.json", "diffusion_pytorch_model.safetensors.index.json", "config.json"} < {
        path.name for path in files
    }
    spots = [(path, choose.randrange(path.stat().st_size)) for path in files for _ in range(6)]
    spots += [(path, choose.randrange(2000)) for path in files if path.suffix == ".safetensors" for _ in range(4)]
    spots += [(path, at) for path in files if path.suffix == ".safetensors" for at in (0, 1, 7, 8)][:8]
    for path, at in spots:
        tensor = tensor_at(path, at) if path.suffix == ".safetensors" else ""
        bit = choose.randrange(8)
        flip(path, at, bit)
        try:
            report = verify(chunks, registry=registry)
        finally:
            flip(path, at, bit)
        name = path.relative_to(chunks).as_posix()
        assert name in {problem.file for problem in report.problems}, (name, at, bit)
        assert not tensor or tensor in {problem.tensor for problem in report.problems}, (name, at, bit)
        assert {problem.file for problem in report.problems} == {name}
    assert verify(chunks, registry=registry).ok


def test_a_cut_or_missing_file_is_named(chunks, registry):
    for path in sorted(path for path in chunks.rglob("*") if path.is_file()):
        content = path.read_bytes()
        name = path.relative_to(chunks).as_posix()
        for length in (len(content) - 1, len(content) // 2, 0):
            path.write_bytes(content[:length])
            report = verify(chunks, registry=registry)
            assert name in {problem.file for problem in report.problems}, (name, length)
        path.unlink()
        if not name.endswith(".manifest.json"):
            report = verify(chunks, registry=registry)
            assert [str(problem) for problem in report.problems] == [f"{name}: is missing; the manifest lists it"]
        path.write_bytes(content)
    assert verify(chunks, registry=registry).ok


def rewrite(out, change):
    """The manifest changed and with a checksum that fits."""
    path = out / "wan.manifest.json"
    content = {key: value for key, value in load_manifest(path).items() if key not in ("kind", "version", "crc32")}
    change(content)
    path.write_bytes(dump(content))


def test_names_and_shapes_are_compared_whatever_the_checksums_say(converted, registry):
    out = converted("int8")

    def change(content):
        tensors = content["tensors"]
        tensors["blocks.9.ffn.0.bias"] = tensors.pop("blocks.0.ffn.0.bias")
        content["weights"]["blocks.0.ffn.0.bias"]["parts"]["weight"] = "blocks.9.ffn.0.bias"
        tensors["head.head.bias"]["shape"] = [32, 2]
        tensors["blocks.0.ffn.2.bias"]["dtype"] = "F16"

    rewrite(out, change)
    report = verify(out, registry=registry)
    assert {problem.tensor: problem.reason for problem in report.problems} == {
        "blocks.0.ffn.0.bias": "is not in the manifest",
        "blocks.0.ffn.2.bias": "is BF16 [256], the manifest says F16 [256]",
        "blocks.9.ffn.0.bias": "is missing",
        "head.head.bias": "is BF16 [64], the manifest says BF16 [32, 2]",
    }


def test_an_index_that_is_wrong_though_its_checksum_fits(chunks, tmp_path, registry):
    out = tmp_path / "copy"
    shutil.copytree(chunks, out)
    path = out / "diffusion_pytorch_model.safetensors.index.json"
    index = json.loads(path.read_text())
    first, other, *_ = sorted(set(index["weight_map"].values()))
    key = next(key for key, file in index["weight_map"].items() if file == first)
    index["weight_map"][key] = other
    index["weight_map"]["ghost"] = index["weight_map"].pop("head.head.bias")
    text = json.dumps(index).encode()
    path.write_bytes(text)

    def change(content):
        content["files"][path.name] = {"size": len(text), "crc32": f"{zlib.crc32(text):08x}"}

    rewrite(out, change)
    report = verify(out, registry=registry)
    assert {problem.tensor: problem.reason for problem in report.problems} == {
        key: f"is in {first}, the index says {other}",
        "ghost": "is in the index alone",
        "head.head.bias": "is not in the index",
    }
    assert {problem.file for problem in report.problems} == {path.name}


def test_a_manifest_that_leads_out_of_its_folder_is_refused(converted, registry):
    out = converted("int8")
    rewrite(out, lambda content: content["files"].update({"../secret": {"size": 1, "crc32": "00000000"}}))
    report = verify(out, registry=registry)
    assert [str(problem) for problem in report.problems] == [
        "wan.manifest.json: is not laid out as a manifest of this tool: the entry ../secret of files"
    ]


def test_another_source_is_beyond_what_the_scheme_can_do(converted, tmp_path, registry):
    out = converted("mxfp4")
    write_synthetic(tmp_path / "other", WanDit().synthetic(), seed=1)
    report = verify(out, tmp_path / "other", registry=registry)
    assert not report.ok
    assert not any(weight.ok for weight in report.weights)
    assert all(weight.relative_error > weight.limit for weight in report.weights)
    assert len(report.copied.unequal) == report.copied.count
    assert "its relative error is 1." in problems_of(report)
    assert "the quantization steps of mxfp4 allow at most 0." in problems_of(report)


def test_one_damaged_weight_is_found_among_good_ones(converted, wan_source, registry):
    out = converted("int8")
    tensors = load_file(out / "wan.safetensors")
    tensors["blocks.1.ffn.0.weight_scale"][100:500] *= 1.5
    tensors["blocks.2.norm3.bias"][7] += 0.5
    save_file(tensors, out / "wan.safetensors")
    (out / "wan.manifest.json").unlink()
    report = verify(out, wan_source, registry=registry)
    assert [weight.name for weight in report.weights if not weight.ok] == ["blocks.1.ffn.0.weight"]
    assert report.copied.unequal == ("blocks.2.norm3.bias",)
    assert {problem.tensor for problem in report.problems} == {"blocks.1.ffn.0.weight", "blocks.2.norm3.bias"}
    assert report.weights[-1].relative_error < 0.02


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_what_was_cast_is_compared_after_the_cast(tmp_path, asked, registry, dtype):
    write_synthetic(tmp_path / "source", WanDit().synthetic(), dtype=dtype)
    recipe = asked("fp8", **{"target.dtype": "bfloat16"})
    recipe["source"]["path"] = str(tmp_path / "source")
    convert(recipe)
    report = verify(tmp_path / "out", tmp_path / "source", registry=registry)
    assert report.ok, problems_of(report)
    assert report.copied.compared
    assert report.copied.bytes_before == report.copied.bytes_after * (2 if dtype == "F32" else 1)


def test_files_of_another_tool_are_checked_by_what_the_target_expects(wan_source, tmp_path, registry):
    """As LightX2V's own converter writes int8: scales in the source's dtype, and no manifest."""
    tensors = source_tensors(wan_source)
    for name in [name for name, tensor in tensors.items() if name.startswith("blocks.") and tensor.dim() == 2]:
        weight = tensors[name]
        scale = weight.abs().amax(1, keepdim=True) / 127
        tensors[name] = (weight / scale).round().clamp(-128, 127).to(torch.int8)
        tensors[name + "_scale"] = scale
    (tmp_path / "theirs").mkdir()
    save_file(tensors, tmp_path / "theirs" / "model.safetensors")
    for path in (tmp_path / "theirs", tmp_path / "theirs" / "model.safetensors"):
        report = verify(path, wan_source, registry=registry)
        assert report.ok, problems_of(report)
        assert report.manifest is None
        assert report.target == "lightx2v"
        assert report.structure.checksums == 0
        assert "there is no manifest" in "\n".join(report.notes)
        assert len(report.weights) == LINEAR
        assert all(0.001 < weight.relative_error < 0.02 for weight in report.weights)
    alone = verify(tmp_path / "theirs", registry=registry)
    assert alone.status == "structure only"
    assert not alone.ok
    assert [weight.relative_error for weight in alone.weights] == [None] * LINEAR
    assert alone.weights[0].block == "0"
    assert alone.bytes_before is None


@pytest.mark.parametrize("method", ["fp8", "nvfp4"])
@pytest.mark.parametrize("target", ["lightx2v", "plain"])
def test_without_the_manifest_the_files_still_tell(converted, wan_source, registry, method, target):
    out = converted(method, **{"target.format": target, "target.layout": "by_block"})
    known = verify(out, wan_source, registry=registry)
    (out / "wan.manifest.json").unlink()
    found = verify(out, wan_source, registry=registry)
    assert found.ok, problems_of(found)
    assert {weight.name: weight.relative_error for weight in found.weights} == {
        weight.name: weight.relative_error for weight in known.weights
    }
    alone = verify(out, registry=registry)
    assert alone.status == "structure only", problems_of(alone)
    assert {weight.name: weight.shape for weight in alone.weights} == {
        weight.name: weight.shape for weight in known.weights
    }


def test_what_the_output_can_be(converted, tmp_path, asked, registry):
    out = converted("int8", **{"target.layout": "by_block"})
    for path in (out, out / "wan.manifest.json", out / "block_1.safetensors"):
        report = verify(path, registry=registry)
        assert report.ok
        assert report.manifest == str(out / "wan.manifest.json")
        assert report.structure.tensors == verify(out, registry=registry).structure.tensors
    convert(asked("int8", **{"output.name": "second"}))
    with pytest.raises(VerificationError, match=r"several conversions; .*: second.manifest.json, wan.manifest.json"):
        verify(out, registry=registry)
    assert verify(out / "second.manifest.json", registry=registry).ok
    with pytest.raises(VerificationError, match="does not exist"):
        verify(tmp_path / "nowhere", registry=registry)


def test_strangers_in_the_folder_are_problems_of(converted, registry):
    out = converted("int8")
    save_file({"x": torch.ones(2)}, out / "left.safetensors")
    (out / ".done.partial").mkdir()
    (out / ".other.partial").mkdir()
    (out / ".other.partial" / "journal.jsonl").touch()
    report = verify(out, registry=registry)
    assert report.ok
    assert "left.safetensors, which no manifest lists" in "\n".join(report.notes)
    assert "unfinished conversion: .other.partial" in "\n".join(report.notes)


def test_a_tensor_of_the_source_that_is_nowhere_is_told(converted, wan_source, tmp_path, registry):
    out = converted("int8")
    tensors = source_tensors(wan_source)
    tensors["blocks.0.extra.bias"] = torch.ones(3)
    del tensors["blocks.1.ffn.0.bias"]
    (tmp_path / "more").mkdir()
    save_file(tensors, tmp_path / "more" / "model.safetensors")
    report = verify(out, tmp_path / "more", registry=registry)
    assert {problem.tensor: problem.reason for problem in report.problems} == {
        "blocks.0.extra.bias": "is in the source and not in the output",
        "blocks.1.ffn.0.bias": "is not in the source",
    }


def test_a_format_that_nothing_reads_is_problems_of(converted, registry):
    out = converted("int8")
    few = load_plugins(blocked=["int8"])
    report = verify(out, registry=few)
    assert len(report.problems) == LINEAR
    assert "no installed quantizer reads int8; install the plugin that does" in problems_of(report)


def test_what_is_not_finite_is_problems_of(converted, registry):
    out = converted("int8")
    tensors = load_file(out / "wan.safetensors")
    tensors["blocks.0.ffn.0.weight_scale"][130] = math.nan
    save_file(tensors, out / "wan.safetensors")
    (out / "wan.manifest.json").unlink()
    report = verify(out, registry=registry)
    assert [problem.tensor for problem in report.problems] == ["blocks.0.ffn.0.weight"]
    assert "is not finite" in problems_of(report)


def test_a_mix_of_schemes(asked, wan_source, tmp_path, registry):
    recipe = asked("nvfp4", **{"target.format": "plain"})
    recipe["quantization"]["rules"] = [
        {"match": "blocks.0.*", "method": "fp8"},
        {"match": "blocks.2.*", "method": "int8", "options": {"symmetric": False}},
    ]
    convert(recipe)
    report = verify(tmp_path / "out", wan_source, registry=registry)
    assert report.ok, problems_of(report)
    assert {(weight.block, weight.format) for weight in report.weights} == {
        ("0", "fp8"),
        ("1", "nvfp4"),
        ("2", "int8"),
    }
    mean = {
        block: sum(weight.sqnr_db for weight in report.weights if weight.block == block) / (LINEAR / 3)
        for block in "012"
    }
    assert mean["2"] > mean["0"] > mean["1"]


def test_a_relaid_output_is_compared_bit_by_bit(converted, asked, tmp_path, registry):
    first = converted("nvfp4")
    recipe = asked("none", **{"target.layout": "by_block"})
    recipe["source"]["path"] = str(first)
    recipe["output"]["path"] = str(tmp_path / "relaid")
    convert(recipe)
    report = verify(tmp_path / "relaid", first, registry=registry)
    assert report.ok, problems_of(report)
    assert len(report.weights) == LINEAR
    assert verify(tmp_path / "relaid", registry=registry).ok
    tensors = load_file(first / "wan.safetensors")
    tensors["blocks.1.ffn.0.weight"][3, 5] ^= 1
    save_file(tensors, first / "wan.safetensors")
    report = verify(tmp_path / "relaid", first, registry=registry)
    assert problems_of(report).endswith("'blocks.1.ffn.0.weight': blocks.1.ffn.0.weight differs from the source")


@dataclass(frozen=True)
class Halves(Quantizer):
    """Whole weights, no step, and an option without which it cannot be read back."""

    name: ClassVar[str] = "halves"

    factor: float = 1.0

    def quantize(self, weight):
        return {"weight": (weight.float() * self.factor).to(torch.float16)}

    def dequantize(self, parts):
        return parts["weight"].float() / self.factor


class Plugin:
    from converter_core.api.hookspecs import hookimpl

    @hookimpl
    def converter_quantizers(self):
        return [Halves]


def test_a_strangers_whole_weights_are_read_with_the_options_of_the_recipe(asked, wan_source, tmp_path):
    registry = load_plugins(extra=[Plugin()])
    recipe = asked("halves", **{"target.format": "plain"})
    recipe["quantization"]["options"] = {"factor": 1024.0, "target_modules": ["ffn"]}
    convert(recipe, registry=registry)
    report = verify(tmp_path / "out", wan_source, registry=registry)
    assert report.ok, problems_of(report)
    assert len(report.weights) == 6
    assert all(weight.relative_error < 1e-3 and weight.limit is None for weight in report.weights)
    assert "halves has no quantization_step; errors are reported without a pass/fail limit" in report.notes


@pytest.mark.parametrize("relaid", [False, True], ids=["as it was made", "laid out anew"])
def test_without_the_manifest_the_metadata_tells_the_options(asked, wan_source, tmp_path, relaid):
    registry = load_plugins(extra=[Plugin()])
    recipe = asked("halves", **{"target.format": "plain"})
    recipe["quantization"]["options"] = {"factor": 1024.0}
    recipe["quantization"]["rules"] = [{"match": "blocks.1.*", "method": "halves", "options": {"factor": 64.0}}]
    out = convert(recipe, registry=registry).output
    if relaid:
        recipe = asked("none", **{"target.format": "plain", "source.path": str(out), "output.path": f"{out}2"})
        out = convert(recipe, registry=registry).output
        assert verify(out, registry=registry).ok
    Path(out, "wan.manifest.json").unlink()
    schemes = inspect(out, registry).quantized.schemes
    assert [(scheme.match, scheme.options) for scheme in schemes] == [
        ("blocks.1.*", {"factor": 64.0}),
        ("(target_modules)", {"factor": 1024.0}),
    ]
    report = verify(out, wan_source, registry=registry)
    assert report.ok, problems_of(report)
    assert all(weight.relative_error < 1e-3 for weight in report.weights)
    assert not any("defaults" in note for note in report.notes)


def test_a_strangers_metadata_of_the_same_name_is_no_stumbling_block(converted, wan_source, registry):
    out = converted("int8")
    (out / "wan.manifest.json").unlink()
    tensors = load_file(out / "wan.safetensors")
    for text in ("[{}]", "[[1]]", "{", "7", "[" * 100_000):
        save_file(tensors, out / "wan.safetensors", {"quantization_rules": text})
        report = verify(out, wan_source, registry=registry)
        assert report.ok, problems_of(report)
        assert "nothing tells the schemes' options, so these are defaults" in report.notes[0]


def test_a_step_of_another_shape_is_called_that(asked, wan_source, tmp_path, monkeypatch):
    registry = load_plugins(extra=[Plugin()])
    convert(asked("halves", **{"target.format": "plain"}), registry=registry)
    monkeypatch.setattr(Halves, "quantization_step", lambda self, parts: torch.ones(len(parts["weight"]), 1))
    report = verify(tmp_path / "out", wan_source, registry=registry)
    assert not report.ok
    assert "must give the weight's shape, [256, 256] here, not float32 [256, 1]" in problems_of(report)


def test_progress_reaches_its_total(chunks, wan_source, registry):
    events = []
    assert verify(chunks, wan_source, registry=registry, progress=events.append).ok
    assert [event.done for event in events] == sorted(event.done for event in events)
    assert events[-1].done == events[-1].total
    stored = sum(t.numel() * t.element_size() for t in source_tensors(chunks).values())
    before = sum(t.numel() * t.element_size() for t in source_tensors(wan_source).values())
    assert events[-1].total == stored + before


def test_an_interrupt_stops_the_workers(chunks, wan_source, registry):
    def interrupt(event):
        raise KeyboardInterrupt

    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        verify(chunks, wan_source, registry=registry, progress=interrupt)
    assert torch.get_num_threads() == threads


def test_the_report_is_json(chunks, wan_source, registry, tmp_path):
    report = verify(chunks, wan_source, registry=registry)
    values = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert values["ok"] is True
    assert values["weights"][0]["worst"]["position"] == list(report.weights[0].worst.position)
    assert values["bytes_after"] == report.bytes_after
    assert Passthrough.name not in {weight["format"] for weight in values["weights"]}
