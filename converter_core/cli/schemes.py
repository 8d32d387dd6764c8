"""Which scheme and target a recipe gets that names none: what the targets say of themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..plugins.registry import Registry


def runs_on(target: object) -> Mapping[str, str]:
    """Scheme -> where the runtime of a target runs it; empty for a target that does not say."""
    found: Mapping[str, str] = getattr(target, "runs_on", {})
    return found


def default_scheme(registry: Registry) -> str:
    """The first scheme that the default target runs, or the first there is."""
    default = registry.targets[registry.targets.default()]
    return next((name for name in (*runs_on(default), *registry.quantizers) if name in registry.quantizers), "none")


def target_for(scheme: str, registry: Registry) -> str:
    """The default target if its runtime runs the scheme, else one that does, else one that takes any."""
    default = registry.targets.default()
    for name in (default, *registry.targets):
        if scheme in runs_on(registry.targets[name]):
            return name
    return next((name for name, cls in registry.targets.items() if cls.any_scheme), default)
