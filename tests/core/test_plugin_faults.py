"""What a quantizer's author is told at plan time: the fault, where it is, and once, however many weights there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from converter_core import Parts, PlanError, Quantizer, Refused, hookimpl, load_plugins, make_plan


@dataclass(frozen=True)
class Plain(Quantizer):
    name: ClassVar[str] = "mine"
    row_block: ClassVar[int | None] = 1

    def quantize(self, weight: Tensor, /) -> Parts:
        return {"weight": weight.half()}

    def dequantize(self, parts: Parts, /) -> Tensor:
        return parts["weight"].float()


class Returns(Plain):
    def quantize(self, weight: Tensor, /) -> Any:
        return weight.half(), torch.ones(1)


class ReturnsNumbers(Plain):
    def quantize(self, weight: Tensor, /) -> Any:
        return {"weight": weight.half(), "bits": 4}


class ReturnsNothing(Plain):
    def quantize(self, weight: Tensor, /) -> Parts:
        return {}


class HasAMistake(Plain):
    def quantize(self, weight: Tensor, /) -> Parts:
        return {"weight": wieght.half()}  # type: ignore[name-defined]  # noqa: F821


class FailsInsideTorch(Plain):
    def dequantize(self, parts: Parts, /) -> Tensor:
        return parts["weight"].float().reshape(3, 5)


class DecodesFlat(Plain):
    def dequantize(self, parts: Parts, /) -> Tensor:
        return parts["weight"].float().flatten()


class DecodesToHalf(Plain):
    def dequantize(self, parts: Parts, /) -> Tensor:
        return parts["weight"]


class StepsByRow(Plain):
    def quantization_step(self, parts: Parts, /) -> Tensor:
        return parts["weight"][:, :1].float()


class RefusesAll(Plain):
    def quantize(self, weight: Tensor, /) -> Parts:
        raise Refused("is not to its taste")


def planned(asked: Callable[..., Any], cls: type[Quantizer], **keys: Any) -> str:
    class Plugin:
        @hookimpl
        def converter_quantizers(self) -> list[type[Quantizer]]:
            return [cls]

    with pytest.raises(PlanError) as refused:
        make_plan(asked("mine", **{"target.format": "plain", **keys}), load_plugins(extra=[Plugin()]))
    return str(refused.value)


@pytest.mark.parametrize(
    ("cls", "fault"),
    [
        (Returns, "quantize must return a dict of tensors by role, not tuple"),
        (ReturnsNumbers, "quantize must return a dict of tensors by role, not weight: float16 [1, 256], bits: int"),
        (ReturnsNothing, "quantize must return at least one part; it returns none"),
        (DecodesFlat, "dequantize must give float32 [1, 256] here, not float32 [256]"),
        (DecodesToHalf, "dequantize must give float32 [1, 256] here, not float16 [1, 256]"),
        (StepsByRow, "quantization_step must give the weight's shape, [1, 256] here, not float32 [1, 1]"),
    ],
)
def test_a_broken_contract_is_named(asked: Any, cls: type[Quantizer], fault: str) -> None:
    told = planned(asked, cls)
    assert told.startswith("mine: blocks.0.cross_attn.k.weight (and ")
    assert f" more) shows a fault of the plugin: {fault}" in told
    assert told.count("\n") <= 2, "once for each shape at most"
    assert "method none" not in told


@pytest.mark.parametrize(
    ("cls", "fault", "function"),
    [
        (HasAMistake, "NameError: name 'wieght' is not defined", "quantize"),
        (FailsInsideTorch, "RuntimeError: shape '[3, 5]' is invalid for input of size 256", "dequantize"),
    ],
)
def test_what_is_raised_comes_with_its_place(asked: Any, cls: type[Quantizer], fault: str, function: str) -> None:
    line = getattr(cls, function).__code__.co_firstlineno + 1
    assert f"shows a fault of the plugin: {fault} ({__file__}:{line}, in {function});" in planned(asked, cls)


def test_one_reason_for_all_weights_is_told_once(asked: Any) -> None:
    told = planned(asked, RefusesAll)
    assert told == (
        "mine: blocks.0.cross_attn.k.weight (and 35 more) is not to its taste (chosen by quantization.method); "
        "add rules with method none, or choose another method"
    )


def test_a_single_weight_comes_with_its_rule(asked: Any) -> None:
    rules = [{"match": "*.3.*", "method": "none"}, {"match": "blocks.1.ffn.2", "method": "mine"}]
    told = planned(asked, RefusesAll, **{"quantization.rules": rules, "quantization.method": "int8"})
    assert told == (
        "mine: blocks.1.ffn.2.weight is not to its taste (chosen by rule 'blocks.1.ffn.2'); "
        'add a rule "blocks.1.ffn.2" with method none, or choose another method'
    )


def test_a_format_that_the_target_does_not_know_names_the_one_that_takes_any(asked: Any) -> None:
    told = planned(asked, Plain, **{"target.format": "lightx2v"})
    assert told.count("\n") == 0
    assert "(and 35 more) is 'mine', which LightX2V does not read" in told
    assert "target.format: plain takes any" in told
