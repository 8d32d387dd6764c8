"""The table of all weights, as values: what is shown, and what a column is sorted by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..sizes import format_bytes
from ..verification.result import Verification, WeightReport


@dataclass(frozen=True)
class Column:
    """text: set to the left. name: in a fixed font. bar: drawn behind the number. first: sorted by it at first."""

    heading: str
    tip: str
    text: bool = False
    name: bool = False
    bar: bool = False
    first: bool = False


@dataclass(frozen=True)
class Cell:
    """value: what it is sorted by; None comes last. text: what is shown."""

    value: float | str | None = None
    text: str = ""


NAME = Column("weight", "Name in the output", text=True, name=True)

COLUMNS: Sequence[Column] = (
    NAME,
    Column("format", "Storage of its parts", text=True),
    Column("shape", "Rows × columns", text=True),
    Column(
        "relative error",
        "Frobenius norm of the error over that of the source; the bar is its share of the limit",
        bar=True,
        first=True,
    ),
    Column("output error", "Frobenius norm of the layer's outputs' error over theirs, for held-out tokens"),
    Column("limit", "Relative error that the steps of the format allow"),
    Column("SQNR, dB", "Signal to quantization noise; 6 dB are one bit"),
    Column("1 − cosine", "Between the weight and its source"),
    Column("worst error", "Largest absolute error of one element, and its row and column"),
    Column("before", "Bytes of the source"),
    Column("after", "Bytes of all parts"),
)


def weight_table(report: Verification) -> dict[str, Any]:
    """Every quantized weight, and in grey the linear ones that are not."""
    rows = [_row(weight) for weight in report.weights]
    rows += [{**_row(weight), "kept": True} for weight in report.kept]
    return table("Every linear weight", COLUMNS, rows)


def table(title: str, columns: Sequence[Column], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Without the columns that are empty in all rows. rows: ``cells``, ``ok``, ``share`` (of the bar), ``kept``."""
    told = [at for at in range(len(columns)) if any(row["cells"][at].text for row in rows)]
    return {
        "title": title,
        "columns": [vars(columns[at]) for at in told],
        "rows": [
            {
                "values": [row["cells"][at].value for at in told],
                "texts": [row["cells"][at].text for at in told],
                "ok": row["ok"],
                "share": row["share"],
                "kept": row.get("kept", False),
            }
            for row in rows
        ],
    }


def _row(weight: WeightReport) -> dict[str, Any]:
    share = weight.relative_error / weight.limit if weight.relative_error is not None and weight.limit else None
    return {"cells": list(_cells(weight)), "ok": weight.ok, "share": share if finite(share) else None}


def _cells(weight: WeightReport) -> Iterable[Cell]:
    worst = weight.worst
    yield Cell(weight.name, weight.name)
    yield Cell(weight.format, weight.format)
    yield Cell(math.prod(weight.shape), " × ".join(map(str, weight.shape)))
    yield number_cell(weight.relative_error, ".5f")
    yield number_cell(weight.output_error, ".5f")
    yield number_cell(weight.limit, ".5f")
    yield number_cell(weight.sqnr_db, ".2f", infinite="exact")
    yield number_cell(None if weight.cosine is None else 1 - weight.cosine, ".2e")
    at = f" at {', '.join(map(str, worst.position))}" if worst else ""
    error = number_cell(worst.error if worst else None, ".3g")
    yield Cell(error.value, error.text + at)
    yield bytes_cell(weight.bytes_before)
    yield bytes_cell(weight.bytes_after)


def bytes_cell(nbytes: int | None) -> Cell:
    return Cell() if nbytes is None else Cell(nbytes, format_bytes(nbytes))


def number_cell(value: float | None, form: str, infinite: str = "") -> Cell:
    if value is None:
        return Cell()
    if not finite(value):
        return Cell(1e308 if value > 0 else -1e308, infinite if infinite and value > 0 else str(value))
    return Cell(value, format(value, form))


def finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
