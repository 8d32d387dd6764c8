"""Options of a plugin: fields of a frozen dataclass that come through YAML, repr and comparison unharmed."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from ..errors import ConverterError
from ..plugins.validation import options_of, unfit
from ..recipe.schema import read_options


def check_class(plugin: object, base: type) -> None:
    """The registry would take the class."""
    reason = unfit(type(plugin), base)
    assert not reason, f"the registry would refuse it: {reason}"


def check_options(plugin: Any) -> None:
    """Hashable, told apart by every option, and the same again after YAML and after repr."""
    cls = type(plugin)
    name = cls.__name__
    for option in options_of(cls):
        told = option.compare and option.hash is not False and option.repr
        assert told, f"{name}.{option.name}: an option must take part in comparison, hash and repr"
    try:
        hash(plugin)
    except TypeError as error:
        raise AssertionError(f"{name} cannot be hashed ({error}); use tuples, text and numbers as options") from None
    if not options_of(cls):
        return
    values = {option.name: getattr(plugin, option.name) for option in options_of(cls) if option.init}
    again = yaml.safe_load(yaml.safe_dump({key: _plain(value) for key, value in values.items()}))
    read, problems = read_options(options_of(cls), cls, again, "options")
    assert not problems, f"options from YAML are refused: {'; '.join(f'{p.path} {p.reason}' for p in problems)}"
    assert cls(**read) == plugin, f"{plugin!r} is {cls(**read)!r} after YAML"
    known = {path.__name__: path for path in (pathlib.PosixPath, pathlib.WindowsPath)}
    read_back = eval(repr(plugin), {cls.__name__: cls, **known, "inf": float("inf")})
    assert read_back == plugin, f"{plugin!r} is {read_back!r} after repr"


def variants(plugin: Any) -> Iterator[Any]:
    """The same plugin with one option changed, for every option whose values are few: switches and choices."""
    hints = get_type_hints(type(plugin))
    for option in options_of(type(plugin)):
        value = getattr(plugin, option.name)
        choices = (not value,) if isinstance(value, bool) else get_args(hints[option.name])
        for choice in choices if isinstance(value, bool) or get_origin(hints[option.name]) is Literal else ():
            if choice != value:
                try:
                    yield dataclasses.replace(plugin, **{option.name: choice})
                except (ConverterError, ValueError):
                    continue  # it does not go with the others


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, pathlib.PurePath) else value
