"""The kits catch what they are for: sound plugins pass, and every planted fault fails the test named for it."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from converter_core import (
    DeviceBackend,
    Extras,
    LayoutWriter,
    ModelAdapter,
    Parts,
    PlannedWeight,
    Quantizer,
    Refused,
    Stored,
    Target,
    TensorRef,
    TensorSpec,
    WeightInfo,
)
from converter_core.api.contexts import ModelFacts, SourceTensors, WeightContext
from converter_core.api.formats import QuantFormat
from converter_core.testing import (
    DeviceConformance,
    LayoutWriterConformance,
    ModelConformance,
    QuantizerConformance,
    TargetConformance,
)


def names_of(kit: type) -> list[str]:
    return [name for name in dir(kit) if name.startswith("test_")]


def run(kit: type, test: str, **attributes: Any) -> None:
    """One test of a kit on a plugin, as pytest would run it."""
    case = type("Planted", (kit,), attributes)()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        getattr(case, test)()
    finally:
        torch.set_num_threads(before)


def check_planted(kit: type, test: str, words: str, **attributes: Any) -> None:
    with pytest.raises(AssertionError, match=words):
        run(kit, test, **attributes)


# --- quantizers


@dataclass(frozen=True)
class Sound(Quantizer):
    name: ClassVar[str] = "sound"
    row_block: ClassVar[int | None] = 1
    top: int = 127

    def quantize(self, weight: Tensor, /, *args: Any, **given: Any) -> Parts:
        self.check(weight)
        scale = self.scale(weight)
        return {"weight": (weight.float() / scale).round().to(torch.int8), "scale": scale}

    def check(self, weight: Tensor) -> None:
        if weight.dim() != 2 or not weight.numel():
            raise Refused(f"has shape {list(weight.shape)}; needs rows and columns")

    def scale(self, weight: Tensor) -> Tensor:
        reach = weight.abs().amax(1, keepdim=True).float()
        return torch.where(reach == 0, torch.ones_like(reach), reach / torch.full_like(reach, self.top))

    def dequantize(self, parts: Parts, /) -> Tensor:
        return parts["weight"].float() * parts["scale"]

    def quantization_step(self, parts: Parts, /) -> Tensor | None:
        return parts["scale"].expand(parts["weight"].shape)


@dataclass(frozen=True)
class SoundInTwoPasses(Sound):
    name: ClassVar[str] = "two_passes"

    def observe(self, rows: Tensor, /) -> Parts:
        self.check(rows)
        return {"reach": rows.abs().amax().float()}

    def quantize(self, weight: Tensor, /, *args: Any, **given: Any) -> Parts:
        scale = given["reach"] / torch.full_like(given["reach"], 127)
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        return {"weight": (weight.float() / scale).round().to(torch.int8), "scale": scale}


class SoundOnWholeWeights(Sound):
    """What an author writes who knows nothing of slabs."""

    row_block: ClassVar[int | None] = None

    def scale(self, weight: Tensor) -> Tensor:
        return super().scale(weight).amax()


class WritesIntoFloat32(Sound):
    """``float()`` of a float32 is no copy."""

    def quantize(self, weight: Tensor, /, *args: Any, **given: Any) -> Parts:
        scale = self.scale(weight)
        return {"weight": weight.float().div_(scale).round_().to(torch.int8), "scale": scale}


class RoundsAtRandom(Sound):
    def quantize(self, weight: Tensor, /, *args: Any, **given: Any) -> Parts:
        scale = self.scale(weight)
        return {"weight": (weight.float() / scale + torch.rand(weight.shape)).floor().to(torch.int8), "scale": scale}


class KeepsScratch(Sound):
    """One buffer for all calls."""

    scratch: ClassVar[dict[str, Tensor]] = {}

    def quantize(self, weight: Tensor, /, *args: Any, **given: Any) -> Parts:
        self.scratch["weight"] = weight
        time.sleep(0.002)
        return super().quantize(self.scratch["weight"])


class SkipsTheScaleOfZeros(Sound):
    def quantize(self, weight: Tensor, /, *args: Any, **given: Any) -> Parts:
        parts = dict(super().quantize(weight))
        return parts if weight.any() else {"weight": parts["weight"]}


class NeedsMoreColumns(Sound):
    """Not in its tests, though, which never say so."""

    def quantize(self, weight: Tensor, /, *args: Any, **given: Any) -> Parts:
        blocks = weight.float().reshape(weight.shape[0], -1, 512)
        return super().quantize(blocks.reshape(weight.shape))


class Warns(Sound):
    """As torch does of what it would rather have contiguous."""

    def quantize(self, weight: Tensor, /, *args: Any, **given: Any) -> Parts:
        if not weight.is_contiguous():
            warnings.warn("input value tensor is non-contiguous", stacklevel=2)
        return super().quantize(weight)


class LosesADimension(Sound):
    def dequantize(self, parts: Parts, /) -> Tensor:
        return super().dequantize(parts).reshape(-1)


class StepsOfRows(Sound):
    def quantization_step(self, parts: Parts, /) -> Tensor | None:
        return parts["scale"]


class WiderScaleForLargeValues(Sound):
    def quantize(self, weight: Tensor, /, *args: Any, **given: Any) -> Parts:
        parts = dict(super().quantize(weight))
        return {**parts, "scale": parts["scale"].double()} if weight.max() > 100 else parts


class RefusesLargeValues(Sound):
    def quantize(self, weight: Tensor, /, *args: Any, **given: Any) -> Parts:
        if weight.numel() and weight.abs().max() > 100:
            raise Refused("has an outlier")
        return super().quantize(weight)


class RefusesZeros(Sound):
    def quantize(self, weight: Tensor, /, *args: Any, **given: Any) -> Parts:
        if not weight.any():
            raise Refused("has nothing but zeros")
        return super().quantize(weight)


class AsksForANumber(Sound):
    def scale(self, weight: Tensor) -> Tensor:
        return torch.full((weight.shape[0], 1), max(weight.abs().max().item(), 1e-9) / 127)


class DividesByZero(Sound):
    """Stores the reciprocal of the scale, as some runtimes want it."""

    def quantize(self, weight: Tensor, /, *args: Any, **given: Any) -> Parts:
        inverse = torch.full_like(weight[:, :1].float(), self.top) / weight.abs().amax(1, keepdim=True).float()
        return {"weight": (weight.float() * inverse).round().to(torch.int8), "scale": inverse}


class ZeroHasNoCode(Sound):
    def dequantize(self, parts: Parts, /) -> Tensor:
        return (parts["weight"].float() + 0.5) * parts["scale"]


class PromisesTooMuch(Sound):
    def quantization_step(self, parts: Parts, /) -> Tensor | None:
        return parts["scale"].expand(parts["weight"].shape) / 100


class LosesEverything(Sound):
    def dequantize(self, parts: Parts, /) -> Tensor:
        return -3 * super().dequantize(parts)

    def quantization_step(self, parts: Parts, /) -> Tensor | None:
        return None


class OverflowsInHalf(Sound):
    def scale(self, weight: Tensor) -> Tensor:
        reach = weight.abs().amax(1, keepdim=True).float()
        return torch.where(reach == 0, torch.ones_like(reach), reach * 100).half().float() / (100 * self.top)


class TrustsStrides(Sound):
    def quantize(self, weight: Tensor, /, *args: Any, **given: Any) -> Parts:
        return super().quantize(weight.as_strided(weight.shape, (weight.shape[1], 1)))


class ComesBackInHalf(Sound):
    def dequantize(self, parts: Parts, /) -> Tensor:
        return super().dequantize(parts).half()


class MixesRows(Sound):
    def scale(self, weight: Tensor) -> Tensor:
        return super().scale(weight).amax().expand(weight.shape[0], 1).clone()


class AddsUp(SoundInTwoPasses):
    def observe(self, rows: Tensor, /) -> Parts:
        return {"reach": rows.float().abs().sum()}


class LooksAround(Sound):
    def dequantize(self, parts: Parts, /) -> Tensor:
        return parts["weight"].float() * parts["scale"].amax()


class Halves(Sound):
    def dequantize(self, parts: Parts, /) -> Tensor:
        return super().dequantize(parts) * 0.5

    def quantization_step(self, parts: Parts, /) -> Tensor | None:
        return None


class OnePercentMore(Sound):
    def dequantize(self, parts: Parts, /) -> Tensor:
        return super().dequantize(parts) * 1.01


class CutsOff(Sound):
    def quantize(self, weight: Tensor, /, *args: Any, **given: Any) -> Parts:
        scale = self.scale(weight)
        self.check(weight)
        return {"weight": (weight.float() / scale).floor().to(torch.int8), "scale": scale}


class PromisesNothing(Sound):
    def quantization_step(self, parts: Parts, /) -> Tensor | None:
        return parts["scale"].expand(parts["weight"].shape) * 100


class ScalesInHalf(Sound):
    def scale(self, weight: Tensor) -> Tensor:
        rounded = super().scale(weight).half().float()
        return torch.where(rounded == 0, torch.ones_like(rounded), rounded)


@dataclass(frozen=True)
class WiderByOption(Sound):
    wide: bool = False

    def quantize(self, weight: Tensor, /, *args: Any, **given: Any) -> Parts:
        parts = dict(super().quantize(weight))
        return {**parts, "weight": parts["weight"].short()} if self.wide else parts


class RefusesInItsOwnWords(Sound):
    def check(self, weight: Tensor) -> None:
        if weight.dim() != 2 or not weight.numel() or weight.shape[1] % 8:
            raise ValueError(f"cannot take {list(weight.shape)}")


@dataclass
class Thawed(Quantizer):
    name: ClassVar[str] = "thawed"
    top: int = 127

    def quantize(self, weight: Tensor, /, *args: Any, **given: Any) -> Parts:
        return {"weight": weight}

    def dequantize(self, parts: Parts, /) -> Tensor:
        return parts["weight"].float()


@dataclass(frozen=True)
class HidesAnOption(Sound):
    clip: float = field(default=1.0, compare=False)


@dataclass(frozen=True)
class ChangesAnOption(Sound):
    clip: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "clip", self.clip / 2)


@dataclass(frozen=True)
class TakesAList(Sound):
    clips: list[float] = field(default_factory=lambda: [0.5, 1.0])


QUANTIZER_FAULTS = [
    (WritesIntoFloat32(), "test_the_input_is_not_modified", "F32.*quantize changes its input"),
    (RoundsAtRandom(), "test_it_is_deterministic", "second run"),
    (KeepsScratch(), "test_threads_do_not_meet", "keep nothing between calls"),
    (SkipsTheScaleOfZeros(), "test_the_trial_run_is_the_result", r"on zeros, fails: KeyError: 'scale' \(.*, in"),
    (NeedsMoreColumns(), "test_zeros", r"BF16 \[7, 128\]: RuntimeError: .*set shapes"),
    (Warns(), "test_non_contiguous_input", r"BF16 \[7, 128\]: torch warns, an error in these tests: input value"),
    (LosesADimension(), "test_zero_rows", r"dequantize gives \[896\] of \[7, 128\]"),
    (LosesADimension(), "test_the_trial_run_is_the_result", r"must give float32 \[1, 128\] here, not float32"),
    (StepsOfRows(), "test_one_outlier", r"step gives \[7, 1\] of \[7, 128\]"),
    (
        StepsOfRows(),
        "test_the_trial_run_is_the_result",
        r"must give the weight's shape, \[1, 128\] here, not",
    ),
    (WiderScaleForLargeValues(), "test_the_trial_run_is_the_result", "one outlier: became .*F64"),
    (RefusesLargeValues(), "test_what_quantize_refuses_the_plan_refuses", "has an outlier, but the plan takes it"),
    (RefusesZeros(), "test_what_quantize_refuses_the_plan_refuses", "but the plan refuses it: has nothing but zeros"),
    (AsksForANumber(), "test_stand_ins", "never look at values"),
    (DividesByZero(), "test_zero_rows", "divides to NaN"),
    (DividesByZero(), "test_zeros", "divides to NaN"),
    (ZeroHasNoCode(), "test_zeros", "zeros come back as something else"),
    (PromisesTooMuch(), "test_the_round_trip_is_within_the_declared_error", "more than the declared steps"),
    (LosesEverything(), "test_the_round_trip_is_within_the_declared_error", "more than 0.5 of the weight"),
    (OverflowsInHalf(), "test_one_outlier", "infinity; something overflows"),
    (TrustsStrides(), "test_non_contiguous_input", "transposed: weight"),
    (ComesBackInHalf(), "test_dtypes", "must give float32"),
    (MixesRows(), "test_row_tile_is_true_for_every_slab_height", "row_block=1 is wrong"),
    (AddsUp(), "test_the_statistic_of_slabs_is_that_of_the_whole", "combined by maximum"),
    (LooksAround(), "test_parts_of_rows_stand_for_these_rows", "come back otherwise"),
    (Halves(), "test_what_comes_back_is_as_large_as_what_went_in", "0.5.* times as large"),
    (OnePercentMore(), "test_what_comes_back_is_as_large_as_what_went_in", r"1\.0(1|09).* times as large"),
    (CutsOff(), "test_errors_are_those_of_rounding", "is it rounded"),
    (PromisesNothing(), "test_errors_are_those_of_rounding", "far below the steps"),
    (ScalesInHalf(), "test_small_values", "a scale underflows"),
    (WiderByOption(), "test_one_format_is_stored_in_one_way", "I16.*: one format for both"),
    (RefusesInItsOwnWords(), "test_what_quantize_refuses_the_plan_refuses", "raise Refused"),
    (Thawed(), "test_it_is_a_plugin", "frozen=True"),
    (HidesAnOption(), "test_options_survive_yaml_and_repr", "HidesAnOption.clip: an option must take part"),
    (ChangesAnOption(), "test_options_survive_yaml_and_repr", "after YAML"),
    (TakesAList(), "test_options_survive_yaml_and_repr", "cannot be hashed"),
]


@pytest.mark.parametrize("test", names_of(QuantizerConformance))
@pytest.mark.parametrize(
    "quantizer", [Sound(), SoundInTwoPasses(), SoundOnWholeWeights()], ids=lambda value: type(value).__name__
)
def test_sound_quantizers_pass(quantizer: Quantizer, test: str) -> None:
    run(QuantizerConformance, test, quantizer=quantizer)


@pytest.mark.parametrize(("quantizer", "test", "words"), QUANTIZER_FAULTS, ids=lambda value: type(value).__name__)
def test_planted_in_quantizers(quantizer: Quantizer, test: str, words: str) -> None:
    check_planted(QuantizerConformance, test, words, quantizer=quantizer)


def test_every_test_for_quantizers_has_caught_something() -> None:
    # bytes on other devices need another device
    assert {test for _, test, _ in QUANTIZER_FAULTS} == {*names_of(QuantizerConformance)} - {
        "test_every_device_gives_the_same_bytes"
    }


# --- targets


class SoundTarget(Target):
    name = "sound"
    row_block = 2

    def key(self, context: WeightContext, role: str, /) -> str:
        return f"{context.name}/{role}"

    def encode(self, context: WeightContext, parts: Parts, /) -> Parts:
        return {role: part.flip(-1).contiguous() if part.dim() == 2 else part for role, part in parts.items()}

    def decode(self, context: WeightContext, stored: Parts, /) -> Parts:
        return self.encode(context, stored)

    def extras(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Extras:
        return Extras({"kind": "sound"}, {"sound.json": b"{}"}, {"sound": torch.ones(1)})

    def detect(self, tensors: SourceTensors, /) -> Mapping[str, Stored]:
        names = [key.removesuffix("/scale") for key in tensors if key.endswith("/scale")]
        return {
            name: Stored(QuantFormat("sound", "sound"), {role: f"{name}/{role}" for role in ("weight", "scale")})
            for name in names
        }


class OneKeyForAll(SoundTarget):
    def key(self, context: WeightContext, role: str, /) -> str:
        return context.name.rpartition(".")[0]


class ForgetsToTurnBack(SoundTarget):
    def decode(self, context: WeightContext, stored: Parts, /) -> Parts:
        return stored


class WritesIntoParts(SoundTarget):
    def encode(self, context: WeightContext, parts: Parts, /) -> Parts:
        return {role: part.neg_() for role, part in parts.items()}


class TurnsRows(SoundTarget):
    def encode(self, context: WeightContext, parts: Parts, /) -> Parts:
        return {role: part.flip(0) for role, part in parts.items()}


class CallsBytesFloats(SoundTarget):
    def stored_spec(self, context: WeightContext, role: str, spec: TensorSpec, /) -> TensorSpec:
        return TensorSpec("F32", spec.shape) if role == "weight" else spec


class BreaksOnNews(SoundTarget):
    def encode(self, context: WeightContext, parts: Parts, /) -> Parts:
        if set(parts) - {"weight", "scale"}:
            return {"weight": parts["weight"]}
        return super().encode(context, parts)


class WritesTextBeside(SoundTarget):
    def extras(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Extras:
        return Extras({}, {"sound.json": "{}"})  # type: ignore[dict-item]


class WritesElsewhere(SoundTarget):
    def extras(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Extras:
        return Extras({}, {"../sound.json": b"{}"})


class RefusesItself(SoundTarget):
    def refuse(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Iterable[str]:
        return ["no"]


class FindsTheWrongFormat(SoundTarget):
    def detect(self, tensors: SourceTensors, /) -> Mapping[str, Stored]:
        return {
            name: Stored(QuantFormat("int4", "int4"), stored.keys) for name, stored in super().detect(tensors).items()
        }


class LoadsInfinity(SoundTarget):
    def simulate_load(self, context: WeightContext, stored: Parts, /) -> Parts:
        return {role: part * torch.inf if role == "scale" else part for role, part in stored.items()}


class GrowsWithData(SoundTarget):
    def encode(self, context: WeightContext, parts: Parts, /) -> Parts:
        stored = dict(super().encode(context, parts))
        return {**stored, "note": torch.ones(1)} if stored["weight"].any() else stored


class CountsCalls(SoundTarget):
    calls: ClassVar[list[int]] = []

    def encode(self, context: WeightContext, parts: Parts, /) -> Parts:
        self.calls.append(1)
        return {**super().encode(context, parts), "count": torch.tensor(len(self.calls))}


class LooksAtNumbers(SoundTarget):
    def encode(self, context: WeightContext, parts: Parts, /) -> Parts:
        if parts["weight"].float().sum().item() == 1.5:
            return parts
        return super().encode(context, parts)


class ClaimsOthers(SoundTarget):
    def detect(self, tensors: SourceTensors, /) -> Mapping[str, Stored]:
        found = {key: Stored(Sound().format, {"weight": key}) for key, spec in tensors.items() if len(spec.shape) == 2}
        return found if not any(key.endswith(":scale") for key in tensors) else {}


class DatesItsFiles(SoundTarget):
    def extras(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Extras:
        return Extras(metadata={"made": str(int(time.time() / 60))})


class ConfiguresObjects(SoundTarget):
    def runtime_config(self, model: ModelFacts, weights: Mapping[str, Stored], path: str, /) -> Mapping[str, Any]:
        return {"path": path, "weights": tuple(weights)}


TARGET_FAULTS = [
    (ClaimsOthers(), "test_it_leaves_others_alone", "detect claims"),
    (DatesItsFiles(), "test_its_files_can_be_read", "another one at another time"),
    (ConfiguresObjects(), "test_what_to_configure_is_json", "not JSON"),
    (OneKeyForAll(), "test_keys_are_unique", "'blocks.0.ffn.0' is weight of .* and scale of"),
    (ForgetsToTurnBack(), "test_decode_undoes_encode", "weight: same dtype and shape, other bytes"),
    (WritesIntoParts(), "test_the_input_is_not_modified", "encode changes its input"),
    (TurnsRows(), "test_row_tile_is_true_for_every_slab_height", "row_block is not true"),
    (CallsBytesFloats(), "test_the_trial_run_is_the_result", "of another size"),
    (GrowsWithData(), "test_the_trial_run_is_the_result", "planned from zeros"),
    (BreaksOnNews(), "test_a_format_it_has_never_heard_of", "taken, but not given back"),
    (WritesTextBeside(), "test_what_it_adds_is_sound", "must be bytes"),
    (WritesElsewhere(), "test_what_it_adds_is_sound", "no name of a side file"),
    (RefusesItself(), "test_what_it_adds_is_sound", "refused"),
    (FindsTheWrongFormat(), "test_it_finds_its_own", "as Stored"),
    (LoadsInfinity(), "test_what_is_loaded_can_be_used", "NaN or infinity"),
    (CountsCalls(), "test_it_is_deterministic", "count: same dtype and shape, other bytes"),
]


@pytest.mark.parametrize("test", names_of(TargetConformance))
def test_a_sound_target_passes(test: str) -> None:
    run(TargetConformance, test, target=SoundTarget(), quantizers=(Sound(),))


@pytest.mark.parametrize(("target", "test", "words"), TARGET_FAULTS, ids=lambda value: type(value).__name__)
def test_planted_in_targets(target: Target, test: str, words: str) -> None:
    check_planted(TargetConformance, test, words, target=target, quantizers=(Sound(),))


# --- layouts


class SoundLayout(LayoutWriter):
    name = "sound"

    def files(self, name: str, weights: Sequence[PlannedWeight]) -> Mapping[str, Sequence[PlannedWeight]]:
        return {name: weights}


class LosesTheLast(SoundLayout):
    def files(self, name: str, weights: Sequence[PlannedWeight]) -> Mapping[str, Sequence[PlannedWeight]]:
        return {name: weights[:-1] or weights}


class WritesTwice(SoundLayout):
    def files(self, name: str, weights: Sequence[PlannedWeight]) -> Mapping[str, Sequence[PlannedWeight]]:
        return {name: weights, f"{name}_head": weights[-1:]}


class MakesFolders(SoundLayout):
    def files(self, name: str, weights: Sequence[PlannedWeight]) -> Mapping[str, Sequence[PlannedWeight]]:
        return {f"weights/{name}": weights}


class AddsAnEmptyFile(SoundLayout):
    def files(self, name: str, weights: Sequence[PlannedWeight]) -> Mapping[str, Sequence[PlannedWeight]]:
        return {name: weights, f"{name}_rest": []}


class SortsInPlace(SoundLayout):
    def files(self, name: str, weights: Sequence[PlannedWeight]) -> Mapping[str, Sequence[PlannedWeight]]:
        weights.sort(key=lambda weight: weight.name, reverse=True)  # type: ignore[attr-defined]
        return {name: weights}


class Shuffles(SoundLayout):
    calls: ClassVar[list[int]] = []

    def files(self, name: str, weights: Sequence[PlannedWeight]) -> Mapping[str, Sequence[PlannedWeight]]:
        self.calls.append(1)
        return {name: weights[:: 1 if len(self.calls) % 2 else -1]}


class PartsScales(SoundLayout):
    def files(self, name: str, weights: Sequence[PlannedWeight]) -> Mapping[str, Sequence[PlannedWeight]]:
        first = [PlannedWeight(w.info, w.name, w.spec, w.format, w.outputs[:1]) for w in weights]
        return {name: first}


LAYOUT_FAULTS = [
    (LosesTheLast(), "test_every_weight_is_in_exactly_one_file", "lost"),
    (WritesTwice(), "test_every_weight_is_in_exactly_one_file", "more than once: .*weight"),
    (MakesFolders(), "test_names_of_files", "no name of a file"),
    (AddsAnEmptyFile(), "test_no_file_is_empty", "model_rest would hold nothing"),
    (SortsInPlace(), "test_the_input_is_not_modified", "changes the list"),
    (Shuffles(), "test_it_is_deterministic", "other files"),
    (PartsScales(), "test_weights_are_passed_on_as_they_are", "not the one that was given"),
]


@pytest.mark.parametrize("test", names_of(LayoutWriterConformance))
def test_a_sound_layout_passes(test: str) -> None:
    run(LayoutWriterConformance, test, layout=SoundLayout())


@pytest.mark.parametrize(("layout", "test", "words"), LAYOUT_FAULTS, ids=lambda value: type(value).__name__)
def test_planted_in_layouts(layout: LayoutWriter, test: str, words: str) -> None:
    check_planted(LayoutWriterConformance, test, words, layout=layout)


# --- models

TENSORS = {
    **{f"toy.{block}.ffn.weight": TensorSpec("BF16", (8, 16)) for block in range(2)},
    "toy.norm.weight": TensorSpec("BF16", (16,)),
}


class SoundModel(ModelAdapter):
    name = "toy"
    modules = ("ffn",)

    def owns_key(self, key: str) -> bool:
        return key.startswith("toy.")

    def recognise(self, tensors: Mapping[str, TensorSpec]) -> str | None:
        return "toy" if any(map(self.owns_key, tensors)) else None

    def problems(self, tensors: Mapping[str, TensorSpec]) -> Iterable[str]:
        for key, spec in TENSORS.items():
            if tensors.get(key) != spec:
                yield f"{key} must be {spec}"

    def weights(self, tensors: Mapping[str, TensorSpec]) -> Iterable[WeightInfo]:
        for key in tensors:
            module = "ffn" if ".ffn." in key else ""
            yield WeightInfo(
                key, {"weight": TensorRef(key)}, "linear" if module else "norm", module, key[4:5] if module else ""
            )


class TakesEverything(SoundModel):
    def recognise(self, tensors: Mapping[str, TensorSpec]) -> str | None:
        return "toy"


class ForgetsNorms(SoundModel):
    def weights(self, tensors: Mapping[str, TensorSpec]) -> Iterable[WeightInfo]:
        return [info for info in super().weights(tensors) if info.kind == "linear"]


class ClaimsTwice(SoundModel):
    def weights(self, tensors: Mapping[str, TensorSpec]) -> Iterable[WeightInfo]:
        return [*super().weights(tensors), WeightInfo("again", {"weight": TensorRef("toy.norm.weight")})]


class SameNames(SoundModel):
    def weights(self, tensors: Mapping[str, TensorSpec]) -> Iterable[WeightInfo]:
        return [WeightInfo("w", info.sources, info.kind, info.module, info.block) for info in super().weights(tensors)]


class SortsBackwards(SoundModel):
    def weights(self, tensors: Mapping[str, TensorSpec]) -> Iterable[WeightInfo]:
        return reversed(list(super().weights(tensors)))


class OverlooksGaps(SoundModel):
    def problems(self, tensors: Mapping[str, TensorSpec]) -> Iterable[str]:
        return (f"{key} must be {TENSORS[key]}" for key, spec in tensors.items() if TENSORS[key] != spec)


class OverlooksShapes(SoundModel):
    def problems(self, tensors: Mapping[str, TensorSpec]) -> Iterable[str]:
        return sorted(set(TENSORS) - set(tensors))


class NormsAreLinear(SoundModel):
    def weights(self, tensors: Mapping[str, TensorSpec]) -> Iterable[WeightInfo]:
        return [WeightInfo(info.name, info.sources, "linear") for info in super().weights(tensors)]


class DropsBlocks(SoundModel):
    def rename(self, name: str, key_format: str) -> str:
        return name if key_format == "original" else name.replace("toy.1.", "toy.0.")


class MixesRowsInAssemble(SoundModel):
    def assemble(self, context: WeightContext, sources: Parts) -> Tensor:
        return sources["weight"] - sources["weight"].float().mean(0).to(sources["weight"].dtype)


class FactsWithTuples(SoundModel):
    def describe(self, tensors: Mapping[str, TensorSpec]) -> Mapping[str, Any]:
        return {"shape": (8, 16)}


class NumbersBlocks(SoundModel):
    def weights(self, tensors: SourceTensors) -> Iterable[WeightInfo]:
        return [replace(info, block=int(info.block or 0)) for info in super().weights(tensors)]  # type: ignore[arg-type]


MODEL_FAULTS = [
    (NumbersBlocks(), "test_what_it_says_of_weights_is_text", "block must be text, not 0"),
    (TakesEverything(), "test_it_leaves_others_alone", "without tensors"),
    (ForgetsNorms(), "test_every_tensor_belongs_to_one_weight", "no weight claims .*norm"),
    (ClaimsTwice(), "test_every_tensor_belongs_to_one_weight", "more than one weight claims"),
    (SameNames(), "test_weights_are_told_apart", "is called"),
    (SortsBackwards(), "test_weights_come_in_source_order", "another order"),
    (OverlooksGaps(), "test_a_missing_tensor_is_told", "without toy.0.ffn.weight"),
    (OverlooksShapes(), "test_a_wrong_shape_is_told", "is no problem"),
    (NormsAreLinear(), "test_linear_weights_can_be_chosen", "toy.norm.weight is linear"),
    (DropsBlocks(), "test_names_in_other_key_formats_are_unique", "in other more than one"),
    (MixesRowsInAssemble(), "test_weights_are_assembled_slab_by_slab", "half of the rows"),
    (FactsWithTuples(), "test_facts_are_json", "describe gives"),
]


@pytest.mark.parametrize("test", names_of(ModelConformance))
def test_a_sound_model_passes(test: str) -> None:
    run(ModelConformance, test, model=SoundModel(), checkpoint=TENSORS)


@pytest.mark.parametrize(("model", "test", "words"), MODEL_FAULTS, ids=lambda value: type(value).__name__)
def test_planted_in_models(model: ModelAdapter, test: str, words: str) -> None:
    check_planted(ModelConformance, test, words, model=model, checkpoint=TENSORS, key_formats=("original", "other"))


# --- devices


class SoundLane:
    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8)

    def buffer(self, nbytes: int) -> Tensor:
        if nbytes > self.memory.numel():
            self.memory = torch.empty(nbytes, dtype=torch.uint8)
        return self.memory[:nbytes]

    def upload(self, host: Tensor) -> Tensor:
        return host

    def download(self, parts: Parts) -> Parts:
        return {role: part.contiguous() for role, part in parts.items()}


class SoundDevice(DeviceBackend):
    name = "sound"
    kind: ClassVar[type[SoundLane]] = SoundLane

    def devices(self) -> Sequence[torch.device]:
        return [torch.device("cpu")]

    def free_memory(self, device: torch.device) -> int:
        return 1 << 30

    def slab_bytes(self, device: torch.device) -> int:
        return 1 << 20

    @contextmanager
    def stream(self, device: torch.device) -> Iterator[SoundLane]:
        yield self.kind()


class HasNoSlabs(SoundDevice):
    def slab_bytes(self, device: torch.device) -> int:
        return 0


class SaysNothing(SoundDevice):
    def devices(self) -> Sequence[torch.device]:
        return []

    def absence(self) -> str:
        return ""


class SameDeviceTwice(SoundDevice):
    def devices(self) -> Sequence[torch.device]:
        return [torch.device("cpu")] * 2


class OneLaneForAll(SoundDevice):
    only = SoundLane()
    only_lock = threading.Lock()

    @contextmanager
    def stream(self, device: torch.device) -> Iterator[SoundLane]:
        yield self.only


class BufferTooLarge(SoundDevice):
    class Kind(SoundLane):
        def buffer(self, nbytes: int) -> Tensor:
            return torch.empty(max(nbytes, 64), dtype=torch.uint8)

    kind = Kind


class LeavesViews(SoundDevice):
    class Kind(SoundLane):
        def download(self, parts: Parts) -> Parts:
            return parts

    kind = Kind


class ReusesResults(SoundDevice):
    class Kind(SoundLane):
        def download(self, parts: Parts) -> Parts:
            if not hasattr(self, "results"):
                self.results = {role: part.clone() for role, part in parts.items()}
            for role, part in parts.items():
                self.results[role].copy_(part)
            return self.results

    kind = Kind


class LosesAScale(SoundDevice):
    class Kind(SoundLane):
        def download(self, parts: Parts) -> Parts:
            return {"weight": parts["weight"].contiguous()}

    kind = Kind


DEVICE_FAULTS = [
    (HasNoSlabs(), "test_sizes_are_positive", "slab_bytes of cpu is 0"),
    (SaysNothing(), "test_absence_is_told", "does not say why"),
    (SameDeviceTwice(), "test_devices_are_told_apart", "twice"),
    (OneLaneForAll(), "test_threads_have_lanes_of_their_own", "four streams at once"),
    (BufferTooLarge(), "test_buffers_are_host_memory", r"buffer\(1\)"),
    (LeavesViews(), "test_bytes_come_through", "contiguous"),
    (ReusesResults(), "test_results_outlive_the_next_slab", "writes over"),
    (LosesAScale(), "test_a_lane_can_be_entered_again", "download of weight and scale"),
]


@pytest.mark.parametrize("test", names_of(DeviceConformance))
def test_a_sound_device_passes(test: str) -> None:
    run(DeviceConformance, test, device=SoundDevice())


@pytest.mark.parametrize(("device", "test", "words"), DEVICE_FAULTS, ids=lambda value: type(value).__name__)
def test_planted_in_devices(device: DeviceBackend, test: str, words: str) -> None:
    check_planted(DeviceConformance, test, words, device=device)
