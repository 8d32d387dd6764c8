"""What the user asked for: a YAML file, flags and keyword arguments all end up in one validated ``Recipe``."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..plugins.registry import Registry, load_plugins
from .check import problems_of
from .check_performance import THREADS
from .options import make_plugin, quantizer_for
from .schema import Problem
from .values import (
    ExportSection,
    LoraSection,
    OutputSection,
    PerformanceSection,
    QuantizationSection,
    Recipe,
    Rule,
    SourceSection,
    TargetSection,
    located,
    read_recipe,
)
from .yaml_file import Document, read_yaml

__all__ = [
    "THREADS",
    "ExportSection",
    "LoraSection",
    "OutputSection",
    "PerformanceSection",
    "QuantizationSection",
    "Recipe",
    "Rule",
    "SourceSection",
    "TargetSection",
    "accept",
    "check_recipe",
    "load_recipe",
    "make_plugin",
    "quantizer_for",
]


def load_recipe(
    source: Recipe | Mapping[str, Any] | str | os.PathLike[str],
    overrides: Mapping[str, Any] | None = None,
    registry: Registry | None = None,
    *,
    labels: Mapping[str, str] | None = None,
) -> Recipe:
    """A recipe that the plugins accept. RecipeError with all that is wrong, each with its place and key.

    source: a recipe, a mapping in the schema of the YAML file, or the path of one. overrides: dotted key -> value; a
    None stands for an omitted key. labels: dotted key -> what to call the place an override came from.
    """
    registry = registry or load_plugins()
    if isinstance(source, Recipe) and source.accepted_by is registry and not overrides:
        return source
    return accept(_document(source), registry, overrides, labels)


def accept(
    document: Document,
    registry: Registry,
    overrides: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Recipe:
    """As ``load_recipe``, of data that has been read. The document is changed."""
    if {"jobs", "matrix"} & set(document.data) and "source" not in document.data:
        raise RecipeError(
            f"{document.places.get('', 'recipe')}: is a batch of recipes; run model-converter batch on it"
        )
    for path, value in _consistent(overrides or {}, document.data).items():
        label = (labels or {}).get(path, "overrides")
        reason = _override(document.data, path, value)
        if reason:
            document.problems.append(f"{label}: {path}: {reason}")
        document.places = {
            key: at for key, at in document.places.items() if not key.startswith((f"{path}.", f"{path}["))
        }
        document.places[path] = label
    problems: list[Problem] = []
    recipe = read_recipe(document.data, problems)
    places = _with_meant(document.places, problems)
    unsound = {problem.path for problem in problems}
    problems += problems_of(recipe, registry, unsound)
    told = [*document.problems, *(f"{located(p.path, places)}: {p.reason}" for p in problems)]
    if told:
        raise RecipeError(*told)
    loaded = replace(recipe, places=document.places)
    object.__setattr__(loaded, "accepted_by", registry)
    return loaded


def _consistent(overrides: Mapping[str, Any], data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The overrides, and those that follow: of ``parallel`` and ``num_workers`` the one overridden wins."""
    section = data.get("performance")
    parallel, workers = "performance.parallel", "performance.num_workers"
    if not isinstance(section, Mapping) or (parallel in overrides) == (workers in overrides):
        return overrides
    if overrides.get(parallel) is False:
        return {**overrides, workers: None}
    if overrides.get(workers) not in (None, 1) and section.get("parallel") is False:
        return {**overrides, parallel: None}
    return overrides


def _with_meant(places: Mapping[str, str], problems: Iterable[Problem]) -> Mapping[str, str]:
    """The places, and those of keys that misspelt ones are taken for."""
    found = dict(places)
    for problem in problems:
        if problem.taken_for:
            for key, at in places.items():
                if key == problem.path or key.startswith((f"{problem.path}.", f"{problem.path}[")):
                    found.setdefault(problem.taken_for + key.removeprefix(problem.path), at)
    return found


def check_recipe(recipe: Recipe, registry: Registry) -> list[str]:
    """All that the plugins have against a recipe: unknown names and options, wrong types, what excludes each other."""
    return [f"{located(problem.path, recipe.places)}: {problem.reason}" for problem in problems_of(recipe, registry)]


def _document(source: Recipe | Mapping[str, Any] | str | os.PathLike[str]) -> Document:
    if isinstance(source, Recipe):
        return Document(source.as_dict(), _places(source))
    if isinstance(source, Mapping):
        return Document(copy.deepcopy(dict(source)))
    return read_yaml(Path(source))


def _places(recipe: Recipe) -> dict[str, str]:
    """By the keys that ``as_dict`` has: an export's sections stand at the top there."""
    if not recipe.within:
        return dict(recipe.places)
    own = {key: at for key, at in recipe.places.items() if not key.startswith("outputs")}
    prefix = f"{recipe.within}."
    own.update({key.removeprefix(prefix): at for key, at in recipe.places.items() if key.startswith(prefix)})
    return own


def _override(data: dict[str, Any], path: str, value: Any) -> str:
    """Put a value at a dotted key; why that cannot be, or nothing."""
    *sections, last = path.split(".")
    for depth, key in enumerate(sections, 1):
        if data.get(key) is None:
            data[key] = {}
        elif not isinstance(data[key], dict):
            return f"{'.'.join(sections[:depth])} is no mapping; give all of it"
        data = data[key]
    data[last] = value
    return ""
