"""Typed metadata of GGUF files: ``gguf_metadata_value_type`` of the specification."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from converter_core.api import HeaderReader, Refused

_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 10: "<Q", 11: "<q", 12: "<d"}
_BOOL, _TEXT, _ARRAY = 7, 8, 9
_UINT32, _INT32, _FLOAT32, _UINT64, _INT64, _FLOAT64 = 4, 5, 6, 10, 11, 12

DEEPEST = 4
"""Arrays in arrays; the specification allows any number, no file has two."""


class DamagedValue(Exception):
    """What is wrong in a header, without the name of the file."""


def read_text(reader: HeaderReader) -> str:
    (length,) = struct.unpack("<Q", reader.take(8))
    try:
        return reader.take(length).decode()
    except UnicodeDecodeError:
        raise DamagedValue(f"the text before byte {reader.at} is not UTF-8") from None


def read_value(reader: HeaderReader) -> Any:
    """str, bool, int, float, or a list of them."""
    (kind,) = struct.unpack("<I", reader.take(4))
    return _read(reader, kind, 0)


def _read(reader: HeaderReader, kind: int, depth: int) -> Any:
    if kind == _TEXT:
        return read_text(reader)
    if kind == _BOOL:
        (byte,) = reader.take(1)
        if byte > 1:
            raise DamagedValue(f"a truth value is {byte}")
        return bool(byte)
    if kind in _NUMBERS:
        (number,) = struct.unpack(_NUMBERS[kind], reader.take(struct.calcsize(_NUMBERS[kind])))
        return number
    if kind != _ARRAY or depth >= DEEPEST:
        raise DamagedValue(f"a value of the metadata is of type {kind}, which is not known here")
    of, count = struct.unpack("<IQ", reader.take(12))
    if of in _NUMBERS:
        code = _NUMBERS[of]
        data = reader.take(count * struct.calcsize(code))
        return [number for (number,) in struct.iter_unpack(code, data)]
    found = []
    for _ in range(count):
        found.append(_read(reader, of, depth + 1))
    return found


def packed_text(text: str) -> bytes:
    """Refused for what is no Unicode text."""
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise Refused(f"{text!r} is no text that UTF-8 can hold") from None
    return struct.pack("<Q", len(data)) + data


def packed_value(key: str, value: Any) -> bytes:
    """Type and bytes. Refused for a value that GGUF has no type for."""
    if not isinstance(value, (list, tuple)):
        kind = _kind_of(key, [value])
        return struct.pack("<I", kind) + _packed(kind, value)
    kind = _kind_of(key, value)
    return struct.pack("<IIQ", _ARRAY, kind, len(value)) + b"".join(_packed(kind, one) for one in value)


def _packed(kind: int, value: Any) -> bytes:
    if kind == _TEXT:
        return packed_text(value)
    return bytes([value]) if kind == _BOOL else struct.pack(_NUMBERS[kind], value)


def _kind_of(key: str, values: Sequence[Any]) -> int:
    """The one type that holds all of them."""
    kinds = {type(value) for value in values}
    if len(kinds) > 1 or not kinds <= {str, bool, int, float}:
        named = " and ".join(sorted(kind.__name__ for kind in kinds))
        raise Refused(f"metadata {key!r} of a GGUF file must be text, numbers or truth values, not {named}")
    if not kinds or kinds == {str}:
        return _TEXT
    if kinds == {bool}:
        return _BOOL
    if kinds == {float}:
        return _FLOAT32 if all(_is_single(value) for value in values) else _FLOAT64
    for kind, low, high in (
        (_UINT32, 0, 1 << 32),
        (_INT32, -1 << 31, 1 << 31),
        (_UINT64, 0, 1 << 64),
        (_INT64, -1 << 63, 1 << 63),
    ):
        if all(low <= value < high for value in values):
            return kind
    raise Refused(f"metadata {key!r} has a number that no type of a GGUF file holds")


def _is_single(value: float) -> bool:
    try:
        (back,) = struct.unpack("<f", struct.pack("<f", value))
    except OverflowError:
        return False
    return bool(back == value)
