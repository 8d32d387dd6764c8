"""Plugins made of the options that stand in a recipe."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from ..api.quantizers import Quantizer
from ..api.targets import Target
from ..errors import Refused, unknown
from ..plugins.registry import options_of
from .schema import Problem, join, read_options, show

ALWAYS_TRUE = ("per_channel", "symmetric")
"""What may be said of every scheme, so that a recipe survives a change of its method; most schemes know no false."""

T = TypeVar("T")


def make_plugin(cls: type[T], options: Mapping[str, Any], path: str = "") -> T:
    """An instance with options as they stand in a recipe; lists become tuples. Refused with all that does not fit.

    path: the key that the options stand under, for the reasons.
    """
    plugin, problems = try_plugin(cls, options, path)
    if plugin is None:
        name: str = cls.name  # type: ignore[attr-defined]
        raise Refused(*(": ".join(filter(None, (name, problem.path, problem.reason))) for problem in problems))
    return plugin


def quantizer_for(cls: type[Quantizer], options: Mapping[str, Any], target: Target) -> Quantizer:
    """As ``make_plugin``; options that are left out follow what the target takes."""
    made = make_plugin(cls, options)
    more = followed(made, options, target)
    return make_plugin(cls, {**options, **more}) if more else made


def followed(made: Quantizer, options: Mapping[str, Any], target: Target) -> dict[str, Any]:
    """Options that the recipe leaves out and the target decides."""
    wanted = target.preferred_format(made.format)
    if wanted == made.format:
        return {}
    return {key: value for key, value in made.options_for(wanted).items() if options.get(key) is None}


def try_plugin(cls: type[T], options: Mapping[str, Any], path: str) -> tuple[T | None, list[Problem]]:
    """An instance, or None and why there is none."""
    known = options_of(cls)
    names = [option.name for option in known if option.init]
    shared = [name for name in ALWAYS_TRUE if issubclass(cls, Quantizer) and name not in names]
    given, problems = read_options(known, cls, options, path)
    for key, value in options.items():
        if key in shared:
            problems += _shared(cls, key, value, path)
        elif key not in names:
            owner = f"option of {cls.name}"  # type: ignore[attr-defined]
            problems.append(Problem(join(path, key), unknown(owner, key, [*names, *shared])))
    if problems:
        return None, problems
    try:
        made = cls(**given)
        hash(made)
    except Refused as error:
        return None, [_placed(reason, names, path) for reason in error.problems]
    except Exception as error:  # a plugin's own check, in whatever way it says no
        return None, [Problem(path, f"{type(error).__name__}: {error}")]
    return made, []


def _shared(cls: Any, key: str, value: Any, path: str) -> list[Problem]:
    if value is None or value is True:
        return []
    if value is False:
        return [Problem(join(path, key), f"must be true: {cls.name} has no other way; write true or leave it out")]
    return [Problem(join(path, key), f"must be true, not {show(value)}")]


def _placed(reason: str, options: Collection[str], path: str) -> Problem:
    """A reason that begins with the name of an option, as ``scale_rule: ...``, belongs to that key."""
    name, colon, rest = reason.partition(": ")
    return Problem(join(path, name), rest) if colon and name in options else Problem(path, reason)
