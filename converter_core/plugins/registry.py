"""Find plugins, keep the broken ones apart, look them up by name.

pluggy's own ``load_setuptools_entrypoints`` stops at the first plugin that fails to import, a raising hook aborts the
whole call, and a misspelt hook is ignored. So each entry point is loaded by itself and has a plugin manager of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import Any, Generic, TypeVar

import pluggy

from ..api import hookspecs
from ..api.containers import Container
from ..api.devices import DeviceBackend
from ..api.hookspecs import PROJECT
from ..api.layouts import LayoutWriter
from ..api.models import ModelAdapter
from ..api.quantizers import Quantizer
from ..api.storages import Storage
from ..api.targets import Target
from ..errors import PluginError, unknown
from .validation import KINDS, unfit
from .validation import options_of as options_of

BLOCK_VARIABLE = "CONVERTER_DISABLE_PLUGINS"
TRACE_VARIABLE = "CONVERTER_TRACE_PLUGINS"

T = TypeVar("T")


@dataclass(frozen=True)
class Origin:
    """Where a plugin comes from: entry point, distribution and version (empty for one registered by hand)."""

    plugin: str
    distribution: str = ""
    version: str = ""

    def __str__(self) -> str:
        return f"{self.plugin} ({self.distribution} {self.version})" if self.distribution else self.plugin


@dataclass(frozen=True)
class Broken:
    """A plugin, or one name it offers, that cannot be used, and why. ``blocked``: because the user said so."""

    origin: Origin
    reason: str
    kind: str = ""
    name: str = ""
    blocked: bool = False


@dataclass(frozen=True)
class Catalogue(Mapping[str, type[T]], Generic[T]):
    """The plugins of one kind by name. ``catalogue[name]`` raises a PluginError that says what is there instead."""

    kind: str
    classes: Mapping[str, type[T]]
    origins: Mapping[str, Origin]
    broken: tuple[Broken, ...] = ()

    def __getitem__(self, name: str) -> type[T]:
        if name in self.classes:
            return self.classes[name]
        mine = [broken for broken in self.broken if broken.kind in ("", self.kind)]
        named = [broken for broken in mine if name in (broken.name, broken.origin.plugin)]
        if named:
            verb = "is blocked" if all(broken.blocked for broken in named) else "cannot be used"
            reasons = "; ".join(dict.fromkeys(broken.reason for broken in named))
            raise PluginError(f"{self.kind} {name!r} {verb}: {reasons}")
        unsure = sorted({str(broken.origin) for broken in mine if not broken.name and not broken.blocked})
        hint = f"; left out, and may have offered it: {', '.join(unsure)}" if unsure else ""
        raise PluginError(unknown(self.kind, name, self.classes) + hint)

    def get(self, name: str, default: Any = None) -> Any:
        """``default`` for an unknown name, where ``catalogue[name]`` says what there is instead."""
        return self.classes.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self.classes

    def __iter__(self) -> Iterator[str]:
        return iter(self.classes)

    def __len__(self) -> int:
        return len(self.classes)

    def default(self) -> str:
        """The name of the one that says it is the default."""
        named = [name for name, cls in self.classes.items() if getattr(cls, "default", False)]
        if len(named) != 1:
            found = "none of them is" if not named else f"{' and '.join(named)} all say they are"
            raise PluginError(f"no {self.kind} was named, and {found} the default (known: {', '.join(self.classes)})")
        return named[0]


@dataclass(frozen=True)
class Registry:
    """All plugins by kind and name, and in ``broken`` those that cannot be used."""

    models: Catalogue[ModelAdapter]
    quantizers: Catalogue[Quantizer]
    targets: Catalogue[Target]
    layouts: Catalogue[LayoutWriter]
    devices: Catalogue[DeviceBackend]
    containers: Catalogue[Container]
    storages: Catalogue[Storage]
    broken: tuple[Broken, ...] = ()

    def catalogues(self) -> tuple[Catalogue[Any], ...]:
        return (self.models, self.quantizers, self.targets, self.layouts, self.devices, self.containers, self.storages)


def load_plugins(*, extra: Iterable[object] = (), blocked: Iterable[str] | None = None) -> Registry:
    """Every installed plugin, and ``extra`` modules or objects with hooks (handy in tests).

    blocked: names of entry points or distributions to leave out; None: what ``CONVERTER_DISABLE_PLUGINS=a,b`` says.
    ``CONVERTER_TRACE_PLUGINS=1`` writes every load and hook call to stderr. Never raises for what a plugin does.
    """
    names = os.environ.get(BLOCK_VARIABLE, "").split(",") if blocked is None else blocked
    shut = {name.strip() for name in names} - {""}
    found = _Found(_trace if os.environ.get(TRACE_VARIABLE, "") not in ("", "0") else _silent)
    distributions: dict[Distribution, tuple[str, str]] = {}  # reading their metadata is most of the time
    for point in sorted(entry_points(group=PROJECT), key=lambda point: (point.name, point.value)):
        origin = _origin(point, distributions)
        if shut & {origin.plugin, origin.distribution}:
            found.leave_out(origin, f"{BLOCK_VARIABLE} names it" if blocked is None else "is left out", blocked=True)
            continue
        try:
            plugin = point.load()
        except (Exception, SystemExit) as error:  # whatever a stranger's module raises stays its own problem
            found.leave_out(origin, f"{point.value} does not import: {type(error).__name__}: {error}")
        else:
            found.add(plugin, origin)
    for plugin in extra:
        found.add(plugin, Origin(getattr(plugin, "__name__", type(plugin).__name__)))
    return found.registry()


class _Found:
    """What has been found so far."""

    def __init__(self, trace: Callable[[str], None]) -> None:
        self.trace = trace
        self.offers: dict[str, dict[str, list[tuple[type, Origin]]]] = {kind: {} for kind in KINDS}
        self.broken: list[Broken] = []

    def leave_out(self, origin: Origin, reason: str, kind: str = "", name: str = "", blocked: bool = False) -> None:
        self.trace(" ".join(filter(None, (f"{origin}:", kind, name, "left out:", reason))))
        self.broken.append(Broken(origin, reason, kind, name, blocked))

    def add(self, plugin: object, origin: Origin) -> None:
        """All that a plugin offers. A manager for each: what one does cannot reach another."""
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(hookspecs)
        try:
            manager.register(plugin)
            hooks = {caller.name for caller in manager.get_hookcallers(plugin) or ()}
        except Exception as error:
            self.leave_out(origin, f"cannot be registered: {' '.join(str(error).split())}")
            return
        specified = [hook for hook, _ in KINDS.values()]
        for name in sorted(hooks.difference(specified)):
            self.leave_out(origin, unknown("hook", name, specified))
        for name in specified:
            if name not in hooks and callable(getattr(plugin, name, None)):
                self.leave_out(origin, f"{name} is not marked with @hookimpl")
        if not hooks and not any(hasattr(plugin, name) for name in specified):
            self.leave_out(origin, f"has no hook (a function marked with @hookimpl: {', '.join(specified)})")
        for kind, (hook, base) in KINDS.items():
            if hook in hooks:
                self._call(getattr(manager.hook, hook), origin, kind, base)

    def _call(self, hook: Callable[[], list[Any]], origin: Origin, kind: str, base: type) -> None:
        name = KINDS[kind][0]
        try:
            returned = next(iter(hook()), None)  # pluggy drops a None
        except Exception as error:
            self.leave_out(origin, f"{name} raises {type(error).__name__}: {error}", kind)
            return
        self.trace(f"{origin}: {name}() -> {returned!r}")
        if not isinstance(returned, (list, tuple)):
            self.leave_out(origin, f"{name} must return a list of classes, not {type(returned).__name__}", kind)
            return
        for cls in returned:
            called = getattr(cls, "name", "")
            reason = unfit(cls, base)
            if reason:
                self.leave_out(origin, f"{name}: {reason}", kind, called if isinstance(called, str) else "")
                continue
            offers = self.offers[kind].setdefault(called, [])
            if cls not in (other for other, _ in offers):
                offers.append((cls, origin))

    def registry(self) -> Registry:
        for kind, names in self.offers.items():
            for name, offers in names.items():
                if len(offers) > 1:
                    owners = " and ".join(str(origin) for _, origin in offers)
                    sellers = {origin.distribution or origin.plugin for _, origin in offers}
                    if len(sellers) == 1:
                        sellers = {origin.plugin for _, origin in offers}
                    remedy = f"uninstall one, or leave it out ({BLOCK_VARIABLE}={max(sellers)})"
                    reason = f"{owners} both offer a {kind} called {name!r}; {remedy}"
                    for _, origin in offers:
                        self.leave_out(origin, reason, kind, name)

        def catalogue(kind: str) -> Catalogue[Any]:
            alone = {name: offers[0] for name, offers in self.offers[kind].items() if len(offers) == 1}
            classes = {name: cls for name, (cls, _) in alone.items()}
            origins = {name: origin for name, (_, origin) in alone.items()}
            return Catalogue(kind, classes, origins, tuple(self.broken))

        return Registry(
            models=catalogue("model"),
            quantizers=catalogue("quantizer"),
            targets=catalogue("target"),
            layouts=catalogue("layout"),
            devices=catalogue("device"),
            containers=catalogue("container"),
            storages=catalogue("storage"),
            broken=tuple(self.broken),
        )


def _origin(point: EntryPoint, distributions: dict[Distribution, tuple[str, str]]) -> Origin:
    dist = point.dist
    if dist is None:
        return Origin(point.name)
    if dist not in distributions:
        distributions[dist] = dist.name, dist.version
    return Origin(point.name, *distributions[dist])


def _trace(line: str) -> None:
    print(f"{PROJECT}: {line}", file=sys.stderr)


def _silent(line: str) -> None:
    pass
