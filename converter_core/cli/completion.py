"""Values for the shell's completion, from the names of entry points: no plugin is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points

from ..api.hookspecs import PROJECT

_PACKAGES: Mapping[str, str] = {
    "model": "models",
    "quantizer": "quantizers",
    "target": "targets",
    "layout": "layouts",
    "device": "devices",
    "container": "containers",
    "storage": "storages",
}
"""Kind -> the name of a package of such plugins. Where a module's path holds none, its kind cannot be told."""

_BY_KEY: Mapping[str, str] = {
    "source.type": "model",
    "source.format": "container",
    "quantization.method": "quantizer",
    "target.precision": "quantizer",
    "target.format": "target",
    "target.layout": "layout",
    "performance.device": "device",
}

_OWN: Mapping[str, tuple[str, ...]] = {"quantizer": ("none",), "device": ("auto",)}
"""Names that a recipe knows without a plugin."""


def plugin_names(kind: str) -> list[str]:
    """Installed plugins of a kind, as their entry points are called; those of unknown kind too."""
    found = set()
    for point in entry_points(group=PROJECT):
        parts = point.value.partition(":")[0].split(".")
        kinds = [known for known, package in _PACKAGES.items() if package in parts]
        if not kinds or kind in kinds:
            found.add(point.name)
    return sorted(found)


def values_of(kind: str) -> Callable[[str], list[str]]:
    """Completes names of plugins of a kind."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in (*_OWN.get(kind, ()), *plugin_names(kind)) if name.startswith(incomplete)]

    return complete


def complete_setting(incomplete: str) -> list[str]:
    """Completes ``KEY=VALUE``: the keys of a recipe, and the names that a key takes."""
    key, equals, value = incomplete.partition("=")
    if equals:
        return [f"{key}={name}" for name in values_of(_BY_KEY[key])(value)] if key in _BY_KEY else []
    return [f"{name}=" for name in recipe_keys() if name.startswith(key)]


def recipe_keys() -> Iterator[str]:
    """Every dotted key of a recipe."""
    from dataclasses import fields, is_dataclass
    from typing import get_type_hints

    from ..recipe.values import Recipe

    for name, section in get_type_hints(Recipe).items():
        if isinstance(section, type) and is_dataclass(section):
            yield from (f"{name}.{key.name}" for key in fields(section))
    yield "quantization.options.target_modules"
