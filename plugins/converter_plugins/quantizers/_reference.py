"""What every scheme's ``numerics`` option means."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from converter_core.api import Refused, unknown

Numerics = Literal["exact", "lightx2v"]


class Reference:
    """The part of a quantizer that follows from ``numerics``.

    ``exact``: float32 arithmetic, round to nearest even. ``lightx2v``: the bytes that LightX2V's own converter writes.
    """

    numerics: Numerics

    @property
    def is_reference(self) -> bool:
        return self.numerics == "lightx2v"

    @property
    def required_target(self) -> str | None:
        return "lightx2v" if self.is_reference else None

    @property
    def passthrough_dtype(self) -> str | None:
        return "float32" if self.is_reference else None

    def check_choices(self) -> None:
        """``Refused`` for an option that is none of the literals of its type."""
        hints: dict[str, Any] = get_type_hints(type(self))
        for option in fields(self):  # type: ignore[arg-type]
            choices = _literals(hints[option.name])
            value = getattr(self, option.name)
            if choices and value not in choices:
                raise Refused(unknown(option.name, str(value), [choice for choice in choices if choice]))

    def only_exact(self, option: str, value: object) -> None:
        """``Refused`` if an option that parity fixes was given another value."""
        if self.is_reference:
            raise Refused(
                f"{option}: {value} is not what LightX2V's converter does; leave it out or set numerics: exact"
            )


def _literals(hint: Any) -> list[Any]:
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    literal = [arg for arg in get_args(hint) if get_origin(arg) is Literal]
    return [*get_args(literal[0]), None] if literal else []
