"""Two conversions of one source, weight by weight: which one is closer to it, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from types import ModuleType
from typing import Any

from ..verification.result import Verification, WeightReport
from .figures import known_db
from .heatmap import grid_figure, robust_range
from .table import NAME, Cell, Column, bytes_cell, number_cell, table

COLUMNS: Sequence[Column] = (
    NAME,
    Column("format", "Storage in the first", text=True),
    Column("format, second", "Storage in the second", text=True),
    Column("relative error", "Of the first"),
    Column("second", "Relative error of the second"),
    Column("ratio", "Error of the second over that of the first: below 1 the second is better", first=True),
    Column("size", "Bytes of all parts in the first"),
    Column("size, second", "Bytes of all parts in the second"),
)


def pairs(one: Verification, other: Verification) -> Mapping[str, tuple[WeightReport | None, WeightReport | None]]:
    """The linear weights of both by name, in the order of the first, then what only the second has.

    Those that their model calls alike belong together, whatever the outputs call them; the name is that of the first.
    """
    second = {weight.original or weight.name: weight for weight in (*other.weights, *other.kept)}
    found: dict[str, tuple[WeightReport | None, WeightReport | None]] = {}
    for weight in (*one.weights, *one.kept):
        found[weight.name] = weight, second.pop(weight.original or weight.name, None)
    for weight in second.values():
        found.setdefault(weight.name, (None, weight))
    return found


def ratio(one: WeightReport | None, other: WeightReport | None) -> float | None:
    """Error of the second over that of the first; None where it is not known of both, or nothing can be said."""
    if one is None or other is None or other.relative_error is None or not one.relative_error:
        return None
    return other.relative_error / one.relative_error


def difference_table(one: Verification, other: Verification) -> dict[str, Any]:
    rows = []
    for name, (first, second) in pairs(one, other).items():
        cells = [
            Cell(name, name),
            Cell(first.format, first.format) if first else Cell(),
            Cell(second.format, second.format) if second else Cell(),
            number_cell(first.relative_error if first else None, ".5f"),
            number_cell(second.relative_error if second else None, ".5f"),
            number_cell(ratio(first, second), ".3f"),
            bytes_cell(first.bytes_after if first else None),
            bytes_cell(second.bytes_after if second else None),
        ]
        ok = (first is None or first.ok) and (second is None or second.ok)
        rows.append({"cells": cells, "ok": ok, "share": None})
    return table("Every linear weight", COLUMNS, rows)


def difference_map(plotly: ModuleType, one: Verification, other: Verification) -> Any:
    """SQNR of the second less that of the first, in dB; symmetric about zero."""
    values: dict[str, float | None] = {}
    facts: dict[str, list[str]] = {}
    weights: list[WeightReport] = []
    for name, (first, second) in pairs(one, other).items():
        before, after = (known_db(weight.sqnr_db) if weight else None for weight in (first, second))
        values[name] = None if before is None or after is None else after - before
        told = [
            f"{weight.format}: {'not compared' if decibel is None else f'{decibel:.2f} dB'}"
            for weight, decibel in ((first, before), (second, after))
            if weight
        ]
        facts[name] = [escape(name), "<br>".join(map(escape, told))]
        weights += [weight for weight in (first, second) if weight is not None][:1]
    low, high = robust_range([value for value in values.values() if value is not None])
    reach = max(abs(low), abs(high), 0.1)
    return grid_figure(
        plotly,
        weights,
        lambda weight: values[weight.name],
        lambda weight: facts[weight.name],
        {"colorscale": "RdBu", "zmin": -reach, "zmax": reach},
    )
