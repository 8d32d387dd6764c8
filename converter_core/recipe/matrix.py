"""Models x schemes x targets x layouts: every combination a recipe."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import PurePath
from typing import Any

from ..errors import unknown
from .schema import Problem, join, read
from .values import OutputSection, QuantizationSection, SourceSection, TargetSection

AXES = {"models": "model", "schemes": "scheme", "targets": "target", "layouts": "layout"}
"""Key of an axis -> what a template calls a value of it."""


@dataclass(frozen=True)
class Model(SourceSection):
    """name: what templates call it; None: the last part of the path, without its suffix."""

    name: str | None = None


@dataclass(frozen=True)
class Scheme(QuantizationSection):
    name: str | None = None


@dataclass(frozen=True)
class Target(TargetSection):
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    layout: str
    chunk_size: int | str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Excluded:
    """A combination that is left out; what it does not name may be anything."""

    model: str | None = None
    scheme: str | None = None
    target: str | None = None
    layout: str | None = None


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """output: of every combination; ``path`` and ``name`` are templates with {model}, {scheme}, {target}, {layout}."""

    models: tuple[Model, ...]
    schemes: tuple[Scheme, ...]
    targets: tuple[Target, ...] = ()
    layouts: tuple[Layout, ...] = ()
    output: OutputSection
    exclude: tuple[Excluded, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One combination. recipe: in the schema of the YAML file. origins: section of it -> key of the batch."""

    name: str
    recipe: dict[str, Any]
    origins: Mapping[str, str]


@dataclass(frozen=True)
class _Entry:
    """A value of an axis. data: as it stands in the file, without its name."""

    name: str
    key: str
    data: Mapping[str, Any] = field(default_factory=dict)


_SHORT = {"models": "path", "schemes": "method", "targets": "format", "layouts": "layout"}
"""Axis -> the key that a text alone stands for."""


def read_matrix(data: Mapping[str, Any], path: str, problems: list[Problem]) -> Matrix:
    matrix: Matrix = read(Matrix, _spelt_out(data), path, problems)
    for axis in AXES:
        if not getattr(matrix, axis) and (data.get(axis) is not None):
            problems.append(Problem(join(path, axis), "is empty; list at least one"))
    return matrix


def _spelt_out(data: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(data)
    for axis, key in _SHORT.items():
        if isinstance(found.get(axis), (list, tuple)):
            found[axis] = [{key: one} if isinstance(one, str) else one for one in found[axis]]
    return found


def cells(matrix: Matrix, path: str, problems: list[Problem]) -> Iterator[Cell]:
    """Every combination that is not excluded."""
    axes = {axis: list(_entries(getattr(matrix, axis), axis, path)) for axis in AXES}
    before = len(problems)
    problems += _same_names(axes)
    problems += _templates(matrix.output, path)
    problems += _exclusions(matrix, axes, path)
    if matrix.layouts:
        problems += [
            Problem(join(entry.key, key), f"cannot stand beside {path}.layouts; write it there or here")
            for entry in axes["targets"]
            for key in ("layout", "chunk_size")
            if entry.data.get(key) is not None
        ]
    if len(problems) > before:
        return
    shown = [axis for axis in AXES if getattr(matrix, axis)]
    every_one_excluded = True
    for model, scheme, target, layout in itertools.product(*(axes[axis] for axis in AXES)):
        names = {"model": model.name, "scheme": scheme.name, "target": target.name, "layout": layout.name}
        if any(_is_excluded(names, one) for one in matrix.exclude):
            continue
        every_one_excluded = False
        recipe = {
            "source": dict(model.data),
            "quantization": dict(scheme.data),
            "target": {**target.data, **layout.data},
            "output": {key: _filled(value, names) for key, value in _given(matrix.output).items()},
        }
        origins = {"source": model.key, "quantization": scheme.key, "output": f"{path}.output", "target": target.key}
        if layout.key:
            origins["target.layout"] = layout.key
        yield Cell("/".join(names[AXES[axis]] for axis in shown), recipe, origins)
    if every_one_excluded and matrix.exclude:
        problems.append(Problem(join(path, "exclude"), "excludes every combination; leave at least one"))


def _entries(axis: tuple[Any, ...], name: str, path: str) -> Iterator[_Entry]:
    if not axis:
        yield _Entry("default", "")
    for number, one in enumerate(axis):
        data = _given(one)
        called = data.pop("name", None) or str(data.get(_SHORT[name], "default"))
        if name == "models" and one.name is None:
            called = _stem(called)
        yield _Entry(called, f"{path}.{name}[{number}]", data)


def _stem(path: str) -> str:
    """``models/wan.safetensors`` -> ``wan``; the dots of ``Wan2.1`` stay."""
    last = PurePath(path).name
    suffix = PurePath(last).suffix
    return last.removesuffix(suffix) if suffix[1:].isalpha() else last


def _given(section: Any) -> dict[str, Any]:
    """The keys of a section that say something, as plain data."""
    return {f.name: _plain(getattr(section, f.name)) for f in fields(section) if getattr(section, f.name) != f.default}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return _given(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _same_names(axes: Mapping[str, list[_Entry]]) -> Iterator[Problem]:
    for entries in axes.values():
        seen: dict[str, str] = {}
        for entry in entries:
            first = seen.setdefault(entry.name, entry.key)
            if first != entry.key:
                yield Problem(entry.key, f"is called {entry.name!r} as {first} is; give it another name")


def _templates(output: OutputSection, path: str) -> Iterator[Problem]:
    for key, template in (("path", output.path), ("name", output.name)):
        at = f"{path}.output.{key}"
        try:
            names = [name for _, name, _, _ in string.Formatter().parse(template or "") if name is not None]
        except ValueError as error:
            yield Problem(at, f"is no template ({error}); a brace that is meant is written twice")
            continue
        for name in names:
            if name not in AXES.values():
                yield Problem(at, unknown("placeholder", name, AXES.values()))


def _exclusions(matrix: Matrix, axes: Mapping[str, list[_Entry]], path: str) -> Iterator[Problem]:
    for number, one in enumerate(matrix.exclude):
        at = f"{path}.exclude[{number}]"
        asked = _given(one)
        if not asked:
            yield Problem(at, "excludes everything; name a model, a scheme, a target or a layout")
        for axis, word in AXES.items():
            known = [entry.name for entry in axes[axis]]
            if word in asked and asked[word] not in known:
                yield Problem(join(at, word), unknown(word, asked[word], known))


def _is_excluded(names: Mapping[str, str], excluded: Excluded) -> bool:
    return all(names[word] == value for word, value in _given(excluded).items())


def _filled(value: Any, names: Mapping[str, str]) -> Any:
    """Names become one part of a path: a slash in one is no folder."""
    parts = {word: name.replace("/", "_") for word, name in names.items()}
    return value.format_map(parts) if isinstance(value, str) else value
