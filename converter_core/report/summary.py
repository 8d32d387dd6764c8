"""The verdict of a verification and its figures in a few words, as values for the page."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ..sizes import format_bytes
from ..verification.result import Verification, WeightReport

MOST_PROBLEMS = 100


def measured(report: Verification) -> list[WeightReport]:
    """The weights that were compared with their source."""
    return [weight for weight in report.weights if weight.relative_error is not None]


def side(report: Verification) -> dict[str, Any]:
    """All that the template shows of one conversion but figures and table."""
    headline, below = _verdict(report)
    facts = {
        "output": report.output,
        "source": report.against,
        "manifest": report.manifest or "none",
        "model": report.model,
        "target": report.target,
        "written by": report.written_by,
        "checked": report.finished,
    }
    return {
        "verdict": "passed" if report.ok else "failed",
        "mark": "✓" if report.ok else "✕",
        "headline": headline,
        "below": below,
        "facts": [(name, text) for name, text in facts.items() if text],
        "recipe": json.dumps(report.recipe, indent=1, ensure_ascii=False) if report.recipe else "",
        "cards": [dict(zip(("label", "value", "unit", "note"), card, strict=True)) for card in _cards(report)],
        "problems": [str(problem) for problem in report.problems[:MOST_PROBLEMS]],
        "more_problems": f"{len(report.problems) - MOST_PROBLEMS:,}" if len(report.problems) > MOST_PROBLEMS else "",
        "notes": report.notes,
    }


def _verdict(report: Verification) -> tuple[str, str]:
    if report.status == "failed":
        count = len(report.problems)
        headline = "One problem was found" if count == 1 else f"{count:,} problems were found"
        return headline, "This output is not what it should be."
    if report.status == "structure only":
        below = "There is no manifest: names, dtypes and shapes fit, and values may be anything."
        return "Only the structure was checked", below
    if measured(report):
        below = "Files are as they were written, and every error is within what the format's own steps allow."
        return "Every weight is where it should be", below
    return "The files are as they should be", "Errors are measured with --against SOURCE."


def _cards(report: Verification) -> Iterable[tuple[str, str, str, str]]:
    """(label, value, unit, note)"""
    formats = Counter(weight.format for weight in report.weights)
    told = ", ".join(f"{count:,} {format}" for format, count in formats.items()) or "none"
    yield "Quantized weights", f"{len(report.weights):,}", "", told
    if weights := measured(report):
        yield "Relative error", f"{100 * together(weights):.3g}", "%", "root mean square over the weights"
        lowest = min(weights, key=lambda weight: number(weight.sqnr_db))
        decibel = number(lowest.sqnr_db)
        exact = not math.isfinite(decibel)
        yield "Lowest SQNR", "exact" if exact else f"{decibel:.1f}", "" if exact else "dB", lowest.name
    before, after = report.bytes_before, report.bytes_after
    value, _, unit = format_bytes(after).partition(" ")
    yield "Size", value, unit, f"from {format_bytes(before)}, {100 * after / before:.1f} %" if before else "all tensors"
    structure = report.structure
    checks = f"{structure.checksums:,} checksums" if structure.checksums else "no manifest, no checksums"
    yield "Tensors", f"{structure.tensors:,}", "", f"in {len(structure.files):,} files, {checks}"
    if copied := report.copied.count:
        yield "Copied tensors", f"{copied:,}", "", _copied(report)


def _copied(report: Verification) -> str:
    unequal = len(report.copied.unequal)
    if not report.copied.compared:
        return "not compared"
    if not unequal:
        return "all equal to their sources"
    return "one differs from its source" if unequal == 1 else f"{unequal:,} differ from their sources"


def together(weights: Sequence[WeightReport]) -> float:
    """Root mean square of the relative errors."""
    return math.sqrt(sum((weight.relative_error or 0.0) ** 2 for weight in weights) / len(weights))


def number(value: float | None) -> float:
    """For comparisons: what is unknown is no worse than anything."""
    return math.inf if value is None or math.isnan(value) else value
