"""What a quantized weight is made of, as facts that targets decide by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class QuantFormat:
    """How a scheme stores a weight. Two formats with the same facts are the same format, whatever their names.

    name: for people and for files, e.g. ``int8``.
    element: what a code is: ``int8``, ``e4m3``, ``e2m1`` ... (open).
    bits: of one code.
    granularity: what shares a scale: ``tensor``, ``row``, ``group`` (a run of columns), ``block`` (rows and columns).
    group_size: columns of a group; 0 where there are none.
    scale_dtype: header dtype of the scales, e.g. ``F32``, ``F8_E8M0``; empty: the dtype of the source.
    symmetric: False where a zero point is stored.
    packing: how codes lie in bytes; empty: one to an element, ``low_nibble_first``: two to a byte, even column low.
    scale_precision: ``F32`` where float32 scales need all of their bits; empty: bf16 holds them, so a runtime that
        casts them at load loses nothing, or nobody says.
    """

    name: str = field(compare=False)
    element: str
    bits: int = 0
    granularity: str = ""
    group_size: int = 0
    scale_dtype: str = ""
    symmetric: bool = True
    packing: str = ""
    scale_precision: str = ""

    def __str__(self) -> str:
        return self.name

    def matches(self, other: QuantFormat) -> bool:
        """Whether what has this format can be read as the other: the same facts, or the same name."""
        return self == other or self.name == other.name

    def facts(self) -> dict[str, Any]:
        """JSON values, without the name: ``QuantFormat(name, **format.facts())`` is the format again."""
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}
        return {fact: value for fact, value in known.items() if value or fact != "scale_precision"}

    @classmethod
    def from_facts(cls, name: str, facts: object) -> QuantFormat:
        """As a file tells it; a format that only has a name where the facts are missing or are none."""
        if not isinstance(facts, Mapping) or "element" not in facts:
            return cls(name, name)
        known = {f.name: facts[f.name] for f in fields(cls) if f.name != "name" and f.name in facts}
        return cls(name, **known)


UNQUANTIZED = QuantFormat("none", "")
"""Of weights that are copied or cast."""
