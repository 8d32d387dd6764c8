"""What a recipe asks of the plugins: names they have, options they declare, combinations that make sense."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

from .declared import Problem, fit, join, read_options
from .errors import PluginError, Refused, unknown
from .interfaces import Quantizer
from .recipe_values import Recipe
from .registry import Catalogue, Registry, options_of

COPY = "none"
"""The method that quantizes nothing."""

MODULES = "target_modules"
"""The one option that is the recipe's own and not the quantizer's."""

T = TypeVar("T")


def make_quantizer(cls: type[Quantizer], options: Mapping[str, Any]) -> Quantizer:
    """An instance with options as they stand in a recipe; lists become tuples. Refused with all that does not fit."""
    quantizer, problems = _make(cls, options, "")
    if quantizer is None:
        raise Refused(*(f"{cls.name}: {problem.path}: {problem.reason}".replace(": : ", ": ") for problem in problems))
    return quantizer


def problems_of(recipe: Recipe, registry: Registry, unsound: Collection[str] = ()) -> list[Problem]:
    """All that the plugins have against a recipe. unsound: keys whose values are known to be wrong, and no guide."""
    return list(_Check(recipe, registry, unsound).all())


def _make(cls: type[T], options: Mapping[str, Any], path: str) -> tuple[T | None, list[Problem]]:
    known = options_of(cls)
    given, problems = read_options(known, cls, options, path)
    names = [option.name for option in known if option.init]
    for key in options:
        if key not in names:
            owner = f"option of {cls.name}"  # type: ignore[attr-defined]
            problems.append(Problem(join(path, key), unknown(owner, key, names)))
    if problems:
        return None, problems
    try:
        made = cls(**given)
        hash(made)
    except Refused as error:
        return None, [_placed(reason, names, path) for reason in error.problems]
    except Exception as error:  # a plugin's own check, in whatever way it says no
        return None, [Problem(path, f"{type(error).__name__}: {error}")]
    return made, []


def _placed(reason: str, options: Collection[str], path: str) -> Problem:
    """A reason that begins with the name of an option, as ``scale_rule: ...``, belongs to that key."""
    name, colon, rest = reason.partition(": ")
    return Problem(join(path, name), rest) if colon and name in options else Problem(path, reason)


class _Check:
    def __init__(self, recipe: Recipe, registry: Registry, unsound: Collection[str]) -> None:
        self.recipe = recipe
        self.registry = registry
        self.unsound = unsound

    def all(self) -> Iterable[Problem]:
        target = self.recipe.target
        yield from self._named("source.type", self.registry.models, self.recipe.source.type)
        yield from self._named("target.format", self.registry.targets, target.format)
        yield from self._named("target.layout", self.registry.layouts, target.layout)
        yield from self._scheme("quantization", self.recipe.quantization.method, self.recipe.quantization.options)
        for number, rule in enumerate(self.recipe.quantization.rules):
            yield from self._scheme(f"quantization.rules[{number}]", rule.method, rule.options)
        yield from self._modules()
        yield from self._precision()
        yield from self._layout()
        yield from self._performance()

    def _sound(self, *paths: str) -> bool:
        def touches(one: str, other: str) -> bool:
            return one == other or one.startswith((f"{other}.", f"{other}["))

        return not any(touches(bad, path) or touches(path, bad) for bad in self.unsound for path in paths)

    def _named(self, path: str, catalogue: Catalogue[T], name: str | None, *also: str) -> Iterable[Problem]:
        if name is None or name in also or not self._sound(path):
            return
        try:
            catalogue[name]
        except PluginError as error:
            plain = str(error) == unknown(catalogue.kind, name, catalogue)
            yield Problem(path, unknown(catalogue.kind, name, [*catalogue, *also]) if plain else str(error))

    def _scheme(self, path: str, method: str, options: Mapping[str, Any]) -> Iterable[Problem]:
        at, method_at = join(path, "options"), join(path, "method")
        bad = list(self._named(method_at, self.registry.quantizers, method, COPY))
        yield from bad
        if bad or not self._sound(method_at, at):
            return
        own = {key: value for key, value in options.items() if key != MODULES}
        if len(own) < len(options) and path != "quantization":
            yield Problem(join(at, MODULES), "does not belong to a rule: a rule chooses by match")
        if method == COPY:
            for key in own:
                yield Problem(join(at, key), f"method {COPY} quantizes nothing and has no options")
            return
        quantizer, problems = _make(self.registry.quantizers[method], own, at)
        yield from problems
        if quantizer is not None and self._sound("target.format"):
            yield from self._target(at, quantizer)

    def _target(self, path: str, quantizer: Quantizer) -> Iterable[Problem]:
        wanted, format = quantizer.only_target, self.recipe.target.format
        if format is None:
            format = next((name for name, cls in self.registry.targets.items() if cls.default), None)
        if wanted is not None and format is not None and wanted != format:
            yield Problem(
                path, f"{quantizer.name} with these options is for target {wanted}, and target.format is {format}"
            )

    def _modules(self) -> Iterable[Problem]:
        path = f"quantization.options.{MODULES}"
        given = self.recipe.quantization.options.get(MODULES)
        if given is None or not self._sound("quantization.options"):
            return
        problems: list[Problem] = []
        modules = fit(tuple[str, ...], given, path, problems)
        if not problems and not modules:
            problems.append(Problem(path, "is empty; with method: none nothing is quantized"))
        model = self.recipe.source.type
        if not problems and model is not None and model in self.registry.models and self._sound("source.type"):
            known = self.registry.models[model].modules
            problems += [Problem(path, unknown("module", name, known)) for name in modules if name not in known]
        yield from problems

    def _precision(self) -> Iterable[Problem]:
        precision, method = self.recipe.target.precision, self.recipe.quantization.method
        if precision is None or not self._sound("target.precision", "quantization.method"):
            return
        if precision != method:
            yield Problem(
                "target.precision",
                f"says {precision!r}, but quantization.method is {method!r}; make them agree, or leave precision out",
            )

    def _layout(self) -> Iterable[Problem]:
        size, layouts = self.recipe.target.chunk_size, self.registry.layouts
        name = self.recipe.target.layout or next((name for name, cls in layouts.items() if cls.default), None)
        if size is None or name is None or name not in layouts or not self._sound("target.layout", "target.chunk_size"):
            return
        if "chunk_size" not in {option.name for option in options_of(layouts[name])}:
            able = [n for n, cls in layouts.items() if "chunk_size" in {option.name for option in options_of(cls)}]
            hint = f"; write layout: {' or '.join(able)}" if able else ""
            yield Problem("target.chunk_size", f"layout {name} has no chunk size{hint}")
            return
        _, problems = _make(layouts[name], {"chunk_size": size}, "target")
        yield from (Problem("target.chunk_size", problem.reason) for problem in problems)

    def _performance(self) -> Iterable[Problem]:
        performance = self.recipe.performance
        name, colon, number = performance.device.partition(":")
        yield from self._named("performance.device", self.registry.devices, name, "auto")
        if self._sound("performance.device") and colon and (name == "auto" or not number.isdecimal()):
            kind = "auto" if name == "auto" else f"{name} or {name}:0"
            yield Problem("performance.device", f"{performance.device!r} is no device; write {kind}")
        if self._sound("performance") and not performance.parallel and (performance.num_workers or 1) > 1:
            yield Problem(
                "performance.num_workers", f"{performance.num_workers} workers contradict parallel: false; drop one"
            )
