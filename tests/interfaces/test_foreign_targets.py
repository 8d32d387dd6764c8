"""Targets like those of other runtimes, written with the public interface alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import converter_core
from converter_core import (
    UNQUANTIZED,
    Extras,
    ModelFacts,
    Parts,
    PlannedWeight,
    QuantFormat,
    Quantizer,
    Refused,
    SourceTensors,
    Stored,
    Target,
    WeightContext,
)

from .conftest import tensors


@dataclass(frozen=True)
class TensorFp8(Quantizer):
    """fp8 with one scale for the whole weight."""

    name: ClassVar[str] = "tensor_fp8"
    row_block: ClassVar[int | None] = 1

    @property
    def format(self) -> QuantFormat:
        return QuantFormat(self.name, "e4m3", 8, "tensor", scale_dtype="F32")

    def observe(self, rows: Tensor, /) -> Parts:
        return {"amax": rows.abs().amax().float()}

    def quantize(self, weight: Tensor, /, amax: Tensor) -> Parts:
        scale = torch.where(amax > 0, amax / torch.full_like(amax, 448), torch.ones_like(amax))
        return {"weight": (weight.float() / scale).to(torch.float8_e4m3fn), "scale": scale}

    def dequantize(self, parts: Parts, /) -> Tensor:
        return parts["weight"].float() * parts["scale"]


class MarkedTarget(Target):
    """A marker beside every weight, nibbles swapped, rows padded to 16; fp8 per tensor only."""

    name = "marked"
    row_block = 16

    def key(self, context: WeightContext, role: str, /) -> str:
        stem = context.name.removesuffix(".weight")
        return context.name if role == "weight" else f"{stem}.{role}"

    def encode(self, context: WeightContext, parts: Parts, /) -> Parts:
        if context.format == UNQUANTIZED:
            return parts
        if context.format.element == "e4m3" and context.format.granularity != "tensor":
            raise Refused("reads fp8 per tensor only")
        if context.format.packing == "low_nibble_first":
            codes = parts["weight"]
            swapped = (codes >> 4) | (codes << 4)
            missing = -codes.shape[0] % 16
            return {**parts, "weight": torch.cat([swapped, swapped.new_zeros(missing, codes.shape[1])])}
        return parts

    def decode(self, context: WeightContext, stored: Parts, /) -> Parts:
        if context.format.packing != "low_nibble_first":
            return {role: part for role, part in stored.items() if role != "comfy_quant"}
        codes = stored["weight"][: context.spec.shape[0]] if context.spec else stored["weight"]
        parts = {**stored, "weight": (codes >> 4) | (codes << 4)}
        parts.pop("comfy_quant", None)
        return parts

    def markers(self, context: WeightContext, /) -> Parts:
        if context.format == UNQUANTIZED:
            return {}
        text = json.dumps({"format": context.format.name}).encode()
        return {"comfy_quant": torch.tensor(list(text), dtype=torch.uint8)}

    def detect(self, tensors: SourceTensors, /) -> Mapping[str, Stored]:
        found = {}
        for key in tensors:
            if key.endswith(".comfy_quant"):
                format = json.loads(bytes(tensors.read(key).tolist()))["format"]
                stem = key.removesuffix(".comfy_quant")
                keys = {"weight": f"{stem}.weight", "scale": f"{stem}.scale", "comfy_quant": key}
                found[f"{stem}.weight"] = Stored(QuantFormat(format, format), keys)
        return found


def test_markers_padded_rows_and_scales_per_tensor(load: Any, recipe: Any, tmp_path: Path) -> None:
    registry = load(targets=[MarkedTarget], quantizers=[TensorFp8])
    converter_core.convert(recipe("tensor_fp8", "marked"), registry=registry)
    written = load_file(tmp_path / "out" / "tiny.safetensors")
    assert written["layers.0.up.scale"].shape == ()
    assert bytes(written["layers.1.up.comfy_quant"].tolist()) == b'{"format": "tensor_fp8"}'
    report = converter_core.verify(tmp_path / "out", recipe("", "")["source"]["path"], registry=registry)
    assert report.ok, report.problems
    found = converter_core.inspect(tmp_path / "out", registry=registry)
    assert found.quantized is not None
    assert found.quantized.formats == {"tensor_fp8": 2}


def test_nibbles_and_padding_come_back(load: Any, recipe: Any, source: Path, tmp_path: Path) -> None:

    save_file(tensors(rows=37), source / "model.safetensors")
    registry = load(targets=[MarkedTarget])
    converter_core.convert(recipe("mxfp4", "marked"), registry=registry)
    written = load_file(tmp_path / "out" / "tiny.safetensors")
    assert written["layers.0.up.weight"].shape == (48, 32)
    assert not written["layers.0.up.weight"][37:].any()
    report = converter_core.verify(tmp_path / "out", source, registry=registry)
    assert report.ok, report.problems


def test_a_granularity_it_does_not_read_is_refused(load: Any, recipe: Any) -> None:
    registry = load(targets=[MarkedTarget])
    with pytest.raises(converter_core.PlanError, match="reads fp8 per tensor only"):
        converter_core.make_plan(recipe("fp8", "marked"), registry)


class RecordTarget(Target):
    """No part is called weight; a record of every tensor of the model stands in each header; config.json is edited."""

    name = "record"
    row_block = 1

    def key(self, context: WeightContext, role: str, /) -> str:
        return f"{context.name}_{role}" if context.format != UNQUANTIZED else context.name

    def encode(self, context: WeightContext, parts: Parts, /) -> Parts:
        if context.format == UNQUANTIZED:
            return parts
        return {"qdata": parts["weight"], "qscale": parts["scale"]}

    def decode(self, context: WeightContext, stored: Parts, /) -> Parts:
        if context.format == UNQUANTIZED:
            return stored
        return {"weight": stored["qdata"], "scale": stored["qscale"]}

    def extras(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Extras:
        record = {weight.name: weight.format.facts() for weight in weights if weight.format != UNQUANTIZED}
        return Extras({"record": json.dumps(record)}, index={"parts": len(record)})

    def config(self, config: Mapping[str, Any], weights: Sequence[PlannedWeight], /) -> Mapping[str, Any]:
        return {**config, "quantization_config": {"quant_method": "record"}}


def test_record_of_the_whole_model_in_every_shard(load: Any, recipe: Any, source: Path, tmp_path: Path) -> None:
    registry = load(targets=[RecordTarget])
    asked = recipe("int8", "record", layout="chunked", chunk_size=1)
    converter_core.convert(asked, registry=registry)
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) == 5
    for shard in shards:
        with safe_open(shard, "pt") as file:
            record = json.loads(file.metadata()["record"])
        assert set(record) == {"layers.0.up.weight", "layers.1.up.weight"}
        assert record["layers.0.up.weight"]["element"] == "int8"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {"model": "tiny", "layers": 2, "quantization_config": {"quant_method": "record"}}
    (index,) = (tmp_path / "out").glob("*.index.json")
    assert json.loads(index.read_text())["metadata"]["parts"] == 2
    report = converter_core.verify(tmp_path / "out", source, registry=registry)
    assert report.ok, report.problems


class ShapeTarget(RecordTarget):
    """The shape stands beside the packed codes; a model that the runtime does not have is refused."""

    name = "shaped"

    def encode(self, context: WeightContext, parts: Parts, /) -> Parts:
        if context.format == UNQUANTIZED:
            return parts
        return {"weight_packed": parts["weight"], "weight_scale": parts["scale"]}

    def decode(self, context: WeightContext, stored: Parts, /) -> Parts:
        if context.format == UNQUANTIZED:
            return stored
        return {"weight": stored["weight_packed"], "scale": stored["weight_scale"]}

    def markers(self, context: WeightContext, /) -> Parts:
        if context.format == UNQUANTIZED or context.spec is None:
            return {}
        return {"weight_shape": torch.tensor(context.spec.shape)}

    def refuse(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Sequence[str]:
        return ["the runtime has no such model"] if model.config.get("model") != "tiny" else []


def test_shapes_beside_the_codes(load: Any, recipe: Any, source: Path, tmp_path: Path) -> None:
    registry = load(targets=[ShapeTarget])
    converter_core.convert(recipe("mxfp4", "shaped"), registry=registry)
    written = load_file(tmp_path / "out" / "tiny.safetensors")
    assert written["layers.0.up.weight_weight_shape"].tolist() == [96, 64]
    assert converter_core.verify(tmp_path / "out", source, registry=registry).ok


def test_a_target_can_refuse_a_model(load: Any, recipe: Any, source: Path) -> None:
    (source / "config.json").write_text('{"model": "other"}')
    with pytest.raises(converter_core.PlanError, match="the runtime has no such model"):
        converter_core.make_plan(recipe("int8", "shaped"), load(targets=[ShapeTarget]))
