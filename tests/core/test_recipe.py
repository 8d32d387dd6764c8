"""Recipes from YAML, mappings and overrides; everything wrong in one message, with its place and the nearest key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter_core.api.devices import DeviceBackend
from converter_core.api.hookspecs import hookimpl
from converter_core.api.layouts import LayoutWriter
from converter_core.api.models import ModelAdapter
from converter_core.api.quantizers import Quantizer
from converter_core.api.targets import Target
from converter_core.errors import RecipeError, Refused
from converter_core.plugins.registry import Registry, load_plugins
from converter_core.recipe.load import (
    OutputSection,
    PerformanceSection,
    QuantizationSection,
    Recipe,
    Rule,
    SourceSection,
    TargetSection,
    check_recipe,
    load_recipe,
    make_plugin,
)


@dataclass(frozen=True)
class Coarse(Quantizer):
    name: ClassVar[str] = "coarse"
    steps: int = 16
    clip: float = 1.0
    rounding: Literal["even", "away"] = "even"
    table: str | None = None
    weights: tuple[float, ...] = ()
    where: Path | None = None
    sure: bool = True
    only_here: bool = False

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise Refused("steps: needs two at least")
        if self.steps > 256:
            raise ValueError("too many")

    @property
    def required_target(self) -> str | None:
        return "elsewhere" if self.only_here else None

    def quantize(self, weight, /):  # type: ignore[no-untyped-def]
        return {"weight": weight}

    def dequantize(self, parts, /):  # type: ignore[no-untyped-def]
        return parts["weight"].float()


def _concrete(base: type, **members: Any) -> type:
    missing = {name: lambda self, *arguments: None for name in base.__abstractmethods__}  # type: ignore[attr-defined]
    return type(members["name"], (base,), {**missing, **members})


@dataclass(frozen=True)
class Sliced(LayoutWriter):
    name: ClassVar[str] = "sliced"
    chunk_size: int | str = "1GiB"

    def __post_init__(self) -> None:
        if self.chunk_size == 13:
            raise Refused("chunk_size: 13 is unlucky")

    def files(self, name, weights):  # type: ignore[no-untyped-def]
        return {name: weights}


PLUGINS: Mapping[str, list[type]] = {
    "converter_models": [_concrete(ModelAdapter, name="toy", modules=("attn", "mlp"))],
    "converter_quantizers": [Coarse],
    "converter_targets": [
        _concrete(Target, name="runtime", default=True),
        _concrete(Target, name="elsewhere"),
    ],
    "converter_layouts": [_concrete(LayoutWriter, name="whole", default=True), Sliced],
    "converter_devices": [_concrete(DeviceBackend, name="cpu"), _concrete(DeviceBackend, name="gpu")],
}


OURS = [point.name for point in entry_points(group="converter_core") if ".containers." not in point.value]
"""All but containers: the files of a source have the same formats in every test."""


@pytest.fixture(scope="module")
def registry() -> Registry:
    module = ModuleType("toys")
    for hook, classes in PLUGINS.items():
        setattr(module, hook, hookimpl(lambda classes=classes: classes))
    loaded = load_plugins(extra=[module], blocked=OURS)
    assert set(loaded.quantizers) == {"coarse"}
    return loaded


MINIMAL = {"source": {"path": "in"}, "output": {"path": "out"}}


def with_(**sections: Any) -> dict[str, Any]:
    return {**MINIMAL, **sections}


def problems(registry: Registry, source: Any, **keywords: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(source, registry=registry, **keywords)
    return list(caught.value.problems)


def test_defaults(registry):
    assert load_recipe(MINIMAL, registry=registry) == Recipe(
        source=SourceSection("in"),
        quantization=QuantizationSection("none", {}, ()),
        output=OutputSection("out", None, False, False),
        target=TargetSection(None, None, None, None, None),
        performance=PerformanceSection(True, "auto", None, None, "threads"),
    )


FULL = """\
source:
  type: toy
  path: /models/toy
  format: safetensors
quantization:
  method: coarse
  options:
    target_modules: [attn]
    steps: 8
    clip: 2
    weights: [1, 2.5]
    table: null
  rules:
    - match: "blocks.0.*"
      method: none
output:
  path: out
  name: toy2.1_480p_coarse
  copy_metadata: true
  overwrite: yes
target:
  format: runtime
  precision: coarse
  layout: sliced
  chunk_size: 4GiB
  dtype: keep
