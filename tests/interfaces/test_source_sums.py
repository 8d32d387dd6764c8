"""What the checksums of a source are of: rows of fused tensors, biases, and what plugins read while they plan."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import converter_core
from converter_core import Extras, ModelFacts, Parts, PlanError, PlannedWeight, Quantizer, TensorSpec, WeightContext
from converter_core.engine import making, rows
from converter_core.engine.source_sums import SourceSums
from converter_core.native import checksum
from converter_core.native.checksum import Checksum

from .test_joints import Plain
from .test_stores import BiasAware, Fused, asked, random, write


def sums_in(output: Path) -> Mapping[str, str]:
    (manifest,) = output.glob("*.manifest.json")
    found: Mapping[str, str] = json.loads(manifest.read_text())["source"]["checksums"]
    return found


def of(*pieces: bytes) -> str:
    """The checksum of the checksums of some runs of bytes."""
    all_ = Checksum()
    for piece in pieces:
        one = Checksum()
        one.update(memoryview(piece))
        all_.update(memoryview(one.value.to_bytes(8, "little")))
    return f"{all_.value:016x}"


def data(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.int16).numpy().tobytes()


def later(source: Path) -> None:
    for path in source.rglob("*.safetensors"):
        os.utime(path, ns=(1, 2))


@pytest.fixture
def read_again(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tensors that are read for their checksum alone."""
    real, seen = SourceSums._read, []

    def read(self: SourceSums, bound: Any, sums: Any) -> None:
        seen.append(bound.ref.key)
        real(self, bound, sums)

    monkeypatch.setattr(SourceSums, "_read", read)
    return seen


@pytest.mark.parametrize("slab", [1 << 20, 700])
def test_rows_of_fused_tensors(
    load: Any, tmp_path: Path, read_again: list[str], monkeypatch: pytest.MonkeyPatch, slab: int
) -> None:
    monkeypatch.setattr("converter_plugins.devices.cpu.Cpu.slab_bytes", lambda self, device: slab)
    qkv, gate, up = random(96, 64), random(40, 64, seed=1), random(24, 64, seed=2)
    source = write(tmp_path / "source" / "model.safetensors", qkv=qkv, gate=gate, up=up).parent
    registry = load(models=[Fused])
    converter_core.convert(asked(source, tmp_path / "out", "int8"), registry=registry)
    expected = {f"attn.{name}.weight": of(data(qkv[32 * n : 32 * n + 32])) for n, name in enumerate("qkv")}
    expected["mlp.weight"] = of(data(gate), data(up))
    assert sums_in(tmp_path / "out") == expected
    assert read_again == []
    later(source)  # now each is read by itself
    monkeypatch.setattr("converter_core.engine.source_sums.PIECE", 1000)
    assert converter_core.convert(asked(source, tmp_path / "out", "int8"), registry=registry).status == "already done"
    assert sorted(read_again) == ["gate", "qkv", "qkv", "qkv", "up"]


def test_a_bias_that_a_quantizer_takes(
    load: Any, recipe: Any, source: Path, tmp_path: Path, read_again: list[str]
) -> None:
    registry = load(quantizers=[BiasAware])
    converter_core.convert(recipe("bias_aware", "plain"), registry=registry)
    tensors = load_file(source / "model.safetensors")
    weight, bias = data(tensors["layers.0.up.weight"]), data(tensors["layers.0.up.bias"])
    assert sums_in(tmp_path / "out")["layers.0.up.weight"] == of(weight, bias)
    assert read_again == []
    tensors["layers.0.up.bias"][5] *= 3
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    later(source)
    with pytest.raises(PlanError, match=r"another source with the same headers: 'layers\.0\.up\.weight' differ"):
        converter_core.convert(recipe("bias_aware", "plain"), registry=registry)


@dataclass(frozen=True)
class Scaled(Quantizer):
    """Takes a number that it found while it planned."""

    name: ClassVar[str] = "scaled"
    row_block: ClassVar[int | None] = 1
    factor: ClassVar[float] = 2.0

    def inputs(self, context: WeightContext, stores: Mapping[str, Mapping[str, TensorSpec]], /) -> dict[str, Any]:
        return {"factor": torch.tensor([self.factor])}

    def quantize(self, weight: Tensor, /, factor: Tensor) -> Parts:
        return {"weight": weight.float() * factor}

    def dequantize(self, parts: Parts, /) -> Tensor:
        return parts["weight"]


class Marked(Plain):
    """Adds a tensor of its own."""

    mark: ClassVar[int] = 7

    def extras(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Extras:
        return Extras(tensors={"mark": torch.tensor([self.mark])})


def test_what_was_read_while_planning_is_compared_too(
    load: Any, recipe: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = load(quantizers=[Scaled], targets=[Marked])
    asked_ = recipe("scaled", "mine")
    converter_core.convert(asked_, registry=registry)
    later(source)
    assert converter_core.convert(asked_, registry=registry).status == "already done"
    with monkeypatch.context() as patch, pytest.raises(PlanError, match=r"'layers\.0\.up\.weight', 'layers\.1\.up"):
        patch.setattr(Scaled, "factor", 3.0)
        converter_core.convert(asked_, registry=registry)
    with monkeypatch.context() as patch, pytest.raises(PlanError, match="same headers: 'mark' differ"):
        patch.setattr(Marked, "mark", 8)
        converter_core.convert(asked_, registry=registry)


@pytest.mark.parametrize("slab", [1 << 20, 700])
@pytest.mark.parametrize("compiled", [True, False])
def test_values_are_looked_at_once(
    recipe: Any, load: Any, monkeypatch: pytest.MonkeyPatch, compiled: bool, slab: int
) -> None:
    """By the checksums, or else by torch."""
    if compiled and checksum._library is None:
        pytest.skip("the kernels are not compiled")
    seen: list[str] = []
    real = rows.check_finite

    def check(tensor: Tensor, name: str, row: int, what: str = "") -> None:
        seen.extend([name] if name.startswith("model.safetensors") else [])
        real(tensor, name, row, what)

    monkeypatch.setattr("converter_plugins.devices.cpu.Cpu.slab_bytes", lambda self, device: slab)
    for module in (rows, making):
        monkeypatch.setattr(module, "check_finite", check)
    if not compiled:
        monkeypatch.setattr(checksum, "_library", None)
    converter_core.convert(recipe("int8", "plain"), registry=load())
    assert (seen == []) is compiled
