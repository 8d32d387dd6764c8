"""The figures of a report. They have no colours for background, text and lines: the page gives them its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from statistics import median
from types import ModuleType
from typing import Any

from ..verification.result import Verification, WeightReport

SERIES = ("#3b7ddd", "#e8853d", "#2fa37c", "#a05fd0", "#d9578a", "#8a7a2f")
"""One for each format, readable on white and on black."""

COPIED = "#8b949e"

LEGIBLE = 0.07
"""Share of the longest bar that a segment needs for a number in it."""

ROW = 27
"""Pixels of a row of the map."""

MARGIN = {"l": 8, "r": 8, "t": 14, "b": 8}


def error_map(plotly: ModuleType, weights: Sequence[WeightReport]) -> Any:
    """SQNR in dB: a column for each block, a row for each linear weight in it."""
    blocks = sorted({weight.block for weight in weights}, key=lambda block: (len(block), block))
    rows = list(dict.fromkeys(_within_block(weight) for weight in weights))
    at = {(_within_block(weight), weight.block): weight for weight in weights}
    grid = [[at.get((row, block)) for block in blocks] for row in rows]
    figure = plotly.Figure(
        plotly.Heatmap(
            x=[block or "–" for block in blocks],
            y=[escape(row) for row in rows],
            z=[[_finite(weight.sqnr_db) if weight else None for weight in line] for line in grid],
            meta={"views": _views(grid, weights)},
            text=[["" if weight is None or weight.ok else "✕" for weight in line] for line in grid],
            customdata=[[_facts(weight) for weight in line] for line in grid],
            texttemplate="%{text}",
            textfont={"color": "#ff5a4f", "size": 16},
            hovertemplate="<b>%{customdata[0]}</b><br>%{customdata[1]}<extra></extra>",
            hoverongaps=False,
            colorscale="Viridis",
            colorbar={"title": {"text": "dB", "side": "top"}, "thickness": 12, "outlinewidth": 0, "ticks": ""},
            xgap=2,
            ygap=2,
        )
    )
    plain = {"showgrid": False, "zeroline": False, "ticks": "", "automargin": True}
    figure.update_layout(
        height=ROW * len(rows) + 86,
        margin=MARGIN,
        xaxis={**plain, "type": "category", "title": {"text": "block"}, "tickangle": 0},
        yaxis={**plain, "type": "category", "autorange": "reversed", "ticksuffix": " "},
    )
    return figure


def _views(grid: Sequence[Sequence[WeightReport | None]], weights: Sequence[WeightReport]) -> dict[str, Any]:
    """What else the map can show: in a mix of formats, which weights suffer more than others of their format."""
    known: dict[str, list[float]] = {}
    for weight in weights:
        if (value := _finite(weight.sqnr_db)) is not None:
            known.setdefault(weight.format, []).append(value)
    if len(known) < 2:
        return {}
    usual = {format: median(values) for format, values in known.items()}

    def apart(weight: WeightReport | None) -> float | None:
        value = _finite(weight.sqnr_db) if weight else None
        return None if value is None or weight is None else value - usual[weight.format]

    return {
        "SQNR": [[_finite(weight.sqnr_db) if weight else None for weight in line] for line in grid],
        "against others of its format": [[apart(weight) for weight in line] for line in grid],
    }


def _within_block(weight: WeightReport) -> str:
    """``self_attn.q`` of ``blocks.3.self_attn.q.weight``."""
    parts = weight.name.removesuffix(".weight").split(".")
    return ".".join(parts[parts.index(weight.block) + 1 :]) if weight.block in parts[:-1] else ".".join(parts)


def _facts(weight: WeightReport | None) -> list[str]:
    if weight is None:
        return ["", ""]
    told = [
        f"{weight.format}, {' × '.join(map(str, weight.shape))}",
        f"relative error {_figure(weight.relative_error, '.4f')}"
        + (f", limit {_figure(weight.limit, '.4f')}" if weight.limit is not None else ""),
        f"SQNR {_figure(weight.sqnr_db, '.2f')} dB",
    ]
    return [escape(weight.name), "<br>".join(map(escape, told))]


def histogram(plotly: ModuleType, weights: Sequence[WeightReport]) -> Any:
    """Number of weights by SQNR in dB, one series for each format."""
    known = [value for weight in weights if (value := _finite(weight.sqnr_db)) is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    width = max((high - low) / 40, 0.05)
    figure = plotly.Figure()
    for color, format in zip(_colors(), _formats(weights), strict=False):
        values = [_finite(weight.sqnr_db) for weight in weights if weight.format == format]
        figure.add_histogram(
            x=[value for value in values if value is not None],
            name=escape(format),
            marker={"color": color},
            xbins={"start": low - width / 2, "end": high + width, "size": width},
            hovertemplate="%{x} dB: %{y} weights<extra>" + escape(format) + "</extra>",
        )
    figure.update_layout(
        height=300,
        margin=MARGIN,
        barmode="stack",
        bargap=0.06,
        showlegend=True,
        legend={"orientation": "h", "y": 1.12, "x": 0},
        xaxis={"title": {"text": "SQNR, dB"}, "automargin": True},
        yaxis={"title": {"text": "weights"}, "automargin": True, "rangemode": "tozero"},
    )
    return figure


def sizes(plotly: ModuleType, report: Verification) -> Any:
    """GiB (or MiB) before and after, by format."""
    largest = max(report.bytes_after, report.bytes_before or 0)
    unit, name = (1 << 30, "GiB") if largest >= 1 << 30 else (1 << 20, "MiB")
    bars = ["after", "before"] if report.bytes_before else ["after"]
    figure = plotly.Figure()

    def add(series: str, color: str, before: int, after: int) -> None:
        values = [nbytes / unit for nbytes in ([after, before] if report.bytes_before else [after])]
        figure.add_bar(
            y=bars,
            x=values,
            name=escape(series),
            orientation="h",
            marker={"color": color},
            text=[f"{value:.3g}" if value > LEGIBLE * largest / unit else "" for value in values],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            constraintext="none",
            hovertemplate="%{x:.4g} " + name + "<extra>" + escape(series) + "</extra>",
        )

    for color, format in zip(_colors(), _formats(report.weights), strict=False):
        weights = [weight for weight in report.weights if weight.format == format]
        add(
            format,
            color,
            sum(weight.bytes_before or 0 for weight in weights),
            sum(weight.bytes_after for weight in weights),
        )
    if report.copied.count:
        add("copied", COPIED, report.copied.bytes_before or 0, report.copied.bytes_after)
    figure.update_layout(
        height=300,
        margin=MARGIN,
        barmode="stack",
        bargap=0.4,
        showlegend=True,
        legend={"orientation": "h", "y": 1.12, "x": 0, "traceorder": "normal"},
        xaxis={"title": {"text": name}, "automargin": True, "rangemode": "tozero"},
        yaxis={"automargin": True, "ticksuffix": "  ", "showgrid": False},
    )
    return figure


def _formats(weights: Iterable[WeightReport]) -> list[str]:
    return list(dict.fromkeys(weight.format for weight in weights))


def _colors() -> Iterable[str]:
    while True:
        yield from SERIES


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _figure(value: float | None, form: str) -> str:
    return "unknown" if value is None else format(value, form)
