"""Tensors from several files, fused and split ones, read slab by slab within the budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import converter_core
from converter_core import (
    ModelAdapter,
    Parts,
    PlanError,
    QuantFormat,
    Quantizer,
    SourceTensors,
    TensorRef,
    TensorSpec,
    WeightContext,
    WeightInfo,
)
from converter_core.checkpoint.checkpoint import Checkpoint

DIM = 64


def write(path: Path, **tensors: Tensor) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path)
    return path


def random(*shape: int, seed: int = 0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.05).to(torch.bfloat16)


class Fused(ModelAdapter):
    """``qkv`` is split into three weights, ``gate`` and ``up`` are fused into one."""

    name = "fused"
    modules = ("attn", "mlp")
    covers = True

    def owns_key(self, key: str) -> bool:
        return key in ("qkv", "gate", "up")

    def recognise(self, tensors: SourceTensors) -> str | None:
        return "fused" if "qkv" in tensors else None

    def weights(self, tensors: SourceTensors) -> Iterable[WeightInfo]:
        rows = tensors["qkv"].shape[0] // 3
        for number, name in enumerate("qkv" if self.covers else "qk"):
            ref = TensorRef("qkv", rows=(number * rows, (number + 1) * rows))
            yield WeightInfo(f"attn.{name}.weight", {"weight": ref}, "linear", "attn", "0")
        yield WeightInfo("mlp.weight", {"weight": (TensorRef("gate"), TensorRef("up"))}, "linear", "mlp", "0")


class Forgets(Fused):
    covers = False


def asked(source: Path, output: Path, method: str = "none", **performance: Any) -> dict[str, Any]:
    return {
        "source": {"path": str(source)},
        "quantization": {"method": method},
        "target": {"format": "plain"},
        "output": {"path": str(output), "name": "x"},
        "performance": {"device": "cpu", "num_workers": 1, **performance},
    }


@pytest.mark.parametrize("memory", ["4GiB", "64KiB"])
def test_fused_and_split(load: Any, tmp_path: Path, memory: str) -> None:
    qkv, gate, up = random(300, DIM), random(130, DIM, seed=1), random(70, DIM, seed=2)
    source = write(tmp_path / "s" / "m.safetensors", qkv=qkv, gate=gate, up=up)
    registry = load(models=[Fused])
    converter_core.convert(asked(source, tmp_path / "o", max_memory=memory), registry=registry)
    written = load_file(tmp_path / "o" / "x.safetensors")
    assert torch.equal(written["attn.k.weight"], qkv[100:200])
    assert torch.equal(written["mlp.weight"], torch.cat([gate, up]))
    report = converter_core.verify(tmp_path / "o", source, registry=registry)
    assert report.ok, report.problems
    converter_core.convert(asked(source, tmp_path / "q", "int8", max_memory=memory), registry=registry)
    report = converter_core.verify(tmp_path / "q", source, registry=registry)
    assert report.ok, report.problems


def test_rows_that_no_weight_takes_are_a_fault(load: Any, tmp_path: Path) -> None:
    source = write(tmp_path / "s" / "m.safetensors", qkv=random(300, DIM), gate=random(4, DIM), up=random(4, DIM))
    with pytest.raises(PlanError, match=r"qkv has 300 rows, and its parts \(0-100, 100-200\) do not cover"):
        converter_core.make_plan(asked(source, tmp_path / "o"), load(models=[Forgets]))


def test_tensors_that_cannot_be_joined(load: Any, tmp_path: Path) -> None:
    source = write(tmp_path / "s" / "m.safetensors", qkv=random(300, DIM), gate=random(4, DIM), up=random(4, 32))
    with pytest.raises(converter_core.ConverterError, match="gate, up cannot be joined along the rows"):
        converter_core.make_plan(asked(source, tmp_path / "o"), load(models=[Fused]))


LORA = ""


@dataclass(frozen=True)
class WithLora(ModelAdapter):
    """W + B A, with A and B from another file."""

    name: ClassVar[str] = "with_lora"
    modules: ClassVar[tuple[str, ...]] = ("up",)

    def owns_key(self, key: str) -> bool:
        return key == "up.weight"

    def recognise(self, tensors: SourceTensors) -> str | None:
        return "lora" if "up.weight" in tensors else None

    def stores(self) -> Mapping[str, str]:
        return {"lora": LORA}

    def weights(self, tensors: SourceTensors) -> Iterable[WeightInfo]:
        assert tensors.stores["lora"]["up.A"] == TensorSpec("BF16", (4, DIM))
        sources = {
            "weight": TensorRef("up.weight"),
            "B": TensorRef("up.B", store="lora"),
            "A": TensorRef("up.A", store="lora", by_rows=False),
        }
        yield WeightInfo("up.weight", sources, "linear", "up", "0")

    def assemble(self, context: WeightContext, sources: Parts) -> Tensor:
        total = sources["weight"].float()
        for rank in range(sources["A"].shape[0]):
            total = total + sources["B"][:, rank : rank + 1].float() * sources["A"][rank].float()
        return total.to(torch.bfloat16)


@pytest.mark.parametrize("memory", ["4GiB", "32KiB"])
def test_a_second_store(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: str) -> None:
    weight, a, b = random(200, DIM), random(4, DIM, seed=1), random(200, 4, seed=2)
    source = write(tmp_path / "s" / "m.safetensors", **{"up.weight": weight})
    lora = write(tmp_path / "l" / "lora.safetensors", **{"up.A": a, "up.B": b})
    monkeypatch.setitem(globals(), "LORA", str(lora))
    registry = load(models=[WithLora])
    converter_core.convert(asked(source, tmp_path / "o", max_memory=memory), registry=registry)
    written = load_file(tmp_path / "o" / "x.safetensors")["up.weight"]
    expected = weight.float()
    for rank in range(4):
        expected = expected + b[:, rank : rank + 1].float() * a[rank].float()
    assert torch.equal(written, expected.to(torch.bfloat16))
    with converter_core.make_plan(asked(source, tmp_path / "p"), registry) as plan:
        before = plan.outputs[0].fingerprint
    write(lora, **{"up.A": a, "up.B": b, "up.C": b.clone()})
    with converter_core.make_plan(asked(source, tmp_path / "p"), registry) as plan:
        after = plan.outputs[0].fingerprint
    assert before.value != after.value


CALIBRATION = ""
READ: list[tuple[str, int]] = []


@dataclass(frozen=True)
class Calibrated(Quantizer):
    """int8 whose scales follow importances from another file, as large as the weight; and one large tensor for all."""

    name: ClassVar[str] = "calibrated"
    row_block: ClassVar[int | None] = 1

    @property
    def format(self) -> QuantFormat:
        return QuantFormat(self.name, "int8", 8, "row", scale_dtype="F32")

    def stores(self) -> Mapping[str, str]:
        return {"calibration": CALIBRATION}

    def inputs(
        self, context: WeightContext, stores: Mapping[str, Mapping[str, TensorSpec]], /
    ) -> Mapping[str, TensorRef | Tensor]:
        assert context.info.name + ".rows" in stores["calibration"]
        return {
            "importance": TensorRef(context.info.name + ".rows", store="calibration"),
            "columns": TensorRef("columns", store="calibration", by_rows=False),
        }

    def quantize(self, weight: Tensor, /, importance: Tensor, columns: Tensor) -> Parts:
        scale = weight.float().abs().amax(1, keepdim=True).clamp_(min=1e-9) / torch.full((1, 1), 127.0).to(
            weight.device
        )
        scale = scale * importance.float().amax(1, keepdim=True).clamp(1, 1) * columns.float()[:1, :1].clamp(1, 1)
        return {"codes": (weight.float() / scale).round().clamp(-127, 127).to(torch.int8), "scale": scale}

    def dequantize(self, parts: Parts, /) -> Tensor:
        return parts["codes"].float() * parts["scale"]


def test_a_large_calibration_tensor_is_read_within_the_budget(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 MiB beside each weight under max_memory: 64MiB; nothing of it is read while planning."""
    rows, columns = 8192, 1024
    weights = {f"layers.{n}.up.weight": random(rows, columns, seed=n) for n in range(2)}
    source = write(tmp_path / "s" / "m.safetensors", **weights, **{"norm.weight": random(DIM)})
    importance = {f"{name}.rows": random(rows, columns, seed=9) for name in weights}
    file = write(tmp_path / "c" / "c.safetensors", **importance, columns=random(4, columns))
    monkeypatch.setitem(globals(), "CALIBRATION", str(file))
    registry = load(quantizers=[Calibrated])
    recipe = asked(source, tmp_path / "o", "calibrated", max_memory="64MiB")
    largest = 0
    read = Checkpoint.read

    def spy(self: Checkpoint, key: str, start: int, into: memoryview) -> None:
        nonlocal largest
        largest = max(largest, len(into))
        read(self, key, start, into)

    monkeypatch.setattr(Checkpoint, "read", spy)
    with converter_core.make_plan(recipe, registry) as plan:
        assert largest == 0
        assert not plan.notes
        converter_core.convert(plan)
    assert 0 < largest <= 16 << 20
    monkeypatch.undo()
    monkeypatch.setitem(globals(), "CALIBRATION", str(file))
    whole = asked(source, tmp_path / "w", "calibrated", max_memory="4GiB")
    converter_core.convert(whole, registry=registry)
    assert (tmp_path / "o" / "x.safetensors").read_bytes() == (tmp_path / "w" / "x.safetensors").read_bytes()
    written = load_file(tmp_path / "o" / "x.safetensors")
    assert "layers.0.up.weight_codes" in written
    assert converter_core.verify(tmp_path / "o", source, registry=registry).ok


