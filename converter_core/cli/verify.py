"""``model-converter verify``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import VerificationError, listed, shown
from ..sizes import format_bytes
from . import exit_codes
from .differences import show_differences
from .log import Log
from .output import IN_JSON, Json, Quiet, message, print_json, show_facts, show_remarks
from .progress import progress
from .tables import natural_key, show_table

if TYPE_CHECKING:
    from ..verification.result import Verification, WeightReport

WORST = 10


def verify(
    output: Annotated[str, typer.Argument(help="A converted folder, one of its files, or its manifest.")],
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="SOURCE", help="The checkpoint it was made of: measure the error."),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option("--compare", metavar="OUTPUT", help="Another conversion of the same source, shown beside it."),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option("--calibration", metavar="FILE", help="With --against: the error of the layers' outputs too."),
    ] = None,
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Write a page with the error of every weight.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check a conversion: files against its manifest and, with --against, every weight against its source.

    A folder of several outputs (two experts, --also): each of them.

    With --compare, two conversions: which weights are closer to the source in the second, and which less close.

    Exit code 1 if anything is not as it should be, 3 if there was no manifest to check the contents against.
    """
    from ..engine.memory import keep_freed_memory
    from ..plugins.registry import load_plugins
    from ..verification.folders import outputs_in
    from ..verification.verify import verify as check

    keep_freed_memory()
    if html is not None:
        from ..report.page import check_page, plotting, write_html

        plotting()  # what stands in the way is told before the work, not after it
        check_page(html)
    reports = []
    registry = load_plugins()
    paths = outputs_in(output, registry)
    if len(paths) > 1 and (html is not None or compare is not None):
        option = "--compare" if html is None else "--html"
        names = ", ".join(map(shown, paths))
        raise VerificationError(f"{shown(output)}: holds several outputs; {option} takes one of them: {names}")
    if compare is not None:
        paths.append(compare)
    for path in paths:
        with progress(quiet or as_json, Log(quiet or as_json, Path(path).name)) as show:
            reports.append(check(path, against, calibration=calibration, progress=show))
    if html is not None:
        write_html(reports[0], html, compare=reports[1] if compare is not None else None)
        if not (quiet or as_json):
            message(f"written: {html}")
    if as_json:
        together = "outputs" if compare is None else "compared"
        one = len(reports) == 1
        print_json(reports[0].as_dict() if one else {together: [report.as_dict() for report in reports]})
    elif quiet:
        for report in reports:
            _show_problems(report)
    else:
        for report in reports:
            _show(report)
        if compare is not None:
            show_differences(*reports)
    raise typer.Exit(max((_CODES[report.status] for report in reports), key=_GRAVITY.index))


_CODES = {"ok": exit_codes.OK, "failed": exit_codes.FAILED, "structure only": exit_codes.STRUCTURE_ONLY}
_GRAVITY = (exit_codes.OK, exit_codes.STRUCTURE_ONLY, exit_codes.FAILED)


def _show_problems(report: Verification) -> None:
    for problem in listed(report.problems, rest=IN_JSON):
        message(f"error: {problem}")


def _show(report: Verification) -> None:
    measured = [weight for weight in report.weights if weight.relative_error is not None]
    if measured:
        _show_blocks(measured)
        _show_worst(measured)
    structure = report.structure
    show_facts(
        {
            "output": report.output,
            "manifest": report.manifest or "none; checked by what the target expects",
            "against": report.against,
            "files": f"{len(structure.files)}, {structure.tensors:,} tensors, {structure.checksums:,} checksums",
            "quantized": f"{len(report.weights):,} weights, {_formats(report.weights)}" if report.weights else "none",
            "copied": _copied(report),
            "size": _size(report.bytes_before, report.bytes_after),
            "time": f"{report.seconds:.1f} s",
            "result": _count(len(report.problems), "problem") if report.problems else report.status,
        }
    )
    show_remarks(report.notes, ())
    _show_problems(report)


def _copied(report: Verification) -> str:
    """``87 tensors, 63 compared with their sources and equal; 24 made by the target``."""
    copied = report.copied
    added = copied.added
    said = _count(copied.count, "tensor")
    if copied.compared:
        unequal = len(copied.unequal)
        result = f"{unequal:,} of them different" if unequal else "all equal"
        said += f", compared with their sources: {result}"
    return f"{said}; {_count(added, 'tensor')} made by the target" if added else said


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _show_blocks(weights: Sequence[WeightReport]) -> None:
    blocks: dict[str, list[WeightReport]] = {}
    for weight in weights:
        blocks.setdefault(weight.block, []).append(weight)
    rows = [
        (
            block or "-",
            len(group),
            _formats(group),
            f"{_together(group):.5f}",
            _db(min(weight.sqnr_db for weight in group if weight.sqnr_db is not None)),
        )
        for block, group in sorted(blocks.items(), key=lambda item: natural_key(item[0]))
    ]
    show_table(
        "Blocks", ("block", "weights", "format", "relative error", "lowest SQNR"), rows, numbers=2, optional=("format",)
    )


def _show_worst(weights: Sequence[WeightReport]) -> None:
    worst = sorted(weights, key=lambda weight: -(weight.relative_error or 0))[:WORST]
    has_outputs = any(weight.output_error is not None for weight in worst)
    rows = [
        (
            weight.name,
            weight.format,
            f"{weight.relative_error:.5f}",
            *(["" if weight.output_error is None else f"{weight.output_error:.5f}"] if has_outputs else []),
            "" if weight.limit is None else f"{weight.limit:.5f}",
            _db(weight.sqnr_db),
            "" if weight.cosine is None else f"{weight.cosine:.6f}",
            f"{weight.worst.error:.3g} at {list(weight.worst.position)}" if weight.worst else "",
        )
        for weight in worst
    ]
    outputs = ("output error",) if has_outputs else ()
    columns = ("weight", "format", "relative error", *outputs, "limit", "SQNR", "cosine", "worst element")
    optional = ("worst element", "cosine", "format", "limit")
    show_table(f"The worst {len(rows)}", columns, rows, numbers=len(columns) - 2, optional=optional)


def _together(weights: Sequence[WeightReport]) -> float:
    """Root mean square of the relative errors."""
    return math.sqrt(sum((weight.relative_error or 0.0) ** 2 for weight in weights) / len(weights))


def _formats(weights: Sequence[WeightReport]) -> str:
    return ", ".join(sorted({weight.format for weight in weights}))


def _db(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} dB" if math.isfinite(value) else "exact"


def _size(before: int | None, after: int) -> str:
    return (
        format_bytes(after) if not before else f"{format_bytes(before)} -> {format_bytes(after)} ({after / before:.3f})"
    )
