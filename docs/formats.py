"""The page "Formats", read off dry runs of the quantizers: ``python docs/formats.py`` writes it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from converter_core.api import QuantFormat, Quantizer, TensorRef, TensorSpec, WeightInfo
from converter_core.plugins.registry import Registry, load_plugins
from converter_core.testing.samples import schema_of
from converter_plugins.targets.plain import Plain

DOCS = Path(__file__).parent
PAGE = DOCS / "formats.md"
SHAPES = ((512, 1536), (768, 4608))
"""Two weights: how the shape of a part follows from theirs shows in the difference."""

HEAD = """# Formats

What a weight becomes: the parts that a quantizer returns, before a target names and arranges them. Target `plain`
stores just these; every other says on its page what it makes of them.

`w` is the weight, `[N, K]`: N outputs (rows), K inputs (columns). Two codes to a byte: the even column in the low
nibble. E4M3 has 4 exponent and 3 mantissa bits (bias 7, largest 448, no infinity), E2M1 has 2 and 1 (0, 0.5, 1, 1.5,
2, 3, 4, 6 and their negatives), E8M0 is a power of two, `2^(byte - 127)`, stored as its byte. *Bits* are those of all
parts for each element of a large weight.

This page is written by `python docs/formats.py`, from dry runs of the quantizers that come with the program.
"""


@dataclass(frozen=True)
class Formula:
    """text: how a weight comes back from its parts."""

    roles: frozenset[str]
    element: str
    scale_dtype: str
    text: str


def _formula(roles: str, element: str, scale_dtype: str, text: str) -> Formula:
    return Formula(frozenset(roles.split()), element, scale_dtype, text)


FORMULAS: Sequence[Formula] = (
    _formula("weight scale", "int8", "F32", "w = weight * scale"),
    _formula("weight scale zero_point", "int8", "F32", "w = (weight - zero_point) * scale"),
    _formula("weight scale", "e4m3", "F32", "w = weight * scale"),
    _formula("weight scale", "e4m3", "F8_E8M0", "w = weight * 2^(scale - 127)"),
    _formula("weight scale", "e2m1", "F8_E8M0", "w = E2M1(weight) * 2^(scale - 127)"),
    _formula("weight scale", "e3m2", "F8_E8M0", "w = E3M2(weight) * 2^(scale - 127)"),
    _formula("weight scale global_scale", "e2m1", "F8_E4M3", "w = E2M1(weight) * scale / global_scale"),
)


def formula(format: QuantFormat, roles: Sequence[str]) -> str:
    if format.packing.startswith("gguf "):
        return f"`dequantize_row_{format.packing.removeprefix('gguf ')}` of ggml"
    for known in FORMULAS:
        if (known.roles, known.element, known.scale_dtype) == (frozenset(roles), format.element, format.scale_dtype):
            return f"`{known.text}`"
    return f"`{format.name}.dequantize`"


def ours(registry: Registry) -> Iterator[tuple[str, Quantizer]]:
    """Every scheme of this distribution, and what an option makes another format of."""
    for name, cls in registry.quantizers.items():
        if cls.__module__.startswith("converter_plugins."):
            yield f"`{name}`", cls()
            for option in ("per_channel", "symmetric"):
                other = cls(**{option: False}) if hasattr(cls(), option) else cls()
                if other.format != cls().format:
                    yield f"`{name}`, `{option}: false`", other


def parts(quantizer: Quantizer, shape: tuple[int, int]) -> dict[str, TensorSpec]:
    info = WeightInfo("blocks.0.ffn.0.weight", {"weight": TensorRef("w")}, "linear", "ffn", "0")
    schema = schema_of(quantizer, Plain(), info, TensorSpec("F32", shape))
    return {role: spec for role, (spec, _) in schema.outputs.items()}


def length(first: int, second: int) -> str:
    """``N``, ``K/16``, ``34 K/32`` ... or the number itself."""
    (rows, columns), (more_rows, more_columns) = SHAPES
    if (first, second) == (rows, more_rows):
        return "N"
    if first == second:
        return str(first)
    ratio = Fraction(first, columns)
    if ratio != Fraction(second, more_columns):
        raise ValueError(f"{first} and {second} follow neither from the rows nor from the columns")
    if ratio.denominator == 1:
        return "K" if ratio == 1 else f"{ratio.numerator} K"
    return f"{ratio.numerator if ratio.numerator > 1 else ''} K/{ratio.denominator}".strip()


def rows(registry: Registry) -> Iterator[str]:
    for title, quantizer in ours(registry):
        small, large = (parts(quantizer, shape) for shape in SHAPES)
        bits = 8 * sum(spec.nbytes for spec in large.values()) / math.prod(SHAPES[1])
        told = formula(quantizer.format, list(small))
        for number, role in enumerate(small):
            lengths = map(length, small[role].shape, large[role].shape)
            first = (title, f"{bits:.2f}") if number == 0 else ("", "")
            yield (
                f"| {first[0]} | `{role}` | {small[role].dtype} | `[{', '.join(lengths)}]` | "
                f"{told if number == 0 else ''} | {first[1]} |"
            )


def page() -> str:
    head = "| scheme | part | dtype | shape | value | bits |\n|---|---|---|---|---|---|\n"
    return HEAD + "\n" + head + "\n".join(rows(load_plugins())) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
