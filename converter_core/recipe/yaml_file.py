"""Read a YAML file as plain data that remembers its lines.

A recipe needs mappings, lists, text, numbers, true, false and null. What else YAML offers (anchors that can be nested
until they explode, tags that name types, several documents) is refused instead of interpreted, and so is a key that
stands twice, of which PyYAML silently keeps the last.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ..errors import RecipeError
from ..trusted import read_file
from .schema import join

LARGEST = 256 * 1024
"""Bytes. A recipe is a few kilobytes; a checkpoint given in its place is not read to its end."""

DEEPEST = 32

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but dates are text, and ``1e-5`` is a number as in YAML 1.2."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@dataclass
class Document:
    """data: mappings are dicts with text as keys. places: dotted key -> ``file:line``; ``""`` -> the file."""

    data: dict[str, Any]
    places: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_yaml(path: Path) -> Document:
    """The document of a file. RecipeError if there is none; keys that stand twice are left to ``problems``."""
    try:
        content = read_file(path, LARGEST)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise RecipeError(_too_large(str(path))) from None
        raise RecipeError(f"{path}: cannot be read: {error.strerror or error}") from None
    return parse_yaml(content, str(path))


def parse_yaml(content: bytes, name: str) -> Document:
    """As ``read_yaml``; ``name`` is what messages call the file."""
    return _read(content, name, _Reader.document)


def parse_value(text: str) -> Any:
    """What stands behind a key, by itself: ``true``, ``4GiB``, ``[a, b]``. RecipeError."""
    return _read(text.encode("utf-8", "surrogateescape"), repr(text), _Reader.root)


def _too_large(name: str) -> str:
    return f"{name}: is larger than {LARGEST // 1024} KiB; that is no recipe"


def _read(content: bytes, name: str, read: Callable[[_Reader], T]) -> T:
    if len(content) > LARGEST:
        raise RecipeError(_too_large(name))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{name}:{line}: is not UTF-8 text; save the file as UTF-8") from None
    try:
        return read(_Reader(text, name))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError(f"{name}:{line}: holds a character that YAML does not allow: {error.character!r}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        tab = mark is not None and mark.buffer is not None and text[mark.index : mark.index + 1] == "\t"
        hint = "; indent with spaces, not with tabs" if tab else ""
        raise RecipeError(f"{where}: is not valid YAML: {error.problem or error.context}{hint}") from None


class _Reader:
    def __init__(self, text: str, name: str) -> None:
        self.loader = _Loader(text)
        self.name = name
        self.found = Document({}, {"": name})

    def document(self) -> Document:
        self.found.data = self.root()
        if self.found.data is None:
            raise RecipeError(f"{self.name}: is empty")
        if not isinstance(self.found.data, dict):
            raise RecipeError(f"{self.name}: must be a mapping of keys to values (source:, output: ...)")
        return self.found

    def root(self) -> Any:
        """The value of the only document; None if there is none."""
        events = self._events()
        next(events)  # the beginning of the stream
        if isinstance(next(events), yaml.StreamEndEvent):
            return None
        value = self._value(next(events), events, "", 0)
        next(events)  # the end of the document
        more = next(events)
        if not isinstance(more, yaml.StreamEndEvent):
            raise RecipeError(f"{self._at(more)}: a second document begins here; write one file for each")
        return value

    def _events(self) -> Iterator[yaml.Event]:
        while True:
            event: yaml.Event = self.loader.get_event()  # type: ignore[no-untyped-call]
            yield event

    def _at(self, event: yaml.Event) -> str:
        return f"{self.name}:{event.start_mark.line + 1}" if event.start_mark else self.name

    def _value(self, event: yaml.Event, events: Iterator[yaml.Event], path: str, depth: int) -> Any:
        at = self._at(event)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise RecipeError(f"{at}: anchors and aliases (& and *) are not allowed; write the value out")
        if getattr(event, "tag", None):
            raise RecipeError(f"{at}: tags are not allowed: {event.tag}")  # type: ignore[attr-defined]
        if depth > DEEPEST:
            raise RecipeError(f"{at}: is nested more than {DEEPEST} levels deep")
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(events, path, depth)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(item := next(events), yaml.SequenceEndEvent):
                place = f"{path}[{len(items)}]"
                self.found.places[place] = self._at(item)
                items.append(self._value(item, events, place, depth + 1))
            return items
        assert isinstance(event, yaml.ScalarEvent)
        tag = self.loader.resolve(yaml.ScalarNode, event.value, event.implicit)  # type: ignore[no-untyped-call]
        try:
            return self.loader.construct_object(yaml.ScalarNode(tag, event.value))
        except (ValueError, IndexError, yaml.constructor.ConstructorError):
            raise RecipeError(f"{at}: {event.value[:40]!r} is not a value; put text in quotes") from None

    def _mapping(self, events: Iterator[yaml.Event], path: str, depth: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(key := next(events), yaml.MappingEndEvent):
            if not isinstance(key, yaml.ScalarEvent):
                raise RecipeError(f"{self._at(key)}: a key must be text")
            self._value(key, events, path, depth)  # refuses an anchor or a tag on it
            place = join(path, key.value)
            if key.value in mapping:
                self.found.problems.append(
                    f"{self._at(key)}: {place}: stands here a second time; first at {self.found.places[place]}"
                )
            self.found.places[place] = self._at(key)
            mapping[key.value] = self._value(next(events), events, place, depth + 1)
        return mapping
