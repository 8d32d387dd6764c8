"""Plain data (from YAML) into what typed dataclass fields declare, or the reasons why it does not fit.

One mechanism for the sections of a recipe and for the options of every plugin: a field is all there is to declare.
"""

from __future__ import annotations

import collections.abc
import functools
import operator
import os
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import nearest, unknown


@dataclass(frozen=True)
class Problem:
    """What is wrong at a key (dotted; empty: the whole). taken_for: the key that an unknown one is nearly."""

    path: str
    reason: str
    taken_for: str = ""


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def hints(cls: Any) -> Mapping[str, Any]:
    """The type of every field, resolved; ``Any`` for all of them where an annotation cannot be."""
    try:
        return get_type_hints(cls)
    except Exception:  # a stranger's annotation names something that exists for type checkers only
        return {f.name: Any for f in fields(cls)}


def read(cls: Any, data: Any, path: str, problems: list[Problem]) -> Any:
    """An instance of a dataclass from a mapping. What does not fit goes to ``problems``.

    The instance is usable only if there are none; otherwise defaults, or None, stand for what did not fit, and a key
    that is nearly one is taken for it, so that more can be checked. A null is an omitted key.
    ``metadata={"read": function}`` on a field replaces the check of its type: the function returns the value or raises
    ValueError with the reason. Fields marked ``metadata={"internal": True}`` are no keys.
    """
    keys = {f.name: f for f in fields(cls) if f.init and not f.metadata.get("internal")}
    values: dict[str, Any] = {}
    if not isinstance(data, Mapping):
        problems.append(Problem(path, f"must be a mapping of keys to values, not {show(data)}"))
        values = {key: None for key, f in keys.items() if f.default is f.default_factory is MISSING}
        return cls(**values)
    given = dict(data)
    for key in [key for key in given if key not in keys]:
        value = given.pop(key)
        near = nearest(str(key), [known for known in keys if known not in data])
        meant = join(path, near) if near else ""
        problems.append(Problem(join(path, str(key)), unknown("key", str(key), keys), meant))
        if near:
            given[near] = value
    for key, declared in keys.items():
        value, at, hint = given.get(key), join(path, key), hints(cls)[key]
        required = declared.default is declared.default_factory is MISSING
        if value is not None:
            found = _field(declared, hint, value, at, problems)
            if found is not None or required:
                values[key] = found
        elif required and is_dataclass(hint):  # the required keys of a section that is missing are told by name
            values[key] = read(hint, {}, at, problems)
        elif required:
            problems.append(Problem(at, "is required"))
            values[key] = None
    return cls(**values)


def read_options(
    options: Sequence[Field[Any]], cls: type, data: Mapping[str, Any], path: str
) -> tuple[dict[str, Any], list[Problem]]:
    """Keyword arguments for a plugin's class, and what does not fit. Keys that are no options are the caller's."""
    problems: list[Problem] = []
    known = {option.name: option for option in options if option.init}
    values = {
        key: _field(known[key], hints(cls).get(key, Any), value, join(path, key), problems)
        for key, value in data.items()
        if key in known and value is not None
    }
    return values, problems


def _field(declared: Field[Any], hint: Any, value: Any, path: str, problems: list[Problem]) -> Any:
    convert: Callable[[Any], Any] | None = declared.metadata.get("read")
    if convert is None:
        return fit(hint, value, path, problems)
    try:
        return convert(value)
    except ValueError as error:
        problems.append(Problem(path, f"{error}, not {show(value)}" if str(error).startswith("must") else str(error)))
        return None


def fit(hint: Any, value: Any, path: str, problems: list[Problem]) -> Any:
    """A value as a type hint wants it: lists become tuples, whole numbers floats, text paths; nothing else changes.

    None, and a problem, if it does not fit at all.
    """
    if isinstance(hint, type) and is_dataclass(hint):
        return read(hint, value, path, problems)
    kind = _origin(hint)
    if kind is tuple and isinstance(value, (list, tuple)):
        items = _items(hint, len(value))
        if items is not None:
            return tuple(fit(items[i], item, f"{path}[{i}]", problems) for i, item in enumerate(value))
        problems.append(Problem(path, f"must be {describe(hint)}, not {len(value)}"))
        return None
    if kind is dict and isinstance(value, Mapping):
        pairs = {str(key): item for key, item in value.items() if item is not None}
        one = _value(hint)
        return pairs if one is Any else {key: fit(one, item, join(path, key), problems) for key, item in pairs.items()}
    matched, result = _match(hint, value)
    if not matched:
        problems.append(Problem(path, f"must be {describe(hint)}, not {show(value)}{_advice(hint, value)}"))
    return result if matched else None


