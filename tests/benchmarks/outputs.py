"""Several outputs of one read against as many conversions one after the other: wall time of processes, peak memory.

Whole processes, alternating, medians. Each output is given by ``--also``; the first is the main one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table
from speed import COMMAND, FILE, Row, build, measure

OUTPUTS = ("int8", "fp8", "nvfp4", "fp8:comfyui")
WORKERS = 2


def command(source: Path, output: Path, *outputs: str) -> list[str]:
    scheme, _, target = outputs[0].partition(":")
    settings = {"quantization.method": scheme, "performance.num_workers": WORKERS}
    if target:
        settings["target.format"] = target
    flags = [flag for item in settings.items() for flag in ("--set", "{}={}".format(*item))]
    further = [flag for one in outputs[1:] for flag in ("--also", one)]
    return [*COMMAND, "convert", "--source", str(source), "--output", str(output), "--json", *flags, *further]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to make the checkpoint (default: a temporary folder here)")
    parser.add_argument("--outputs", nargs="+", default=OUTPUTS, help="SCHEME[:TARGET[:LAYOUT]] each")
    parser.add_argument("--cold", action="store_true", help="the source out of the page cache before every process")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder or Path.cwd(), prefix="bench-") as name:
        source, output = build(Path(name) / "source", asked.blocks, "BF16"), Path(name) / "out"
        together = Row(f"{len(asked.outputs)} outputs of one read")
        alone = {one: Row(one) for one in asked.outputs}
        cold = source / FILE if asked.cold else None
        for _ in range(asked.rounds):
            measure(together, command(source, output, *asked.outputs), output, cold)
            for one, row in alone.items():
                measure(row, command(source, output, one), output, cold)
        size = (source / FILE).stat().st_size / 1e9
    one_by_one = sum(row.median for row in alone.values())
    table = Table(title=f"{asked.blocks} blocks, {size:.2f} GB of bf16, medians of {asked.rounds}")
    for heading in ("", "seconds", "processor seconds", "peak MiB"):
        table.add_column(heading, justify="left" if not heading else "right")
    worked = {row.name: statistics.median(row.processor) for row in (together, *alone.values())}
    for row in (together, *alone.values()):
        peak = f"{statistics.median(row.peak_mib):.0f}"
        table.add_row(row.name, f"{row.median:.2f}", f"{worked[row.name]:.2f}", peak)
    all_work = sum(worked[row.name] for row in alone.values())
    table.add_row("one after the other", f"{one_by_one:.2f}", f"{all_work:.2f}", "")
    table.add_row("ratio", f"{together.median / one_by_one:.2f}", f"{worked[together.name] / all_work:.2f}", "")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
