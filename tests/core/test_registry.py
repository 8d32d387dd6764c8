"""Plugins from real distributions: broken ones are listed, stop no other, and say why when asked for by name."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from converter_core import LayoutWriter, Parts, PluginError, Quantizer, RecipeError, hookimpl, load_plugins, make_plan
from converter_core.cli import run
from converter_core.plugins.registry import Registry
from converter_core.plugins.validation import unfit

GOOD = """
from dataclasses import dataclass, field
from typing import ClassVar
from converter_core import Quantizer, hookimpl

@dataclass(frozen=True)
class {cls}(Quantizer):
    name: ClassVar[str] = "{name}"
    def quantize(self, weight): return {{"weight": weight}}
    def dequantize(self, parts): return parts["weight"].float()

@hookimpl
def converter_quantizers(): return [{cls}]
"""


def good(name: str) -> str:
    return GOOD.format(cls=name.title().replace("_", ""), name=name)


def reasons(registry: Registry, plugin: str) -> list[str]:
    return [broken.reason for broken in registry.broken if broken.origin.plugin == plugin]


def check_others_work(registry: Registry) -> None:
    assert {"int8", "neighbour"} <= set(registry.quantizers)
    assert {"plain", "lightx2v"} <= set(registry.targets)
    assert {"single_file", "by_block", "chunked"} <= set(registry.layouts)


@pytest.fixture(autouse=True)
def neighbour(installed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONVERTER_DISABLE_PLUGINS", raising=False)
    monkeypatch.delenv("CONVERTER_TRACE_PLUGINS", raising=False)
    installed("neighbour-dist", {"neighbour": "neighbour_module"}, neighbour_module=good("neighbour"))


def test_a_sound_one_is_found_with_its_origin() -> None:
    registry = load_plugins()
    assert registry.broken == ()
    check_others_work(registry)
    origin = registry.quantizers.origins["neighbour"]
    assert (origin.plugin, origin.distribution, origin.version) == ("neighbour", "neighbour-dist", "1.0")
    assert str(origin) == "neighbour (neighbour-dist 1.0)"


BROKEN_MODULES = [
    ("import nothing_of_this_name", "does not import: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
    ("raise RuntimeError('boom')", "does not import: RuntimeError: boom"),
    ("import sys; sys.exit(3)", "does not import: SystemExit: 3"),
    ("def broken(:", "does not import: SyntaxError"),
    ("x = 1", "has no hook"),
]

BROKEN_LINES = [
    ("def converter_quantizers", "def converter_quantiser", "unknown hook .*; did you mean 'converter_quantizers'"),
    ("@hookimpl\n", "", "converter_quantizers is not marked with @hookimpl"),
    ("converter_quantizers()", "converter_quantizers(color)", "cannot be registered: .*'color'"),
    ("return [Broken]", "return Broken", "converter_quantizers must return a list of classes, not ABCMeta"),
    ("return [Broken]", "pass", "converter_quantizers must return a list of classes, not NoneType"),
    ("return [Broken]", "return [Broken()]", "is not a subclass of Quantizer"),
    ("return [Broken]", "return [dict]", "<class 'dict'> is not a subclass of Quantizer"),
    ("return [Broken]", "return 1 // 0", "converter_quantizers raises ZeroDivisionError"),
    ("frozen=True", "", "Broken must be a dataclass with frozen=True"),
    ("@dataclass(frozen=True)", "", "Broken must be a dataclass with frozen=True"),
    ("    def dequantize", "    def dequantise", "Broken lacks dequantize"),
    ('name: ClassVar[str] = "broken"', "threshold: float = 1.0", "Broken has no name"),
    ("ClassVar[str] =", "str =", "Broken: name cannot be an option"),
    ('"broken"', '"broken"; row_block: int = 1', "Broken: row_block cannot be an option"),
    ('"broken"', '"broken"; threshold: float', "Broken: option threshold needs a default"),
    ('"broken"', '"none"', "Broken cannot be called 'none'"),
]

BROKEN = [*BROKEN_MODULES, *((good("broken").replace(old, new), words) for old, new, words in BROKEN_LINES)]


@pytest.mark.parametrize(("source", "words"), BROKEN, ids=range(len(BROKEN)))
def test_a_broken_one_is_listed_stops_no_other_and_is_refused(installed: Any, source: str, words: str) -> None:
    installed("broken-dist", {"broken": "broken_module"}, broken_module=source)
    registry = load_plugins()
    check_others_work(registry)
    (found,) = registry.broken
    assert str(found.origin) == "broken (broken-dist 1.0)"
    with pytest.raises(PluginError, match=words) as refusal:
        registry.quantizers["broken"]
    assert str(refusal.value) == f"quantizer 'broken' cannot be used: {found.reason}"


def test_the_sound_half_of_a_plugin_works(installed: Any) -> None:
    source = (
        good("half") + "\n@hookimpl\ndef converter_targets(): return 7\n@hookimpl\ndef converter_layout(): return []\n"
    )
    installed("half-dist", {"half": "half_module"}, half_module=source)
    registry = load_plugins()
    assert registry.quantizers["half"].name == "half"
    assert len(reasons(registry, "half")) == 2
    with pytest.raises(PluginError, match=r"target 'half' cannot be used: .*converter_targets must return a list"):
        registry.targets["half"]


def test_two_of_one_name_are_both_refused_with_both_owners(installed: Any) -> None:
    installed("first-dist", {"first": "first_module"}, first_module=good("twin"))
    installed("second-dist", {"second": "second_module"}, second_module=good("twin"))
    registry = load_plugins()
    check_others_work(registry)
    assert "twin" not in registry.quantizers
    with pytest.raises(PluginError) as refusal:
        registry.quantizers["twin"]
    for words in ("first (first-dist 1.0)", "second (second-dist 1.0)", "CONVERTER_DISABLE_PLUGINS"):
        assert words in str(refusal.value)
    assert len(reasons(registry, "first")) == len(reasons(registry, "second")) == 1
    assert load_plugins(blocked=["second"]).quantizers["twin"].__module__ == "first_module"
    assert load_plugins(blocked=["first-dist"]).quantizers["twin"].__module__ == "second_module"


@pytest.mark.parametrize(
    ("distributions", "points"), [(("a-dist", "b-dist"), ("twin", "twin")), (("a-dist", "a-dist"), ("one", "two"))]
)
def test_the_remedy_for_a_clash_is_one(
    distributions: tuple[str, str], points: tuple[str, str], installed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = {"left_module": good("twin"), "right_module": good("twin")}
    offers: dict[str, dict[str, str]] = {}
    for distribution, point, module in zip(distributions, points, modules, strict=True):
        offers.setdefault(distribution, {})[point] = module
    for distribution, named in offers.items():
        installed(distribution, named, **{module: modules[module] for module in named.values()})
    with pytest.raises(PluginError) as refusal:
        load_plugins().quantizers["twin"]
    (remedy,) = set(re.findall(r"CONVERTER_DISABLE_PLUGINS=([\w-]+)\)", str(refusal.value)))
    monkeypatch.setenv("CONVERTER_DISABLE_PLUGINS", remedy)
    assert load_plugins().quantizers["twin"].__module__ == "left_module"


def test_one_class_from_two_entry_points_is_no_clash(installed: Any) -> None:
    installed("alias-dist", {"one": "alias_module", "two": "alias_module"}, alias_module=good("alias"))
    registry = load_plugins()
    assert registry.quantizers["alias"].name == "alias"
    assert registry.broken == ()


def test_blocked_by_the_environment(installed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    installed("loud-dist", {"loud": "loud_module"}, loud_module="raise SystemError('was imported')")
    monkeypatch.setenv("CONVERTER_DISABLE_PLUGINS", "int8, loud,,")
    registry = load_plugins()
    assert "neighbour" in registry.quantizers
    assert [broken.blocked for broken in registry.broken] == [True, True]
    assert reasons(registry, "loud") == ["CONVERTER_DISABLE_PLUGINS names it"]
    with pytest.raises(PluginError, match="'int8' is blocked: CONVERTER_DISABLE_PLUGINS names it"):
        registry.quantizers["int8"]


def test_an_unknown_name_has_its_neighbours_and_who_might_have_offered_it(installed: Any) -> None:
    installed("broken-dist", {"broken": "broken_module"}, broken_module="import nothing_of_this_name")
    with pytest.raises(PluginError) as refusal:
        load_plugins().quantizers["neighbor"]
    assert "did you mean 'neighbour'?" in str(refusal.value)
    assert "may have offered it: broken (broken-dist 1.0)" in str(refusal.value)


def test_the_command_line_lists_it_with_the_reason(installed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    installed("broken-dist", {"broken": "broken_module"}, broken_module="import nothing_of_this_name")
    assert run(["plugins", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"quantizer": "neighbour", "layout": "chunked"}.items() <= {(p["kind"], p["name"]) for p in told["plugins"]}
    (unusable,) = told["unusable"]
    assert (unusable["plugin"], unusable["distribution"]) == ("broken", "broken-dist")
    assert "ModuleNotFoundError" in unusable["reason"]
    assert run(["plugins"]) == 0
    assert "ModuleNotFoundError" in capsys.readouterr().out


def test_a_recipe_that_names_it_is_refused_with_the_reason(installed: Any, asked: Any) -> None:
    installed("broken-dist", {"broken": "broken_module"}, broken_module="import nothing_of_this_name")
    with pytest.raises(RecipeError, match="quantizer 'broken' cannot be used: broken_module does not import"):
        make_plan(asked("broken"))


def test_trace(installed: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    load_plugins()
    assert capsys.readouterr() == ("", "")
    installed("broken-dist", {"broken": "broken_module"}, broken_module="import nothing_of_this_name")
    monkeypatch.setenv("CONVERTER_TRACE_PLUGINS", "1")
    load_plugins()
    out, err = capsys.readouterr()
    assert out == ""
    assert "converter_core: neighbour (neighbour-dist 1.0): converter_quantizers() -> [<class" in err
    assert "converter_core: broken (broken-dist 1.0): left out: broken_module does not import" in err


def test_an_object_with_hooks_can_be_given_by_hand() -> None:
    class Mine:
        @hookimpl
        def converter_layouts(self) -> list[type[LayoutWriter]]:
            return [Scattered]

    class Scattered(LayoutWriter):
        name = "scattered"

        def files(self, name: str, weights: Sequence[Any]) -> dict[str, Sequence[Any]]:
            return {name: weights}

    assert load_plugins(extra=[Mine()]).layouts["scattered"] is Scattered


def test_the_default_is_one() -> None:
    class Second(LayoutWriter):
        name = "second"
        default = True

        def files(self, name: str, weights: Sequence[Any]) -> dict[str, Sequence[Any]]:
            return {name: weights}

    class Mine:
        @hookimpl
        def converter_layouts(self) -> list[type[LayoutWriter]]:
            return [Second]

    assert load_plugins().layouts.default() == "single_file"
    with pytest.raises(PluginError, match="single_file and second all say they are the default"):
        load_plugins(extra=[Mine()]).layouts.default()
    with pytest.raises(PluginError, match="none of them is the default"):
        load_plugins().quantizers.default()


def test_options_that_would_be_lost_are_told() -> None:
    class Chunks(LayoutWriter):
        name = "chunks"
        size: int = 3

        def files(self, name: str, weights: Sequence[Any]) -> dict[str, Sequence[Any]]:
            return {name: weights}

    @dataclass(frozen=True)
    class Base(Quantizer):
        name: ClassVar[str] = "base"

        def quantize(self, weight: Any, /, *args: Any, **given: Any) -> Parts:
            return {"weight": weight}

        def dequantize(self, parts: Parts, /) -> Any:
            return parts["weight"]

    class Child(Base):
        name: ClassVar[str] = "child"
        threshold: float = 0.5

    @dataclass(frozen=True)
    class Forgetful(Base):
        name: ClassVar[str] = "forgetful"
        LEVELS = (1, 2)
        _table = (3,)
        row_block = 1
        bits = 4

    @dataclass(frozen=True)
    class Listing(Base):
        name: ClassVar[str] = "listing"
        levels: list[int] = field(default_factory=lambda: [1, 2])

    class NeedsArguments(LayoutWriter):
        name = "needs"

        def __init__(self, size: int) -> None:
            self.size = size

        def files(self, name: str, weights: Sequence[Any]) -> dict[str, Sequence[Any]]:
            return {name: weights}

    assert "size would be no option" in unfit(Chunks, LayoutWriter)
    assert "threshold would be no option" in unfit(Child, Quantizer)
    assert unfit(Forgetful, Quantizer) == (
        "Forgetful: bits would be no option without an annotation; write bits: int = ..., or annotate it as ClassVar"
    )
    assert unfit(Listing, Quantizer) == (
        "Listing: the default of option levels is a list, which cannot be hashed; use a tuple"
    )
    assert "must work without arguments: missing a required argument: 'size'" in unfit(NeedsArguments, LayoutWriter)
    assert unfit(Base, Quantizer) == ""


def test_a_catalogue_is_a_mapping() -> None:
    quantizers = load_plugins().quantizers
    assert quantizers.get("no such scheme") is None
    assert quantizers.get("no such scheme", 3) == 3
    assert quantizers.get("int8") is quantizers["int8"]
