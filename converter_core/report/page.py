"""What a verification found, as one page that opens offline: people look before they read."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import ConverterError
from ..sizes import format_bytes
from ..verification.result import Verification, WeightReport
from .figures import error_map, histogram, sizes

MOST_PROBLEMS = 100

COLUMNS: Sequence[tuple[str, str, str]] = (
    ("weight", "text name", "Name in the output"),
    ("format", "text", "Storage of its parts"),
    ("shape", "text", "Rows × columns"),
    ("relative error", "bar", "Frobenius norm of the error over that of the source; the bar is its share of the limit"),
    ("limit", "", "Relative error that the steps of the format allow"),
    ("SQNR, dB", "", "Signal to quantization noise; 6 dB are one bit"),
    ("1 − cosine", "", "Between the weight and its source"),
    ("worst error", "", "Largest absolute error of one element"),
    ("at", "text", "Row and column of that element"),
    ("before", "", "Bytes of the source"),
    ("after", "", "Bytes of all parts"),
)
"""Heading, classes, explanation."""


def plotting() -> ModuleType:
    """plotly; ConverterError with the remedy where it is not installed."""
    try:
        import plotly.graph_objects as plotly
    except ImportError:
        raise ConverterError('an HTML report needs plotly: pip install "model-converter[report]"') from None
    module: ModuleType = plotly
    return module


def write_html(report: Verification, path: str | os.PathLike[str]) -> None:
    """A self-contained page: verdict, error of every weight by block and module, sizes, a table to sort.

    Raises ConverterError where plotly is not installed or the file cannot be written.
    """
    page = _page(report, plotting())
    try:
        Path(path).write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConverterError(f"{path}: cannot be written ({error.strerror})") from None


def _page(report: Verification, plotly: ModuleType) -> str:
    from plotly.offline import get_plotlyjs

    here = Path(__file__)
    style = here.with_name("page.css").read_text(encoding="utf-8")
    script = here.with_name("page.js").read_text(encoding="utf-8")
    title = escape(Path(report.output).name or report.output)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: {"verified" if report.ok else "problems"}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
<main>
{_header(report)}
{_cards(report)}
{_problems(report)}
{_figures(report, plotly)}
{_table(report)}
<footer>Written by model-converter verify. Errors are those of the weights as the runtime sees them, after its loader's
casts, against the source in float32.</footer>
</main>
<script>{script}</script>
</body>
</html>
"""


def _header(report: Verification) -> str:
    measured = _measured(report)
    if not report.ok:
        count = len(report.problems)
        headline = "One problem was found" if count == 1 else f"{count:,} problems were found"
        below = "This output is not what it should be."
    elif measured:
        headline = "Every weight is where it should be"
        below = "Files are as they were written, and every error is within what the format's own steps allow."
    else:
        headline = "The files are as they should be"
        below = "Errors are measured with --against SOURCE."
    paths = {
        "output": report.output,
        "source": report.against,
        "manifest": report.manifest or "none",
        "model": report.model,
        "target": report.target,
    }
    listed = "".join(f"<dt>{name}</dt><dd><code>{escape(text)}</code></dd>" for name, text in paths.items() if text)
    return f"""<header class="{"passed" if report.ok else "failed"}">
<div class="verdict"><div class="mark" aria-hidden="true">{"✓" if report.ok else "✕"}</div>
<div><h1>{headline}</h1><p class="soft">{below}</p></div></div>
<dl class="paths">{listed}</dl>
</header>"""


def _cards(report: Verification) -> str:
    structure, copied = report.structure, report.copied
    formats = Counter(weight.format for weight in report.weights)
    cards = [
        (
            "Quantized weights",
            f"{len(report.weights):,}",
            ", ".join(f"{count:,} {escape(format)}" for format, count in formats.items()) or "none",
        )
    ]
    measured = _measured(report)
    if measured:
        together = math.sqrt(sum((weight.relative_error or 0.0) ** 2 for weight in measured) / len(measured))
        lowest = min(measured, key=lambda weight: _number(weight.sqnr_db))
        cards.append(("Relative error", f"{100 * together:.3g} <small>%</small>", "root mean square over the weights"))
        cards.append(
            (
                "Lowest SQNR",
                f"{lowest.sqnr_db:.1f} <small>dB</small>" if math.isfinite(_number(lowest.sqnr_db)) else "exact",
                f'<span class="name">{escape(lowest.name)}</span>',
            )
        )
    before, after = report.bytes_before, report.bytes_after
    note = f"from {format_bytes(before)}, {100 * after / before:.1f} %" if before else "all tensors"
    cards.append(("Size", _unit(format_bytes(after)), note))
    checks = f"{structure.checksums:,} checksums" if structure.checksums else "no manifest, no checksums"
    cards.append(("Tensors", f"{structure.tensors:,}", f"in {len(structure.files):,} files, {checks}"))
    if copied.count:
        state = "not compared" if not copied.compared else "all equal to their sources"
        if copied.unequal:
            differ = "one differs from its source" if len(copied.unequal) == 1 else "{} differ from their sources"
            state = differ.format(f"{len(copied.unequal):,}")
        cards.append(("Copied tensors", f"{copied.count:,}", state))
    return '<section class="cards">' + "".join(
        f'<div class="card"><div class="label">{label}</div><div class="value">{value}</div>'
        f'<div class="note">{below}</div></div>'
        for label, value, below in cards
    ) + "</section>"  # fmt: skip


