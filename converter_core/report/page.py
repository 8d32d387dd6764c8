"""What a verification found, as one page that opens offline: people look before they read."""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import ConverterError, shown
from ..verification.result import Verification
from .difference import difference_map, difference_table
from .figures import histogram, sizes
from .heatmap import error_map
from .summary import measured, side
from .table import weight_table

GENERATOR = '<meta name="generator" content="model-converter">'
"""By this a page of ours is known, and may be written over."""


def plotting() -> ModuleType:
    """plotly; ConverterError with the remedy where it, or the template engine, is not installed."""
    try:
        import jinja2  # noqa: F401
        import plotly.graph_objects as plotly
    except ImportError:
        raise ConverterError('an HTML report needs plotly and Jinja2: pip install "model-converter[report]"') from None
    module: ModuleType = plotly
    return module


def check_page(path: str | os.PathLike[str]) -> None:
    """ConverterError if something stands at ``path`` that is no earlier page of this tool."""
    file = Path(path)
    try:
        if file.is_file():
            with file.open("rb") as stream:
                ours = GENERATOR.encode() in stream.read(1024)
        else:
            ours = not os.path.lexists(file)
    except OSError as error:
        raise ConverterError(f"{shown(file)}: cannot be opened ({error.strerror})") from None
    if not ours:
        raise ConverterError(f"{shown(file)}: is there already and is no page of this tool; give --html another name")


def write_html(report: Verification, path: str | os.PathLike[str], *, compare: Verification | None = None) -> None:
    """A self-contained page: verdict, error of every weight by block and module, sizes, a table to sort.

    compare: another conversion of the same source, shown beside it.
    Raises ConverterError where plotly is not installed, where a file that is no page of this tool stands at ``path``,
    or where it cannot be written.
    """
    plotly = plotting()
    check_page(path)
    page = _page([report, compare] if compare else [report], plotly)
    try:
        Path(path).write_text(page, encoding="utf-8", errors="backslashreplace")  # paths need not be Unicode
    except OSError as error:
        raise ConverterError(f"{shown(path)}: cannot be written ({error.strerror})") from None


def _page(reports: list[Verification], plotly: ModuleType) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    here = Path(__file__)

    def own(name: str) -> Markup:
        return Markup(here.with_name(name).read_text(encoding="utf-8"))

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["data"] = lambda value: Markup(_data(value))
    template = environment.from_string(here.with_name("page.html.jinja").read_text(encoding="utf-8"))
    names = " and ".join(Path(report.output).name or report.output for report in reports)
    verdict = "verified" if all(report.ok for report in reports) else "problems"
    return template.render(
        title=f"{names}: {verdict if len(reports) == 1 else 'compared'}",
        style=own("page.css"),
        script=own("page.js"),
        plotly=Markup(get_plotlyjs()),
        sides=[side(report) for report in reports],
        panels=_panels(reports, plotly),
        table=weight_table(*reports) if len(reports) == 1 else difference_table(*reports),
        version=version("model-converter"),
    )


def _panels(reports: list[Verification], plotly: ModuleType) -> list[list[dict[str, Any]]]:
    rows = []
    if all(map(measured, reports)):
        if len(reports) == 1:
            title, figure = "Where the error is", error_map(plotly, measured(reports[0]), reports[0].kept)
            below = "Signal to quantization noise of each weight, in dB: dark where bits are missing, grey if kept."
        else:
            title, figure = "Where they differ", difference_map(plotly, *reports)
            below = "SQNR of the second less that of the first, in dB: blue where the second is better, else red."
        rows.append([_panel("map", title, f"{below} Click to find a row.", figure)])
    beside = []
    for number, report in enumerate(reports):
        of = f", {Path(report.output).name}" if len(reports) > 1 else ""
        suffix = f"-{number}" if number else ""
        if measured(report):
            below = "Number of weights by their SQNR, in dB; 6 dB are about one bit."
            figure = histogram(plotly, measured(report))
            beside.append(_panel(f"histogram{suffix}", f"How the errors spread{of}", below, figure))
        if report.bytes_before or report.bytes_after:
            below = "Bytes of all tensors, scales included."
            beside.append(_panel(f"sizes{suffix}", f"What it saves{of}", below, sizes(plotly, report)))
    return [*rows, *(beside[at : at + 2] for at in range(0, len(beside), 2))]


def _panel(name: str, title: str, below: str, figure: Any) -> dict[str, Any]:
    content = json.loads(figure.to_json())
    return {"id": name, "title": title, "below": below, "height": figure.layout.height, "figure": content}


def _data(value: Any) -> str:
    """JSON that a script reads; names come from strangers' files and must not end the element."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")
