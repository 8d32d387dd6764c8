"""What a recipe asks of the plugins: names they have, options they declare, combinations that make sense."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ..api.quantizers import Quantizer
from ..errors import CheckpointError, PluginError, Refused, nearest, shown, unknown
from ..plugins.registry import Catalogue, Registry, options_of
from ..storage.location import locate, scheme_of
from .check_performance import performance_problems
from .options import followed, try_plugin
from .schema import Problem, fit, join, show
from .values import Recipe

COPY = "none"
"""The method that quantizes nothing."""

EXACT = "exact"
"""The LoRA numerics that are nobody's but ours."""

MODULES = "target_modules"
"""The one option that is the recipe's own and not the quantizer's."""

T = TypeVar("T")


def problems_of(recipe: Recipe, registry: Registry, unsound: Collection[str] = ()) -> list[Problem]:
    """All that the plugins have against a recipe. unsound: keys whose values are known to be wrong, and no guide."""
    exports = recipe.exports
    found = list(_Check(exports[0], registry, unsound).of_all_outputs())
    for export in exports:
        found += _Check(export, registry, unsound).of_one_output()
    return found + list(_same_folder(exports))


def _same_folder(exports: Sequence[Recipe]) -> Iterable[Problem]:
    folders: dict[str, str] = {}
    for export in exports:
        if export.output is None or export.output.path is None:  # told already
            continue
        key = export.key("output.path")
        path = export.output.path
        same = path.rstrip("/") if scheme_of(path) else os.path.realpath(path)
        first = folders.setdefault(same, key)
        if first != key:
            yield Problem(key, f"is the folder of {first} too; give each output a folder of its own")


class _Check:
    """Of a recipe of one output; keys in problems are those of the whole recipe."""

    def __init__(self, recipe: Recipe, registry: Registry, unsound: Collection[str]) -> None:
        self.recipe = recipe
        self.registry = registry
        self.unsound = unsound

    def of_all_outputs(self) -> Iterable[Problem]:
        source = self.recipe.source
        yield from self._named("source.type", self.registry.models, source.type)
        yield from self._named("source.format", self.registry.containers, source.format)
        yield from self._source_options()
        yield from self._lora_numerics()
        device = self.recipe.performance.device.partition(":")[0]
        yield from self._named("performance.device", self.registry.devices, device, "auto")
        yield from performance_problems(self.recipe, self._sound)

    def of_one_output(self) -> Iterable[Problem]:
        for problem in self._output():
            yield Problem(self.recipe.key(problem.path), problem.reason)

    def _output(self) -> Iterable[Problem]:
        target, quantization = self.recipe.target, self.recipe.quantization
        yield from self._named("target.format", self.registry.targets, target.format)
        yield from self._named("target.layout", self.registry.layouts, target.layout)
        yield from self._scheme("quantization", quantization.method, quantization.options)
        for number, rule in enumerate(quantization.rules):
            yield from self._scheme(f"quantization.rules[{number}]", rule.method, rule.options)
        yield from self._output_path()
        yield from self._modules()
        yield from self._precision()
        yield from self._layout()
        yield from self._target_options()

    def _output_path(self) -> Iterable[Problem]:
        output = self.recipe.output
        if output is None or not output.path or not self._sound("output.path"):
            return
        try:
            location = locate(output.path, self.registry.storages) if scheme_of(output.path) else None
            if location is not None and location.path is None:
                location.storage.writer(location.url)
            elif output.state_folder is not None:
                yield Problem("output.state_folder", "is for an output on a URL; leave it out for a folder")
        except (CheckpointError, Refused) as error:
            yield from (Problem("output.path", f"{shown(output.path)}: {reason}") for reason in error.problems)

    def _sound(self, *paths: str) -> bool:
        def touches(one: str, other: str) -> bool:
            return one == other or one.startswith((f"{other}.", f"{other}["))

        keys = [self.recipe.key(path) for path in paths]
        return not any(touches(bad, key) or touches(key, bad) for bad in self.unsound for key in keys)

    def _source_options(self) -> Iterable[Problem]:
        name, options = self.recipe.source.type, self.recipe.source.options
        if not options or not self._sound("source.options", "source.type"):
            return
        if name is None:
            yield Problem("source.options", "are options of a model; say which one with source.type")
        elif name in self.registry.models:
            yield from try_plugin(self.registry.models[name], options, "source.options")[1]

    def _lora_numerics(self) -> Iterable[Problem]:
        known = [EXACT, *(name for name, cls in self.registry.targets.items() if cls.lora_forms)]
        name = self.recipe.source.lora_numerics
        if self._sound("source.lora_numerics") and name not in known:
            yield Problem("source.lora_numerics", unknown("numerics", name, known))

    def _target_options(self) -> Iterable[Problem]:
        name, options = self._target_name(), self.recipe.target.options
        if options and name in self.registry.targets and self._sound("target.options", "target.format"):
            yield from try_plugin(self.registry.targets[name], options, "target.options")[1]

    def _target_name(self) -> str:
        """The target, the default one if none is named; empty if there is none."""
        default = (name for name, cls in self.registry.targets.items() if cls.default)
        return self.recipe.target.format or next(default, "")

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
        misspelt = [key for key in own if path == "quantization" and self._is_modules(key, method)]
        for key in misspelt:
            yield Problem(join(at, key), f"unknown option {key!r}; did you mean {MODULES!r}?")
            del own[key]
        if len(own) + len(misspelt) < len(options) and path != "quantization":
            yield Problem(join(at, MODULES), "does not belong to a rule: a rule chooses by match")
        if method == COPY:
            for key in own:
                yield Problem(join(at, key), f"method {COPY} quantizes nothing and has no options")
            return
        quantizer, problems = try_plugin(self.registry.quantizers[method], own, at)
        yield from problems
        if quantizer is not None and self._sound("target.format"):
            yield from self._target(at, quantizer)
            yield from self._followed(at, quantizer, own)

    def _is_modules(self, key: str, method: str) -> bool:
        """Whether an unknown option is nearest to ``target_modules``."""
        names = [] if method == COPY else [o.name for o in options_of(self.registry.quantizers[method])]
        return key not in names and nearest(key, [*names, MODULES]) == MODULES

    def _target(self, path: str, quantizer: Quantizer) -> Iterable[Problem]:
        wanted, format = quantizer.required_target, self._target_name()
        if wanted is not None and format and wanted != format:
            yield Problem(
                path, f"{quantizer.name} with these options is for target {wanted}, and target.format is {format}"
            )

    def _followed(self, path: str, quantizer: Quantizer, options: Mapping[str, Any]) -> Iterable[Problem]:
        """Whether the options can stand beside those that follow the target."""
        name = self._target_name()
        if name not in self.registry.targets or not self._sound("target.options"):
            return
        target, _ = try_plugin(self.registry.targets[name], self.recipe.target.options, "")
        more = followed(quantizer, options, target) if target is not None else {}
        if more:
            asked = ", ".join(f"{key}: {show(value)}" for key, value in more.items())
            for problem in try_plugin(type(quantizer), {**options, **more}, path)[1]:
                yield Problem(problem.path, f"{problem.reason}; target {name} takes {quantizer.name} with {asked}")

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
        _, problems = try_plugin(layouts[name], {"chunk_size": size}, "target")
        yield from (Problem("target.chunk_size", problem.reason) for problem in problems)