def _unit(size: str) -> str:
    number, _, unit = size.partition(" ")
    return f"{number} <small>{unit}</small>"


def _problems(report: Verification) -> str:
    sections = []
    if report.problems:
        items = "".join(f"<li>{escape(str(problem))}</li>" for problem in report.problems[:MOST_PROBLEMS])
        more = len(report.problems) - MOST_PROBLEMS
        rest = f'<p class="soft">and {more:,} more; --json lists them all</p>' if more > 0 else ""
        sections.append(f'<section class="panel problems"><h2>What is wrong</h2><ol>{items}</ol>{rest}</section>')
    if report.notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
        sections.append(f'<section class="panel notes"><h2>Notes</h2><ul>{items}</ul></section>')
    return "\n".join(sections)


def _figures(report: Verification, plotly: ModuleType) -> str:
    measured = _measured(report)
    panels = []
    if measured:
        below = (
            "Signal to quantization noise of each weight, in dB: dark is where bits are missing. Click to find a row."
        )
        panels.append(_panel("map", "Where the error is", below, error_map(plotly, measured)))
    pair = []
    if measured:
        below = "Number of weights by their SQNR, in dB; 6 dB are about one bit."
        pair.append(_panel("histogram", "How the errors spread", below, histogram(plotly, measured)))
    if report.bytes_before or report.bytes_after:
        pair.append(_panel("sizes", "What it saves", "Bytes of all tensors, scales included.", sizes(plotly, report)))
    both = f'<div class="{"panels" if len(pair) > 1 else ""}">{"".join(pair)}</div>'
    return "\n".join([*panels, both])


def _panel(name: str, title: str, below: str, figure: Any) -> str:
    return f"""<section class="panel"><h2>{title}</h2><p class="soft">{below}</p>
<div class="plot" id="{name}" style="height: {figure.layout.height}px"></div>
{_data(f"{name}-figure", json.loads(figure.to_json()))}</section>"""


def _data(name: str, value: Any) -> str:
    """JSON that a script reads; names come from strangers' files and must not end the element."""
    text = json.dumps(value, allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _table(report: Verification) -> str:
    if not report.weights:
        return ""
    rows = [_row(weight) for weight in report.weights]
    told = [at for at in range(len(COLUMNS)) if any(row["texts"][at] for row in rows)]
    for row in rows:
        row |= {name: [row[name][at] for at in told] for name in ("values", "texts")}
    shown = [COLUMNS[at] for at in told]
    heads = "".join(
        f'<th scope="col" aria-sort="none" class="{"text" if "text" in classes else ""}" title="{escape(tip)}"'
        f"{' data-first' if heading == 'relative error' else ''}><button>{heading}</button></th>"
        for heading, classes, tip in shown
    )
    columns = [{name: name in classes for name in ("text", "name", "bar")} for _, classes, _ in shown]
    return f"""<section class="panel" id="weights"><div class="tools"><div><h2>Every quantized weight</h2>
<p class="soft">Click a heading to sort by it.</p></div>
<input type="search" placeholder="Filter by name or scheme …" aria-label="Filter the table"></div>
<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody></tbody></table></div>
{_data("weights-rows", {"columns": columns, "rows": rows})}</section>"""


def _row(weight: WeightReport) -> dict[str, Any]:
    """values: what is sorted by, null last. texts: what is shown."""
    distance = None if weight.cosine is None else 1 - weight.cosine
    worst = weight.worst
    at = ", ".join(map(str, worst.position)) if worst else ""
    cells: Iterable[tuple[Any, str]] = (
        (weight.name, weight.name),
        (weight.format, weight.format),
        (math.prod(weight.shape), " × ".join(map(str, weight.shape))),
        _cell(weight.relative_error, ".5f"),
        _cell(weight.limit, ".5f"),
        _cell(weight.sqnr_db, ".2f"),
        _cell(distance, ".2e"),
        _cell(worst.error if worst else None, ".3g"),
        (at, at),
        (weight.bytes_before, "" if weight.bytes_before is None else format_bytes(weight.bytes_before)),
        (weight.bytes_after, format_bytes(weight.bytes_after)),
    )
    values, texts = zip(*cells, strict=True)
    share = weight.relative_error / weight.limit if weight.relative_error is not None and weight.limit else None
    return {"values": values, "texts": texts, "ok": weight.ok, "share": share if _finite(share) else None}


def _cell(value: float | None, form: str) -> tuple[float | None, str]:
    if value is None:
        return None, ""
    if not _finite(value):
        return (1e308 if value > 0 else -1e308), ("exact" if value > 0 and form == ".2f" else str(value))
    return value, format(value, form)


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _number(value: float | None) -> float:
    return math.inf if value is None or math.isnan(value) else value


def _measured(report: Verification) -> list[WeightReport]:
    return [weight for weight in report.weights if weight.relative_error is not None]
