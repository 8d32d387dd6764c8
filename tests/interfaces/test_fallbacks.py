"""A quantizer that names another one for weights that it cannot take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

import converter_core
from converter_core import Parts, Quantizer, Refused, TensorSpec

from .conftest import tensors


@dataclass(frozen=True)
class Even(Quantizer):
    """Takes weights with an even number of rows; others go to int8."""

    name: ClassVar[str] = "even"
    row_block: ClassVar[int | None] = 1

    def fallback(self, spec: TensorSpec, /) -> Quantizer | None:
        if spec.shape[0] % 2 == 0:
            return None
        return converter_core.load_plugins().quantizers["int8"]()

    def quantize(self, weight: Tensor, /) -> Parts:
        if weight.dim() != 2:
            raise Refused("has no columns")
        return {"weight": weight.half()}

    def dequantize(self, parts: Parts, /) -> Tensor:
        return parts["weight"].float()


class Astray(Even):
    """Falls back to itself."""

    name: ClassVar[str] = "astray"

    def fallback(self, spec: TensorSpec, /) -> Quantizer | None:
        return self


class Vague(Even):
    name: ClassVar[str] = "vague"

    def fallback(self, spec: TensorSpec, /) -> Any:
        return "int8"


@pytest.fixture
def mixed(source: Path) -> None:
    """Of two layers one has an odd number of rows."""
    even, odd = tensors(rows=96), tensors(rows=37)
    save_file(even | {key: odd[key] for key in odd if key.startswith("layers.1.")}, source / "model.safetensors")


@pytest.mark.usefixtures("mixed")
def test_the_plan_tells_it_and_each_weight_has_its_own_format(
    load: Any, recipe: Any, source: Path, tmp_path: Path
) -> None:
    registry = load(quantizers=[Even])
    with converter_core.make_plan(recipe("even", "plain"), registry) as plan:
        pass
    assert "even cannot take weights of shape [37, 64]: layers.1.up.weight gets int8" in plan.notes
    assert {weight.name: weight.format.name for weight in plan.outputs[0].weights if weight.info.kind == "linear"} == {
        "layers.0.up.weight": "even",
        "layers.1.up.weight": "int8",
    }
    converter_core.convert(recipe("even", "plain"), registry=registry)
    assert "layers.1.up.weight_scale" in load_file(tmp_path / "out" / "tiny.safetensors")
    report = converter_core.verify(tmp_path / "out", source, registry=registry)
    assert report.ok, report.problems


@pytest.mark.usefixtures("mixed")
@pytest.mark.parametrize(
    ("quantizer", "words"),
    [(Astray, "astray: fallback leads back to astray for BF16"), (Vague, "must return a quantizer or None, not str")],
)
def test_a_fallback_that_leads_nowhere_is_a_fault_of_the_plugin(
    load: Any, recipe: Any, quantizer: type[Quantizer], words: str
) -> None:
    with pytest.raises(converter_core.PluginError, match=words):
        converter_core.make_plan(recipe(quantizer.name, "plain"), load(quantizers=[quantizer]))