@dataclass(frozen=True)
class Heavy(Calibrated):
    name: ClassVar[str] = "heavy"

    def stores(self) -> Mapping[str, str]:
        return {}

    def inputs(self, context: WeightContext, stores: Any, /) -> Mapping[str, TensorRef | Tensor]:
        return {"importance": torch.ones(200, DIM), "columns": torch.ones(1 << 16)}


@dataclass(frozen=True)
class Astray(Heavy):
    name: ClassVar[str] = "astray"

    def inputs(self, context: WeightContext, stores: Any, /) -> Mapping[str, TensorRef | Tensor]:
        return {"importance": TensorRef("x", store="nowhere")}


@pytest.mark.parametrize(
    ("quantizer", "words"),
    [(Heavy, "hands over columns of 262144 bytes; return a TensorRef"), (Astray, "unknown store 'nowhere'")],
)
def test_inputs_that_are_refused(load: Any, recipe: Any, quantizer: type[Quantizer], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        converter_core.make_plan(recipe(quantizer.name, "plain"), load(quantizers=[quantizer]))


@dataclass(frozen=True)
class BiasAware(Quantizer):
    """int8 that moves a part of its error into the bias."""

    name: ClassVar[str] = "bias_aware"
    row_block: ClassVar[int | None] = 1

    @property
    def wants_bias(self) -> bool:
        return True

    def quantize(self, weight: Tensor, /, bias: Tensor | None = None) -> Parts:
        scale = weight.float().abs().amax(1, keepdim=True).clamp_(min=1e-9) / torch.full((1, 1), 127.0).to(
            weight.device
        )
        parts = {"weight": (weight.float() / scale).round().clamp(-127, 127).to(torch.int8), "scale": scale}
        if bias is None:
            return parts
        return {**parts, "bias": (bias.float() + scale.flatten()).to(bias.dtype)}

    def dequantize(self, parts: Parts, /) -> Tensor:
        return parts["weight"].float() * parts["scale"]


def test_a_bias_is_changed_together_with_its_weight(load: Any, recipe: Any, source: Path, tmp_path: Path) -> None:
    registry = load(quantizers=[BiasAware])
    converter_core.convert(recipe("bias_aware", "plain"), registry=registry)
    written = load_file(tmp_path / "out" / "tiny.safetensors")
    before = load_file(source / "model.safetensors")["layers.0.up.bias"]
    expected = (before.float() + written["layers.0.up.weight_scale"].flatten()).to(torch.bfloat16)
    assert torch.equal(written["layers.0.up.bias"], expected)
    assert set(load_file(source / "model.safetensors")) <= set(written)
    for against in (None, source):
        report = converter_core.verify(tmp_path / "out", against, registry=registry)
        assert report.ok, report.problems