_SEQUENCES = (list, set, frozenset, collections.abc.Sequence, collections.abc.Collection, collections.abc.Iterable)


def _origin(hint: Any) -> Any:
    """``tuple`` for every kind of sequence, ``dict`` for mappings, ``Union`` for both spellings, else the type."""
    origin = get_origin(hint) or hint
    if origin is types.UnionType:
        return Union
    if origin is collections.abc.Mapping:
        return dict
    return tuple if origin in _SEQUENCES else origin


def _item(hint: Any) -> Any:
    """What each item of a sequence may be; for a tuple of a fixed length, what any of them may be."""
    arguments = [argument for argument in get_args(hint) if argument is not Ellipsis]
    return functools.reduce(operator.or_, arguments) if arguments else Any


def _length(hint: Any) -> int | None:
    """Of ``tuple[int, int]``; None: any."""
    arguments = get_args(hint)
    return len(arguments) if get_origin(hint) is tuple and Ellipsis not in arguments else None


def _items(hint: Any, count: int) -> Sequence[Any] | None:
    """What each of so many items must be; None: there must be another number of them."""
    length = _length(hint)
    if length is None:
        return [_item(hint)] * count
    return get_args(hint) if length == count else None


def _value(hint: Any) -> Any:
    """What the values of a mapping must be."""
    return (*get_args(hint), Any, Any)[1]


def _match(hint: Any, value: Any) -> tuple[bool, Any]:
    """Whether a value is of a type, and the value in that type."""
    kind = _origin(hint)
    if kind is Union:
        tried = [_match(choice, value) for choice in get_args(hint)]
        return next((result for result in tried if result[0]), (False, value))
    if kind is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(hint)), value
    if kind is type(None) or kind is None:
        return value is None, value
    if kind in (bool, str):
        return isinstance(value, kind), value
    if kind in (int, float):
        fits = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
        return fits, kind(value) if fits else value
    if kind is tuple:
        if not isinstance(value, (list, tuple)):
            return False, value
        hints = _items(hint, len(value))
        if hints is None:
            return False, value
        items = [_match(one, item) for one, item in zip(hints, value, strict=True)]
        return all(fits for fits, _ in items), tuple(item for _, item in items)
    if kind is dict:
        if not isinstance(value, Mapping):
            return False, value
        problems: list[Problem] = []
        read_values = fit(hint, value, "", problems)
        return not problems, read_values
    if isinstance(kind, type) and issubclass(kind, os.PathLike):
        return (True, Path(value)) if isinstance(value, str) else (isinstance(value, os.PathLike), value)
    return True, _frozen(value)  # Any, or a type of the plugin's own: its constructor is to judge


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "a mapping"}


def describe(hint: Any) -> str:
    """A type in a user's words: ``a whole number``, ``absmax or mse``, ``a list of text``."""
    kind = _origin(hint)
    if kind is Union:
        return " or ".join(describe(choice) for choice in get_args(hint) if choice is not type(None))
    if kind is Literal:
        *most, last = map(str, get_args(hint))
        return f"{', '.join(most)} or {last}" if most else last
    if kind is tuple:
        if (length := _length(hint)) is not None:
            return f"a list of {length} ({', '.join(map(describe, get_args(hint)))})"
        one = describe(_item(hint))
        many = f"{one[2:]}s" if one.startswith("a ") else one
        return "a list" if _item(hint) is Any else f"a list of {many}"
    if isinstance(kind, type) and is_dataclass(kind):
        return "a mapping"
    if isinstance(kind, type) and issubclass(kind, os.PathLike):
        return "a path"
    return _WORDS.get(kind, "anything" if kind is Any else str(getattr(kind, "__name__", kind)))


def show(value: Any) -> str:
    """A value as it would stand in YAML, cut short."""
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _advice(hint: Any, value: Any) -> str:
    choices = [choice for part in (get_args(hint) if _origin(hint) is Union else (hint,)) for choice in _literals(part)]
    near = nearest(str(value), choices)
    if near:
        return f"; did you mean {near!r}?"
    if _match(hint, "")[0] and isinstance(value, (int, float)):
        return f'; in quotes it is text: "{str(value).lower() if isinstance(value, bool) else value}"'
    return ""


def _literals(hint: Any) -> list[str]:
    return [str(choice) for choice in get_args(hint)] if _origin(hint) is Literal else []
