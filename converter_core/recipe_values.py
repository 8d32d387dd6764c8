"""What the user asked for, as values. One dataclass per section of the YAML file, one field per key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from .declared import Problem, read
from .errors import RecipeError
from .sizes import parse_bytes


def _memory(value: Any) -> int:
    """``"1GiB"`` or a number of bytes -> bytes; ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("must be a size such as 1GiB")
    size = parse_bytes(value) if isinstance(value, str) else value
    if size < 1:
        raise ValueError("must be more than nothing")
    return size


def _workers(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be a whole number")
    if value < 1:
        raise ValueError("must be at least 1")
    return value


def _folder(value: Any) -> str:
    """Text or a path object -> text, ``~`` expanded; ValueError."""
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError("must be a path")
    return str(Path(text).expanduser()) if text.startswith("~/") else text


def _stem(value: Any) -> str:
    """A name that files can begin with; ValueError."""
    if not isinstance(value, str) or not value:
        raise ValueError("must be text")
    if "/" in value or "\0" in value or value.startswith("."):
        raise ValueError("must be the name of a file: without a slash, and not hidden by a dot in front")
    if len(value.encode("utf-8", "surrogateescape")) > 200:
        raise ValueError("must be shorter: file names have at most 255 bytes, and a suffix is added")
    return value


@dataclass(frozen=True)
class Rule:
    """``method`` for the weights whose name matches a glob. The first rule that matches decides.

    match: a glob on the weight's name in the target's naming without ``.weight``; ``*`` crosses dots.
    options: the method's own; nothing is inherited from the section.
    """

    match: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceSection:
    """Where the checkpoint is. None: detected.

    path: a directory (with or without an index), one ``.safetensors``, or a ``.pth``/``.pt``.
    type: the model adapter's name.
    """

    path: str = field(metadata={"read": _folder})
    type: str | None = None
    format: Literal["safetensors", "pytorch"] | None = None


@dataclass(frozen=True)
class QuantizationSection:
    """Which scheme for which weights. ``method`` ``none``: nothing is quantized, only the layout changes.

    options: ``target_modules``, and the quantizer's own dataclass fields.
    """

    method: str = "none"
    options: Mapping[str, Any] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True)
class OutputSection:
    """Where the result goes. ``path`` is a directory; ``name`` None: ``{model}_{method}``."""

    path: str = field(metadata={"read": _folder})
    name: str | None = field(default=None, metadata={"read": _stem})
    copy_metadata: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class TargetSection:
    """What is written. None: the default of the registered targets and layouts.

    precision: a label that must agree with ``quantization.method``.
    chunk_size: for layouts with such an option; a size with a unit, or a number of tensors.
    dtype: of floating tensors that are not quantized; ``keep``: as they are.
    """

    format: str | None = None
    precision: str | None = None
    layout: str | None = None
    chunk_size: int | str | None = None
    dtype: Literal["bfloat16", "float16", "float32", "keep"] | None = None


@dataclass(frozen=True)
class PerformanceSection:
    """How it is done; changes no byte of the output.

    parallel: False: one worker. num_workers None: the cores, at most 8.
    max_memory: bytes of tensor data in flight, on the host and on the device each; None: chosen and stated.
    """

    parallel: bool = True
    device: str = "auto"
    num_workers: int | None = field(default=None, metadata={"read": _workers})
    max_memory: int | None = field(default=None, metadata={"read": _memory})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to convert, how, and where to. ``places`` knows for each key the line or flag that it came from."""

    source: SourceSection
    quantization: QuantizationSection = field(default_factory=QuantizationSection)
    output: OutputSection
    target: TargetSection = field(default_factory=TargetSection)
    performance: PerformanceSection = field(default_factory=PerformanceSection)
    places: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False, metadata={"internal": True})

    @classmethod
    def from_dict(cls, recipe: Mapping[str, Any]) -> Recipe:
        """From the schema of the YAML file, without a look at the plugins. RecipeError with all that is wrong."""
        problems: list[Problem] = []
        value: Recipe = read(cls, recipe, "", problems)
        if problems:
            raise RecipeError(*(f"{problem.path}: {problem.reason}" for problem in problems))
        return value

    def as_dict(self) -> dict[str, Any]:
        """In the schema of the YAML file, without what was omitted: ``Recipe.from_dict(r.as_dict()) == r``."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name != "places"}

    def where(self, path: str) -> str:
        """``wan.yaml:12: quantization.options.foo`` if it is known where that key stands, else the key alone."""
        return located(path, self.places)


def located(path: str, places: Mapping[str, str]) -> str:
    """A key with the place of it, or of the nearest key around it that has one."""
    around = path
    while around:
        if around in places:
            return f"{places[around]}: {path}"
        around = around[: max(around.rfind("."), around.rfind("["), 0)]
    return f"{places['']}: {path}" if "" in places else path


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        pairs = {f.name: getattr(value, f.name) for f in fields(value)}
        return {key: _plain(item) for key, item in pairs.items() if item is not None and item not in ({}, ())}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
