"""Whose fault an exception is: a stranger's plugin is told with its place, ours keeps its traceback."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ..api.hookspecs import DISTRIBUTION
from ..api.models import ModelAdapter
from ..api.targets import Target
from ..errors import ConverterError, PluginError, shown
from .registry import Registry

_CORE = __name__.partition(".")[0]
_LIBRARIES = ("torch",)

P = TypeVar("P", ModelAdapter, Target)
T = TypeVar("T")


def describe(error: BaseException) -> str:
    """What a plugin raised, in its or torch's own words, and where in the plugin's code."""
    words = str(error).strip().partition("\n")[0]
    places = [
        f" ({shown(frame.f_code.co_filename)}:{line}, in {frame.f_code.co_name})"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if _package(frame.f_globals) not in (_CORE, *_LIBRARIES)
    ]
    where = places[-1] if places else ""
    return f"{type(error).__name__}: {words}{where}"


@contextmanager
def attribute_errors(registry: Registry) -> Iterator[None]:
    """Turns what a stranger's code raises into a PluginError; what the core or a plugin of ours raises goes through."""
    try:
        yield
    except ConverterError:
        raise
    except Exception as error:
        strangers = {
            cls.__module__.partition(".")[0]
            for catalogue in registry.catalogues()
            for name, cls in catalogue.classes.items()
            if catalogue.origins[name].distribution != DISTRIBUTION
        }
        packages = [_package(frame.f_globals) for frame, _ in traceback.walk_tb(error.__traceback__)]
        inner = next((package for package in reversed(packages) if package in {_CORE, *strangers}), _CORE)
        if inner == _CORE:
            raise
        raise PluginError(f"a plugin is at fault: {describe(error)}") from error


def call_each(plugins: Iterable[P], ask: Callable[[P], T], skipped: list[str]) -> Iterator[tuple[P, T]]:
    """Each plugin and its answer. One that fails is left out and told: it must not stop what does not need it."""
    for plugin in plugins:
        try:
            answer = ask(plugin)
        except ConverterError:
            raise
        except Exception as error:
            remark = f"skipping plugin {plugin.name}: {describe(error)}"
            if remark not in skipped:
                skipped.append(remark)
        else:
            yield plugin, answer


def owned_by_any(adapters: Iterable[ModelAdapter], skipped: list[str]) -> Callable[[str], bool]:
    """Whether one of the adapters knows a key."""
    able = list(adapters)
    return lambda key: any(knows for _, knows in call_each(able, lambda adapter: adapter.owns_key(key), skipped))


def _package(names: dict[str, Any]) -> str:
    return str(names.get("__name__", "")).partition(".")[0]
