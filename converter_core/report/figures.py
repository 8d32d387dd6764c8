"""The figures of a report. They have no colours for background, text and lines: the page gives them its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from types import ModuleType
from typing import Any

from ..verification.result import Verification, WeightReport

SERIES = ("#3b7ddd", "#e8853d", "#2fa37c", "#a05fd0", "#d9578a", "#8a7a2f")
"""One for each format, readable on white and on black."""

COPIED = "#8b949e"

LEGIBLE = 0.07
"""Share of the longest bar that a segment needs for a number in it."""

MARGIN = {"l": 8, "r": 8, "t": 14, "b": 8}


def histogram(plotly: ModuleType, weights: Sequence[WeightReport]) -> Any:
    """Number of weights by SQNR in dB, one series for each format."""
    known = [value for weight in weights if (value := known_db(weight.sqnr_db)) is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    width = max((high - low) / 40, 0.05)
    figure = plotly.Figure()
    for color, format in zip(_colors(), _formats(weights), strict=False):
        values = [known_db(weight.sqnr_db) for weight in weights if weight.format == format]
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


def known_db(value: float | None) -> float | None:
    """None for what is unknown or infinite."""
    return value if value is not None and math.isfinite(value) else None
