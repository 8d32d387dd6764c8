"""Whose fault an exception is: a stranger's plugin is told with its place, ours keeps its traceback."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from .errors import ConverterError, PluginError, shown
from .hookspecs import DISTRIBUTION
from .interfaces import ModelAdapter, Target
from .registry import Registry

_CORE = __name__.partition(".")[0]
_LIBRARIES = ("torch",)

P = TypeVar("P", ModelAdapter, Target)
T = TypeVar("T")


def told(error: BaseException) -> str:
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
def of_plugins(registry: Registry) -> Iterator[None]:
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
        raise PluginError(f"a plugin is at fault: {told(error)}") from error


def asked(plugins: Iterable[P], ask: Callable[[P], T], left_out: list[str]) -> Iterator[tuple[P, T]]:
    """Each plugin and its answer. One that fails is left out and told: it must not stop what does not need it."""
    for plugin in plugins:
        try:
            answer = ask(plugin)
        except ConverterError:
            raise
        except Exception as error:
            remark = f"plugin {plugin.name} is left out, for it fails: {told(error)}"
            if remark not in left_out:
                left_out.append(remark)
        else:
            yield plugin, answer


def knowing(adapters: Iterable[ModelAdapter], left_out: list[str]) -> Callable[[str], bool]:
    """Whether one of the adapters knows a key."""
    able = list(adapters)
    return lambda key: any(knows for _, knows in asked(able, lambda adapter: adapter.knows(key), left_out))


def _package(names: dict[str, Any]) -> str:
    return str(names.get("__name__", "")).partition(".")[0]