performance:
  parallel: true
  device: gpu:1
  num_workers: 4
  max_memory: 1GiB
"""


def test_every_key(registry, tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(FULL)
    recipe = load_recipe(path, registry=registry)
    assert recipe == Recipe(
        source=SourceSection("/models/toy", "toy", format="safetensors"),
        quantization=QuantizationSection(
            "coarse",
            {"target_modules": ["attn"], "steps": 8, "clip": 2, "weights": [1, 2.5]},
            (Rule("blocks.0.*", "none"),),
        ),
        output=OutputSection("out", "toy2.1_480p_coarse", True, True),
        target=TargetSection("runtime", "coarse", "sliced", "4GiB", "keep"),
        performance=PerformanceSection(True, "gpu:1", 4, 2**30),
    )
    assert recipe.where("quantization.options.steps") == f"{path}:9: quantization.options.steps"
    assert recipe.where("quantization.rules[0].options.x") == f"{path}:14: quantization.rules[0].options.x"
    assert recipe.where("target.other") == f"{path}:21: target.other"
    assert Recipe.from_dict(recipe.as_dict()) == recipe
    assert load_recipe(recipe, registry=registry).places == recipe.places


def test_a_place_that_nobody_knows_is_the_key_alone():
    assert Recipe.from_dict(MINIMAL).where("output.path") == "output.path"


def test_all_problems_at_once_each_with_line_key_and_nearest(registry, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(
        "sorce:\n"
        "  path: in\n"
        "  type: tyo\n"
        "quantization:\n"
        "  metod: coarse\n"
        "  options:\n"
        "    stpes: 3\n"
        "    rounding: evn\n"
        "  rules:\n"
        "    - method: corse\n"
        "      match: a\n"
        "output:\n"
        "  path: out\n"
        "  path: again\n"
        "  overwrite: 1\n"
        "target: {dtype: bf16, layout: sliecd}\n"
        "performance:\n"
        "  num_workers: true\n"
        "  max_memory: lots\n"
    )
    found = problems(registry, path, overrides={"performance.device": "gup"}, labels={"performance.device": "--device"})
    for start, *words in [
        (f"{path}:1: sorce:", "unknown key 'sorce'", "did you mean 'source'?"),
        (f"{path}:3: source.type:", "unknown model 'tyo'", "did you mean 'toy'?"),
        (f"{path}:5: quantization.metod:", "did you mean 'method'?"),
        (f"{path}:7: quantization.options.stpes:", "unknown option of coarse 'stpes'", "did you mean 'steps'?"),
        (f"{path}:8: quantization.options.rounding:", "must be even or away, not 'evn'", "did you mean 'even'?"),
        (f"{path}:10: quantization.rules[0].method:", "did you mean 'coarse'?"),
        (f"{path}:14: output.path:", "second time"),
        (f"{path}:15: output.overwrite:", "must be true or false, not 1"),
        (f"{path}:16: target.dtype:", "did you mean 'bfloat16'?"),
        (f"{path}:16: target.layout:", "did you mean 'sliced'?"),
        (f"{path}:18: performance.num_workers:", "must be a whole number, not true"),
        (f"{path}:19: performance.max_memory:", "'lots'"),
        ("--device: performance.device:", "unknown device 'gup'", "did you mean 'gpu'?"),
    ]:
        assert [line for line in found if line.startswith(start) and all(word in line for word in words)], (
            start,
            found,
        )
    assert len(found) == 13, found


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        ({}, "source.path: is required"),
        ({}, "output.path: is required"),
        ({"source": {"path": None}, "output": {"path": "out"}}, "source.path: is required"),
        ({"source": "in", "output": {"path": "out"}}, "source: must be a mapping of keys to values, not 'in'"),
        ({"source": ["in"], "output": {"path": "out"}}, "source: must be a mapping of keys to values, not a list"),
        (with_(source={"path": 3}), "source.path: must be a path, not 3"),
        (
            {"source": {"path": "in", "format": "pickle"}, "output": {"path": "out"}},
            "source.format: unknown container 'pickle'",
        ),
        (
            {"source": {"path": "in"}, "output": {"path": "out", "name": "a/b"}},
            "output.name: must be the name of a file",
        ),
        (
            {"source": {"path": "in"}, "output": {"path": "out", "name": ".a"}},
            "output.name: must be the name of a file",
        ),
        (with_(output={"path": "out", "name": "x" * 201}), "output.name: must be shorter"),
        (
            with_(quantization={"rules": {"match": "a"}}),
            "quantization.rules: must be a list of mappings, not a mapping",
        ),
        (with_(quantization={"rules": [{"match": "a"}]}), "quantization.rules[0].method: is required"),
        (with_(quantization={"rules": ["a"]}), "quantization.rules[0]: must be a mapping"),
        (with_(quantization={"method": 8}), "quantization.method: must be text, not 8; in quotes"),
        (
            with_(quantization={"method": "coarse", "options": []}),
            "quantization.options: must be a mapping, not a",
        ),
        (with_(performance={"num_workers": 0}), "performance.num_workers: must be at least 1, not 0"),
        (with_(performance={"max_memory": True}), "performance.max_memory: must be a size such as 1GiB, not true"),
        (with_(performance={"max_memory": 0}), "performance.max_memory: must be at least 1 byte"),
        (with_(performance={"device": "auto:1"}), "performance.device: 'auto:1' is no device; write auto"),
        (with_(performance={"device": "gpu:one"}), "performance.device: 'gpu:one' is no device; write gpu or gpu:0"),
        (with_(performance={"parallel": False, "num_workers": 2}), "performance.num_workers: 2 workers contradict"),
        (with_(target={"precision": "int8"}), "target.precision: says 'int8', but quantization.method is 'none'"),
        (
            with_(target={"chunk_size": "4GiB"}),
            "target.chunk_size: layout whole has no chunk size; write layout: s",
        ),
        (with_(target={"chunk_size": 13, "layout": "sliced"}), "target.chunk_size: 13 is unlucky"),
        (with_(target={"chunk_size": 1.5, "layout": "sliced"}), "target.chunk_size: must be a whole number or text"),
        (with_(quantization={"method": "none", "options": {"steps": 3}}), "quantization.options.steps: method none"),
    ],
)
def test_refused(registry, recipe, problem):
    found = problems(registry, recipe)
    assert [line for line in found if line.startswith(problem)], found
    assert len(found) == (2 if recipe == {} else 1), found


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"steps": True}, "steps: must be a whole number, not true"),
        ({"steps": 2.0}, "steps: must be a whole number, not 2.0"),
        ({"steps": "8"}, "steps: must be a whole number, not '8'"),
        ({"steps": 1}, "steps: needs two at least"),
        ({"steps": 1000}, "ValueError: too many"),
        ({"clip": "wide"}, "clip: must be a number, not 'wide'"),
        ({"clip": False}, "clip: must be a number, not false"),
        ({"table": 3}, "table: must be text, not 3"),
        ({"weights": 1.0}, "weights: must be a list of numbers, not 1.0"),
        ({"weights": [1, "x"]}, "weights[1]: must be a number, not 'x'"),
        ({"where": 3}, "where: must be a path, not 3"),
        ({"sure": "true"}, "sure: must be true or false, not 'true'"),
        ({"name": "other"}, "name: unknown option of coarse 'name'"),
        ({"only_here": True}, "coarse with these options is for target elsewhere, and target.format is runtime"),
        ({"target_modules": "attn"}, "target_modules: must be a list of text, not 'attn'"),
        ({"target_modules": []}, "target_modules: is empty"),
        ({"target_modules": ["atn"]}, "target_modules: unknown module 'atn'; did you mean 'attn'?"),
    ],
)
def test_options_are_what_the_fields_declare(registry, options, problem):
    recipe = {
        "source": {"path": "in", "type": "toy"},
        "output": {"path": "out"},
        "quantization": {"method": "coarse", "options": options},
    }
    (found,) = problems(registry, recipe)
    assert found.startswith("quantization.options")
    assert problem in found


def test_a_rule_has_options_of_its_own_and_no_target_modules(registry):
    rules = [
        {"match": "a", "method": "coarse", "options": {"steps": 1}},
        {"match": "b", "method": "coarse", "options": {"target_modules": ["attn"]}},
    ]
    found = problems(registry, with_(quantization={"method": "coarse", "rules": rules}))
    assert found == [
        "quantization.rules[0].options.steps: needs two at least",
        "quantization.rules[1].options.target_modules: does not belong to a rule: a rule chooses by match",
    ]


def test_modules_of_a_model_that_is_yet_to_be_detected_are_left_to_the_plan(registry):
    recipe = with_(quantization={"method": "coarse", "options": {"target_modules": ["anything"]}})
    assert load_recipe(recipe, registry=registry).quantization.options == {"target_modules": ["anything"]}


def test_a_plugin_is_made_of_options_as_they_stand_in_a_recipe():
    made = make_plugin(Coarse, {"weights": [1, 2], "clip": 3, "where": "a/b", "table": None})
    assert made == Coarse(weights=(1.0, 2.0), clip=3.0, where=Path("a/b"))
    assert isinstance(made, Coarse)
    assert isinstance(made.clip, float)
    assert hash(made) == hash(Coarse(weights=(1.0, 2.0), clip=3.0, where=Path("a/b")))
    with pytest.raises(Refused, match=r"^coarse: stpes: unknown option of coarse 'stpes'; did you mean 'steps'"):
        make_plugin(Coarse, {"stpes": 3})


def test_an_option_that_cannot_be_hashed_is_refused():
    @dataclass(frozen=True)
    class Loose(Coarse):
        name: ClassVar[str] = "loose"
        mapping: Mapping[str, int] = field(default_factory=dict)

    with pytest.raises(Refused, match=r"loose.*unhashable"):
        make_plugin(Loose, {"mapping": {"a": 1}})


def test_check_recipe_of_a_value_built_in_python(registry):
    recipe = Recipe(
        source=SourceSection("in", type="tyo"),
        output=OutputSection("out"),
        quantization=QuantizationSection("coarse", {"steps": 1}),
    )
    assert check_recipe(recipe, registry) == [
        "source.type: unknown model 'tyo'; did you mean 'toy'? (known: toy)",
        "quantization.options.steps: needs two at least",
    ]


def test_overrides_win_and_are_named(registry, tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(FULL)
    recipe = load_recipe(
        path,
        {"quantization.options.steps": 4, "quantization.rules": None, "target.chunk_size": 7, "source.type": None},
        registry,
        labels={"quantization.options.steps": "--set"},
    )
    assert recipe.quantization.options["steps"] == 4
    assert recipe.quantization.rules == ()
    assert recipe.target.chunk_size == 7
    assert recipe.source.type is None
    assert recipe.where("quantization.options.steps") == "--set: quantization.options.steps"
    assert recipe.where("target.chunk_size") == "overrides: target.chunk_size"
    assert recipe.where("quantization.rules[0].match") == "overrides: quantization.rules[0].match"


def test_an_override_makes_the_section_it_needs_and_leaves_the_callers_mapping_alone(registry):
    given = {"source": {"path": "in"}, "output": {"path": "out"}}
    assert load_recipe(given, {"output.name": "x", "performance.device": "cpu"}, registry).output.name == "x"
    assert given == {"source": {"path": "in"}, "output": {"path": "out"}}


def test_an_override_below_a_value_is_refused(registry):
    recipe = with_(quantization={"method": "coarse"})
    (found,) = problems(registry, recipe, overrides={"quantization.method.steps": 3})
    assert found == "overrides: quantization.method.steps: quantization.method is no mapping; give all of it"


def test_a_home_folder_is_found_as_a_shell_finds_it(registry, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    recipe = load_recipe({"source": {"path": "~/wan"}, "output": {"path": Path("/out")}}, registry=registry)
    assert recipe.source.path == "/home/somebody/wan"
    assert recipe.output.path == "/out"


_leaf = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
_keys = st.sampled_from([*sorted(set(re.findall(r"\w+(?=:)", FULL))), "metod", "x"])
_branches = st.recursive(
    _leaf,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_keys, inner, max_size=5)),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(_keys, _branches, max_size=5))
def test_any_mapping_is_a_recipe_or_a_refusal(registry, data):
    try:
        recipe = load_recipe(data, registry=registry)
    except RecipeError:
        return
    assert Recipe.from_dict(recipe.as_dict()) == recipe


# ------------------------------------------------------------------------------------------ what every method takes


@pytest.mark.parametrize("method", ["int8", "fp8", "mxfp4", "nvfp4"])
def test_one_recipe_serves_every_method(method):
    options = {"target_modules": ["self_attn", "cross_attn", "ffn"], "per_channel": True, "symmetric": True}
    recipe = {
        "source": {"path": "in", "type": "wan_dit"},
        "quantization": {"method": method, "options": options},
        "output": {"path": "out"},
        "target": {"precision": method},
    }
    assert load_recipe(recipe).quantization.options == options


def test_options_that_are_true_of_every_scheme(registry):
    recipe = {"method": "coarse", "options": {"per_channel": True, "symmetric": None}}
    assert load_recipe(with_(quantization=recipe), registry=registry).quantization.method == "coarse"
    assert make_plugin(Coarse, {"per_channel": True, "symmetric": True}) == Coarse()
    recipe = {"method": "coarse", "options": {"per_channel": False, "symmetric": 1, "per_chanel": True}}
    found = problems(registry, with_(quantization=recipe))
    at = "quantization.options"
    assert found[0] == f"{at}.per_channel: must be true: coarse has no other way; write true or leave it out"
    assert found[1] == f"{at}.symmetric: must be true, not 1"
    assert found[2].startswith(f"{at}.per_chanel: unknown option of coarse 'per_chanel'; did you mean 'per_channel'?")


# -------------------------------------------------------------------------------------------- suggestions and limits


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"method": "coarse", "options": {"target_module": ["a"]}}, "did you mean 'target_modules'?"),
        ({"method": "COARSE"}, "did you mean 'coarse'?"),
        ({"method": "coarse", "options": {"Steps": 3}}, "did you mean 'steps'?"),
        ({"method": "coarse", "options": {"rounding": "AWAY"}}, "did you mean 'away'?"),
        ({"rules": [{"match": "[" * 100_000, "method": "none"}]}, "rules[0].match: is a pattern of 100000 characters"),
    ],
)
def test_near_names_and_long_patterns(registry, recipe, words):
    (found,) = problems(registry, with_(quantization=recipe))
    assert words in found


def test_workers_are_limited_by_the_cores(registry):
    assert "must be at most" in problems(registry, with_(performance={"num_workers": 1_000_000}))[0]


def test_an_unknown_section_of_an_override_is_told_as_the_override(registry, tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(FULL)
    labels = {"quantisation.method": "--set"}
    (found,) = problems(registry, path, overrides={"quantisation.method": "none"}, labels=labels)
    assert found.startswith("--set: quantisation: unknown key 'quantisation'")


@pytest.mark.parametrize(
    ("file", "overrides", "expected"),
    [
        ({"num_workers": 3}, {"performance.parallel": False}, (False, None)),
        ({"parallel": False}, {"performance.num_workers": 3}, (True, 3)),
        ({"num_workers": 3}, {"performance.parallel": True}, (True, 3)),
        ({"parallel": False}, {"performance.num_workers": 1}, (False, 1)),
        ({"num_workers": 3}, {"performance.parallel": False, "performance.num_workers": 2}, None),
    ],
)
def test_an_override_wins_over_what_contradicts_it_in_the_file(registry, file, overrides, expected):
    if expected is None:
        assert "contradict" in problems(registry, with_(performance=file), overrides=overrides)[0]
        return
    performance = load_recipe(with_(performance=file), overrides, registry).performance
    assert (performance.parallel, performance.num_workers) == expected


def test_tuples_of_a_fixed_length_and_mappings_of_a_type():
    @dataclass(frozen=True)
    class Typed(Coarse):
        name: ClassVar[str] = "typed"
        block: tuple[int, int] = (1, 16)
        table: Mapping[str, int] = field(default_factory=dict, hash=False)  # type: ignore[assignment]

    assert make_plugin(Typed, {"block": [2, 3]}).block == (2, 3)
    assert make_plugin(Typed, {"table": {"a": 1}}).table == {"a": 1}
    for options, reason in [
        ({"block": [1, 2, 3]}, r"typed: block: must be a list of 2 \(a whole number, a whole number\), not 3"),
        ({"table": {"a": "x"}}, r"typed: table.a: must be a whole number, not 'x'"),
    ]:
        with pytest.raises(Refused, match=reason):
            make_plugin(Typed, options)


# -------------------------------------------------------------------------------------------------------- new sections


@pytest.fixture(scope="module")
def optioned() -> Registry:
    @dataclass(frozen=True)
    class Model(PLUGINS["converter_models"][0]):  # type: ignore[misc]
        name: ClassVar[str] = "model"
        depth: int = 3

    @dataclass(frozen=True)
    class Runtime(PLUGINS["converter_targets"][0]):  # type: ignore[misc]
        name: ClassVar[str] = "other"
        default: ClassVar[bool] = False
        swap: bool = False

    module = ModuleType("optioned")
    given = {**PLUGINS, "converter_models": [Model], "converter_targets": [*PLUGINS["converter_targets"], Runtime]}
    for hook, classes in given.items():
        setattr(module, hook, hookimpl(lambda classes=classes: classes))
    return load_plugins(extra=[module], blocked=OURS)


def test_options_of_models_and_targets(optioned):
    source = {"path": "in", "type": "model", "options": {"depth": 4}}
    recipe = with_(source=source, target={"format": "other", "options": {"swap": True}})
    loaded = load_recipe(recipe, registry=optioned)
    assert loaded.source.options == {"depth": 4}
    assert loaded.target.options == {"swap": True}
    source = {"path": "in", "type": "model", "options": {"depht": 4}}
    found = problems(optioned, with_(source=source, target={"format": "other", "options": {"swap": 1}}))
    assert found[0].startswith("source.options.depht: unknown option of model 'depht'; did you mean 'depth'?")
    assert found[1] == "target.options.swap: must be true or false, not 1"
    (found,) = problems(optioned, with_(source={"path": "in", "options": {"depth": 4}}))
    assert found == "source.options: are options of a model; say which one with source.type"
    (found,) = problems(optioned, with_(target={"options": {"x": 1}}))
    assert found.startswith("target.options.x: unknown option of runtime 'x'")


SEVERAL = """\
source: {path: in}
outputs:
  - quantization: {method: coarse, options: {steps: 4}}
    output: {path: a}
  - output: {path: b}
    target:
      layout: sliced
      chunk_size: 4
