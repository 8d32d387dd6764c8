"""Faults of strangers' models, layouts and targets: told with their place, and no burden to who needs them not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest

from converter_core import (
    Extras,
    LayoutWriter,
    ModelAdapter,
    Parts,
    PlanError,
    PlannedWeight,
    PluginError,
    Stored,
    Target,
    TensorRef,
    TensorSpec,
    WeightInfo,
    convert,
    hookimpl,
    inspect,
    load_plugins,
    make_plan,
    verify,
)
from converter_core.api.contexts import ModelFacts, SourceTensors, WeightContext
from converter_core.api.formats import QuantFormat
from converter_core.plugins import attribution as faults
from converter_core.testing.samples import BareTarget
from converter_plugins.models.wan_dit import WanDit


class Mine(BareTarget):
    name = "mine"


class Misnames(Mine):
    def key(self, context: WeightContext, role: str, /) -> str:
        return nmae  # type: ignore[context.name-defined]  # noqa: F821


class Misencodes(Mine):
    def encode(self, context: WeightContext, parts: Parts, /) -> Parts:
        return {"weight": parts["wieght"]}


class Renames(Mine):
    def encode(self, context: WeightContext, parts: Parts, /) -> Parts:
        return {"codes" if role == "weight" else role: part for role, part in parts.items()}


class AddsText(Mine):
    def extras(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Extras:
        return Extras(side_files={"mine.json": "{}"})  # type: ignore[dict-item]


class MisreadsOthers(Mine):
    def detect(self, tensors: SourceTensors, /) -> Mapping[str, Stored]:
        return dict.fromkeys(tensors, tensors.metadata["mine"])  # type: ignore[misc]


class LosesTheScale(Mine):
    def decode(self, context: WeightContext, stored: Parts, /) -> Parts:
        return {"weight": stored["weight"]}


class TurnsRound(Mine):
    def decode(self, context: WeightContext, stored: Parts, /) -> Parts:
        return {**stored, "weight": stored["weight"].flip(1)}


class ScansItsOwn(Mine):
    def detect(self, tensors: SourceTensors, /) -> Mapping[str, Stored]:
        stems = [key.removesuffix("/scale") for key in tensors if key.endswith("/scale")]
        format = QuantFormat("int8", "int8")
        return {stem: Stored(format, {role: f"{stem}/{role}" for role in ("weight", "scale")}) for stem in stems}


class ByKind(LayoutWriter):
    name = "by_kind"

    def files(self, name: str, weights: Sequence[PlannedWeight]) -> Mapping[str, Sequence[PlannedWeight]]:
        return {name: weights}


class Misspells(ByKind):
    def files(self, name: str, weights: Sequence[PlannedWeight]) -> Mapping[str, Sequence[PlannedWeight]]:
        return {weight.kind: [weight] for weight in weights}  # type: ignore[attr-defined]


class ReturnsAList(ByKind):
    def files(self, name: str, weights: Sequence[PlannedWeight]) -> Any:
        return [weights]


class LosesOne(ByKind):
    def files(self, name: str, weights: Sequence[PlannedWeight]) -> Mapping[str, Sequence[PlannedWeight]]:
        return {name: weights[1:]}


class NamesTheSuffix(ByKind):
    def files(self, name: str, weights: Sequence[PlannedWeight]) -> Mapping[str, Sequence[PlannedWeight]]:
        return {f"{name}.safetensors": weights}


class Tiny(ModelAdapter):
    name = "tiny"
    modules = ("ffn",)

    def owns_key(self, key: str) -> bool:
        return "ffn" in key

    def recognise(self, tensors: Mapping[str, TensorSpec]) -> str | None:
        return "tiny"

    def weights(self, tensors: Mapping[str, TensorSpec]) -> Iterable[WeightInfo]:
        for key in tensors:
            yield WeightInfo(key, {"weight": TensorRef(key)}, "other")


class Stumbles(Tiny):
    def recognise(self, tensors: Mapping[str, TensorSpec]) -> str | None:
        return tensors["nowhere"].dtype


class StumblesAtKeys(Tiny):
    def owns_key(self, key: str) -> bool:
        return key[1000] == "x"


class SeesGhosts(Tiny):
    def weights(self, tensors: Mapping[str, TensorSpec]) -> Iterable[WeightInfo]:
        yield WeightInfo("ghost", {"weight": TensorRef("blocks.0.ffn.0.wieght")}, "linear", "ffn")


class CountsTwice(Tiny):
    def weights(self, tensors: Mapping[str, TensorSpec]) -> Iterable[WeightInfo]:
        return [*super().weights(tensors), *super().weights(tensors)]


class SourcesBare(Tiny):
    def weights(self, tensors: Mapping[str, TensorSpec]) -> Iterable[WeightInfo]:
        return [WeightInfo(key, TensorRef(key)) for key in tensors]  # type: ignore[arg-type]


def registry(*classes: type) -> Any:
    class Plugin:
        @hookimpl
        def converter_targets(self) -> list[type]:
            return [cls for cls in classes if issubclass(cls, Target)]

        @hookimpl
        def converter_layouts(self) -> list[type]:
            return [cls for cls in classes if issubclass(cls, LayoutWriter)]

        @hookimpl
        def converter_models(self) -> list[type]:
            return [cls for cls in classes if issubclass(cls, ModelAdapter)]

    return load_plugins(extra=[Plugin()])


def line(cls: type, method: str) -> str:
    return f"({__file__}:{getattr(cls, method).__code__.co_firstlineno + 1}, in "


@pytest.mark.parametrize(
    ("cls", "method", "keys", "fault"),
    [
        (Misnames, "key", {"target.format": "mine"}, "NameError: name 'nmae' is not defined"),
        (Misspells, "files", {"target.layout": "by_kind"}, "AttributeError: 'PlannedWeight' object has no attribute"),
        (Stumbles, "recognise", {"source.type": "tiny"}, "KeyError: 'nowhere'"),
    ],
)
def test_what_is_raised_comes_with_its_place(
    asked: Any, cls: type, method: str, keys: dict[str, str], fault: str
) -> None:
    with pytest.raises((PlanError, PluginError)) as told:
        make_plan(asked("int8", **keys), registry(cls))
    assert fault in str(told.value)
    assert line(cls, method) in str(told.value)


@pytest.mark.parametrize(
    ("cls", "keys", "fault"),
    [
        (Misencodes, {"target.format": "mine"}, "fault of the plugin: target mine: KeyError: 'wieght' ("),
        (Renames, {"target.format": "mine"}, "target mine: decode does not undo encode; weight is not what it was"),
        (
            LosesTheScale,
            {"target.format": "mine"},
            "target mine: decode does not undo encode; scale is not what it",
        ),
        (TurnsRound, {"target.format": "mine"}, "target mine: decode does not undo encode; weight is not what it was"),
        (AddsText, {"target.format": "mine"}, "target mine: side file mine.json must be bytes, not str"),
        (ReturnsAList, {"target.layout": "by_kind"}, "layout by_kind: files must return a mapping of file names to"),
        (LosesOne, {"target.layout": "by_kind"}, "layout by_kind: loses blocks.0.cross_attn.k.bias"),
        (NamesTheSuffix, {"target.layout": "by_kind"}, "'wan.safetensors' has the suffix already"),
        (SeesGhosts, {"source.type": "tiny"}, "model tiny: ghost is made of blocks.0.ffn.0.wieght, which is not there"),
        (CountsTwice, {"source.type": "tiny"}, "model tiny: lists blocks.0."),
        (SourcesBare, {"source.type": "tiny"}, "model tiny: the sources of blocks.0."),
    ],
)
def test_a_broken_contract_is_an_error_of_the_plan(asked: Any, cls: type, keys: dict[str, str], fault: str) -> None:
    with pytest.raises((PlanError, PluginError)) as told:
        make_plan(asked("int8", **keys), registry(cls))
    assert fault in str(told.value)


def test_a_target_that_fails_on_other_files_stops_no_one(asked: Any, wan_source: Any, tmp_path: Any) -> None:
    found = registry(MisreadsOthers)
    remark = f"skipping plugin mine: KeyError: 'mine' {line(MisreadsOthers, 'detect')}"
    with make_plan(asked("int8"), found) as plan:
        assert any(remark in warning for warning in plan.warnings)
    seen = inspect(wan_source, found)
    assert seen.model == "wan_dit"
    assert any(remark in note for note in seen.notes)
    convert(asked("int8"), registry=found)
    (tmp_path / "out" / "wan.manifest.json").unlink()
    assert inspect(tmp_path / "out", found).quantized.formats == {"int8": 36}
    report = verify(tmp_path / "out", wan_source, registry=found)
    assert report.ok
    assert any(remark in note for note in report.notes)


def test_a_model_that_fails_on_other_files_is_told_once() -> None:
    skipped: list[str] = []
    knows = faults.owned_by_any([StumblesAtKeys(), WanDit()], skipped)
    assert [knows(key) for key in ("blocks.0.ffn.0.weight", "patch_embedding.weight", "strange")] == [True, True, False]
    assert len(skipped) == 1
    assert f"IndexError: string index out of range {line(StumblesAtKeys, 'owns_key')}owns_key)" in skipped[0]
    answers = faults.call_each([Stumbles(), WanDit()], lambda adapter: adapter.recognise({}), skipped)
    assert [(adapter.name, answer) for adapter, answer in answers] == [("wan_dit", None)]
    assert "KeyError: 'nowhere'" in skipped[1]


def test_a_fault_of_the_core_keeps_its_traceback(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter_core.planning.outputs.groups_of", "no function")
    with pytest.raises(TypeError, match="not callable"):
        make_plan(asked("int8"), registry(Mine))


def test_without_the_manifest_names_of_copied_tensors_are_unknown_and_that_is_told_once(
    asked: Any, wan_source: Any, tmp_path: Any
) -> None:
    found = registry(ScansItsOwn)
    convert(asked("int8", **{"target.format": "mine"}), registry=found)
    assert verify(tmp_path / "out", wan_source, registry=found).ok
    (tmp_path / "out" / "wan.manifest.json").unlink()
    report = verify(tmp_path / "out", wan_source, registry=found)
    assert [str(problem) for problem in report.problems] == [
        "83 tensors that are not quantized have names that only the manifest explains, e.g. "
        "blocks.0.cross_attn.k.bias/weight; without it they cannot be compared"
    ]
    assert len(report.weights) == 36
    assert all(weight.ok for weight in report.weights)
