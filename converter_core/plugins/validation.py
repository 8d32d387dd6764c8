"""Whether a class can serve as a plugin, and what its options are."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from ..api.containers import Container
from ..api.devices import DeviceBackend
from ..api.layouts import LayoutWriter
from ..api.models import ModelAdapter
from ..api.quantizers import Quantizer
from ..api.storages import Storage
from ..api.targets import Target

KINDS: Mapping[str, tuple[str, type]] = {
    "model": ("converter_models", ModelAdapter),
    "quantizer": ("converter_quantizers", Quantizer),
    "target": ("converter_targets", Target),
    "layout": ("converter_layouts", LayoutWriter),
    "device": ("converter_devices", DeviceBackend),
    "container": ("converter_containers", Container),
    "storage": ("converter_storages", Storage),
}
"""Kind -> its hook, and the class that what it returns must derive from."""

RESERVED = frozenset({("quantizer", "none"), ("device", "auto")})
"""Names that a recipe understands by itself."""


_VALUES = (bool, int, float, str, tuple, list, dict, set)


def unfit(cls: Any, base: type) -> str:
    """Why a class cannot serve as a plugin of the kind of ``base``; empty if it can."""
    if not isinstance(cls, type) or not issubclass(cls, base):
        return f"{cls!r} is not a subclass of {base.__name__}"
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not name:
        return f'{cls.__name__} has no name; give it one: name: ClassVar[str] = "..."'
    if any(hook_base is base and (kind, name) in RESERVED for kind, (_, hook_base) in KINDS.items()):
        return f"{cls.__name__} cannot be called {name!r}; the core has its own meaning for it"
    if inspect.isabstract(cls):
        return f"{cls.__name__} lacks {', '.join(sorted(getattr(cls, '__abstractmethods__', ())))}"
    return _unfit_options(cls, base) or _unfit_arguments(cls) or _unfit_names(cls, base)


def _unfit_options(cls: type, base: type) -> str:
    options = {option.name for option in options_of(cls)}
    frozen = is_dataclass(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    if (base is Quantizer or options) and not frozen:
        return f"{cls.__name__} must be a dataclass with frozen=True; its fields are the options"
    if own := sorted(options & set(dir(base)) | options & {"name", "target_modules"}):
        return f"{cls.__name__}: {', '.join(own)} cannot be an option; annotate what belongs to the class as ClassVar"
    if base not in (Quantizer, LayoutWriter):
        return ""
    annotations = inspect.get_annotations(cls)
    bare = sorted(
        name
        for name, value in vars(cls).items()
        if isinstance(value, _VALUES) and not (name in annotations or name.startswith("_") or name.isupper())
        if not hasattr(base, name) and name != "name"
    )
    if bare:
        return (
            f"{cls.__name__}: {', '.join(bare)} would be no option without an annotation; write {bare[0]}: "
            f"{type(vars(cls)[bare[0]]).__name__} = ..., or annotate it as ClassVar"
        )
    annotated = {name for name, kind in annotations.items() if "ClassVar" not in str(kind)}
    if lost := sorted(name for name in annotated - options - {"name", *dir(base)} if not name.startswith("_")):
        return f"{cls.__name__} must be a dataclass with frozen=True; {', '.join(lost)} would be no option"
    return ""


def _unfit_names(cls: Any, base: type) -> str:
    if base is Container:
        return _unfit_suffixes(cls)
    schemes = getattr(cls, "schemes", ())
    if base is Storage and (isinstance(schemes, str) or not schemes or any(one != one.lower() for one in schemes)):
        return f'{cls.__name__} has no schemes in lower case; say which URLs are its own: schemes = ("s3",)'
    return ""


def _unfit_suffixes(cls: Any) -> str:
    suffixes = getattr(cls, "suffixes", ())
    if isinstance(suffixes, str) or not suffixes:
        return f'{cls.__name__} has no suffixes; say how its files are called: suffixes = (".ext",)'
    for suffix in (*suffixes, *cls.index_suffixes):
        if not isinstance(suffix, str) or not suffix.startswith(".") or set(suffix) & {"/", "\\", "\0"}:
            return f"{cls.__name__}: a suffix must begin with a dot and hold no path, not {suffix!r}"
    return ""


def _unfit_arguments(cls: type) -> str:
    needed = [option.name for option in options_of(cls) if option.default is option.default_factory is MISSING]
    if needed:
        return f"{cls.__name__}: option {', '.join(needed)} needs a default"
    try:
        inspect.signature(cls).bind()
        defaults = {option.name: default_of(option) for option in options_of(cls)}
    except Exception as error:  # a stranger's signature and default_factory
        return f"{cls.__name__}() must work without arguments: {error}"
    for name, value in defaults.items():
        if not isinstance(value, Hashable):
            kind = type(value).__name__
            return f"{cls.__name__}: the default of option {name} is a {kind}, which cannot be hashed; use a tuple"
    return ""


def options_of(cls: type) -> tuple[Field[Any], ...]:
    """The options of a quantizer or layout: its dataclass fields."""
    return fields(cls) if is_dataclass(cls) else ()


def default_of(option: Field[Any]) -> Any:
    """None if there is none."""
    if option.default is not MISSING:
        return option.default
    return option.default_factory() if option.default_factory is not MISSING else None