performance: {device: cpu}
"""


def test_several_outputs(registry, tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(SEVERAL)
    recipe = load_recipe(path, registry=registry)
    first, second = recipe.exports
    assert first.quantization == QuantizationSection("coarse", {"steps": 4})
    assert (first.output.path, second.output.path) == ("a", "b")
    assert second.target == TargetSection(layout="sliced", chunk_size=4)
    for export in recipe.exports:
        assert (export.source, export.performance, export.outputs) == (recipe.source, recipe.performance, ())
        assert export.exports == (export,)
        assert load_recipe(export, registry=registry) is export
    assert second.where("target.chunk_size") == f"{path}:8: outputs[1].target.chunk_size"
    assert second.where("quantization.method") == f"{path}:5: outputs[1].quantization.method"
    assert second.where("source.path") == f"{path}:1: source.path"
    assert Recipe.from_dict(recipe.as_dict()) == recipe
    assert set(recipe.as_dict()) == {"source", "outputs", "performance"}
    changed = load_recipe(second, {"target.chunk_size": 5}, registry)
    assert changed.target.chunk_size == 5
    assert changed.where("target.layout") == f"{path}:7: target.layout"
    assert changed.where("target.chunk_size") == "overrides: target.chunk_size"


def test_what_is_wrong_with_one_of_several_outputs(registry, tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(
        SEVERAL.replace("path: b", "path: ./a").replace("layout: sliced", "layout: sliecd").replace("steps", "stpes")
    )
    found = problems(registry, path)
    assert found[0].startswith(f"{path}:3: outputs[0].quantization.options.stpes: unknown option of coarse")
    assert found[1].startswith(f"{path}:7: outputs[1].target.layout: unknown layout 'sliecd'; did you mean 'sliced'?")
    assert found[2].startswith(f"{path}:5: outputs[1].output.path: is the folder of outputs[0].output.path too")
    assert len(found) == 3


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"outputs": [{"output": {"path": "a"}}], "output": {"path": "b"}}, "output: cannot stand beside outputs"),
        ({"outputs": []}, "outputs: is empty; list at least one output"),
        ({"outputs": [{"target": {}}]}, "outputs[0].output.path: is required"),
        ({"outputs": ["a"]}, "outputs[0]: must be a mapping of keys to values, not 'a'"),
        ({"outputs": 3}, "outputs: must be a list of mappings, not 3"),
        ({"output": {"path": "a"}, "performance": {"executor": "rye"}}, "performance.executor: unknown executor 'rye'"),
    ],
)
def test_outputs_and_executor_refused(registry, recipe, expected):
    (found,) = problems(registry, {"source": {"path": "in"}, **recipe})
    assert found.startswith(expected)


def test_an_accepted_recipe_is_not_checked_again_and_a_changed_one_is(registry):
    recipe = load_recipe(MINIMAL, registry=registry)
    assert load_recipe(recipe, registry=registry) is recipe
    changed = replace(recipe, quantization=QuantizationSection("corse"))
    assert "did you mean 'coarse'?" in problems(registry, changed)[0]
