"""What the user asked for: a YAML file, flags and keyword arguments all end up in one validated ``Recipe``."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .declared import Problem, read
from .errors import RecipeError
from .recipe_check import make_quantizer, problems_of
from .recipe_values import (
    OutputSection,
    PerformanceSection,
    QuantizationSection,
    Recipe,
    Rule,
    SourceSection,
    TargetSection,
    located,
)
from .recipe_yaml import Document, read_yaml
from .registry import Registry, load_plugins

__all__ = [
    "OutputSection",
    "PerformanceSection",
    "QuantizationSection",
    "Recipe",
    "Rule",
    "SourceSection",
    "TargetSection",
    "check_recipe",
    "load_recipe",
    "make_quantizer",
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
    document = _document(source)
    for path, value in (overrides or {}).items():
        label = (labels or {}).get(path, "overrides")
        reason = _override(document.data, path, value)
        if reason:
            document.problems.append(f"{label}: {path}: {reason}")
        document.places = {
            key: at for key, at in document.places.items() if not key.startswith((f"{path}.", f"{path}["))
        }
        document.places[path] = label
    problems: list[Problem] = []
    recipe: Recipe = read(Recipe, document.data, "", problems)
    unsound = {problem.path for problem in problems}
    problems += problems_of(recipe, registry or load_plugins(), unsound)
    told = [*document.problems, *(f"{located(p.path, document.places)}: {p.reason}" for p in problems)]
    if told:
        raise RecipeError(*told)
    return replace(recipe, places=document.places)


def check_recipe(recipe: Recipe, registry: Registry) -> list[str]:
    """All that the plugins have against a recipe: unknown names and options, wrong types, what excludes each other."""
    return [f"{recipe.where(problem.path)}: {problem.reason}" for problem in problems_of(recipe, registry)]


def _document(source: Recipe | Mapping[str, Any] | str | os.PathLike[str]) -> Document:
    if isinstance(source, Recipe):
        return Document(source.as_dict(), dict(source.places))
    if isinstance(source, Mapping):
        return Document(copy.deepcopy(dict(source)))
    return read_yaml(Path(source))


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
