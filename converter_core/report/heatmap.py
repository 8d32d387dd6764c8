"""Maps of all linear weights: a column for each block, a row for each weight in it. Colours of text are the page's."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from html import escape
from statistics import median, quantiles
from types import MappingProxyType, ModuleType
from typing import Any

from ..verification.result import WeightReport
from .figures import COPIED, MARGIN, known_db

ROW = 27
"""Pixels of a row."""


def error_map(plotly: ModuleType, weights: Sequence[WeightReport], kept: Sequence[WeightReport] = ()) -> Any:
    """SQNR in dB: a column for each block, a row for each linear weight in it; grey for what is not quantized."""
    values = {weight.name: known_db(weight.sqnr_db) for weight in weights}
    views = {"SQNR": values}
    if apart := _against_others(weights):
        views["against others of its format"] = apart
    low, high = robust_range([value for value in values.values() if value is not None])
    return grid_figure(
        plotly,
        [*weights, *kept],
        lambda weight: high if weight.sqnr_db == math.inf else values.get(weight.name),
        _facts,
        {"colorscale": "Viridis", "zmin": low, "zmax": high},
        {name: partial(_value_in, view) for name, view in views.items()} if len(views) > 1 else {},
    )


def _value_in(view: Mapping[str, float | None], weight: WeightReport) -> float | None:
    return view.get(weight.name)


def grid_figure(
    plotly: ModuleType,
    weights: Sequence[WeightReport],
    value: Callable[[WeightReport], float | None],
    facts: Callable[[WeightReport], Sequence[str]],
    scale: Mapping[str, Any],
    views: Mapping[str, Callable[[WeightReport], float | None]] = MappingProxyType({}),
) -> Any:
    """A heat map: a column for each block, a row for each linear weight in it. What has no value is grey.

    value: what the colour tells. facts: title and text of the hover label. scale: colours and their range, in dB.
    views: other values that the page may show instead.
    """
    blocks = sorted({weight.block for weight in weights}, key=lambda block: (len(block), block))
    stacks = {_stack(weight) for weight in weights}
    rows = list(dict.fromkeys(_row(weight, stacks) for weight in weights))
    at = {(_row(weight, stacks), weight.block): weight for weight in weights}
    grid = [[at.get((row, block)) for block in blocks] for row in rows]

    def over(values: Callable[[WeightReport], float | None]) -> list[list[float | None]]:
        return [[values(weight) if weight else None for weight in line] for line in grid]

    labels = [[facts(weight) if weight else ("", "") for weight in line] for line in grid]
    cells = {
        "x": [block or "–" for block in blocks],
        "y": [escape(row) for row in rows],
        "hovertemplate": "<b>%{customdata[0]}</b><br>%{customdata[1]}<extra></extra>",
        "hoverongaps": False,
        "customdata": labels,
        "xgap": 2,
        "ygap": 2,
    }
    shown = over(value)
    unknown = [
        [0 if weight and z is None else None for weight, z in zip(line, zs, strict=True)]
        for line, zs in zip(grid, shown, strict=True)
    ]
    measured = {name: over(view) for name, view in views.items()}
    ranges = {
        name: robust_range([z for line in values for z in line if z is not None]) for name, values in measured.items()
    }
    figure = plotly.Figure(
        plotly.Heatmap(
            **cells,
            **scale,
            z=shown,
            meta={"views": measured, "ranges": ranges},
            text=[["" if weight is None or weight.ok else "✕" for weight in line] for line in grid],
            texttemplate="%{text}",
            textfont={"color": "#ff5a4f", "size": 16},
            colorbar={"title": {"text": "dB", "side": "top"}, "thickness": 12, "outlinewidth": 0, "ticks": ""},
        )
    )
    if any(z is not None for line in unknown for z in line):
        grey = {"colorscale": [[0, COPIED], [1, COPIED]], "showscale": False, "opacity": 0.35}
        figure.add_trace(plotly.Heatmap(**cells, **grey, z=unknown))
    plain = {"showgrid": False, "zeroline": False, "ticks": "", "automargin": True}
    figure.update_layout(
        height=ROW * len(rows) + 86,
        margin=MARGIN,
        xaxis={**plain, "type": "category", "title": {"text": "block"}, "tickangle": 0},
        yaxis={**plain, "type": "category", "autorange": "reversed", "ticksuffix": " "},
    )
    return figure


def robust_range(values: Sequence[float]) -> tuple[float, float]:
    """Where colours begin and end: three times the quartiles' distance beyond them, whatever one outlier is."""
    if len(values) < 2:
        value = values[0] if values else 0.0
        return value - 1, value + 1
    low, _, high = quantiles(values, n=4, method="inclusive")
    spread = 3 * max(high - low, 0.5)
    return max(min(values), low - spread), min(max(values), high + spread)


def _against_others(weights: Sequence[WeightReport]) -> dict[str, float | None]:
    """In a mix of formats: dB above or below the median of the same format; empty where there is one format."""
    known: dict[str, list[float]] = {}
    for weight in weights:
        if (value := known_db(weight.sqnr_db)) is not None:
            known.setdefault(weight.format, []).append(value)
    if len(known) < 2:
        return {}
    usual = {format: median(values) for format, values in known.items()}
    values = {weight.name: (weight.format, known_db(weight.sqnr_db)) for weight in weights}
    return {name: None if value is None else value - usual[format] for name, (format, value) in values.items()}


def _split(weight: WeightReport) -> tuple[str, str]:
    """``blocks``, ``self_attn.q`` of ``blocks.3.self_attn.q.weight``; no stack outside the blocks."""
    parts = weight.name.removesuffix(".weight").split(".")
    if weight.block and weight.block in parts[:-1]:
        at = parts.index(weight.block)
        return ".".join(parts[:at]), ".".join(parts[at + 1 :])
    return "", ".".join(parts)


def _stack(weight: WeightReport) -> str:
    return _split(weight)[0]


def _row(weight: WeightReport, stacks: Collection[str]) -> str:
    """A model may have several stacks of blocks that are all numbered from 0."""
    stack, within = _split(weight)
    return f"{stack}.*.{within}" if stack and len(set(stacks) - {""}) > 1 else within


def _facts(weight: WeightReport) -> list[str]:
    told = [f"{weight.format}, {' × '.join(map(str, weight.shape))}"]
    if weight.relative_error is not None:
        limit = f", limit {weight.limit:.4f}" if weight.limit is not None else ""
        told.append(f"relative error {weight.relative_error:.4f}{limit}")
        if weight.output_error is not None:
            told.append(f"error of the outputs {weight.output_error:.4f}")
        told.append("SQNR unknown" if weight.sqnr_db is None else f"SQNR {weight.sqnr_db:.2f} dB")
    else:
        told.append("not quantized")
    return [escape(weight.name), "<br>".join(map(escape, told))]
