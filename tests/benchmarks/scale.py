"""How conversions scale with workers, as threads and as processes of Ray; and what one costs, by scheme.

Each conversion is a process of its own; cases alternate, medians. ``GB/s`` is of the source, from the first progress
that is reported to the last: starting a cluster and its workers is told by itself. The last table is a model made of
these figures: many checkpoints on many nodes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
WORKERS = (1, 2, 4)
SCHEMES = ("int8", "fp8", "mxfp4", "nvfp4")


def one(source: str, output: str, scheme: str, executor: str, workers: int) -> dict[str, float]:
    """Convert here; what is measured."""
    from converter_core import convert
    from converter_core.engine.memory import keep_freed_memory

    keep_freed_memory()
    events: list[tuple[float, int]] = []

    def progress(event: Any) -> None:
        if event.done and (not events or event.done > events[-1][1]):
            events.append((time.perf_counter(), event.done))

    recipe = {
        "source": {"path": source},
        "quantization": {"method": scheme},
        "output": {"path": output},
        "performance": {"device": "cpu", "executor": executor, "num_workers": workers},
    }
    started, processor = time.perf_counter(), time.process_time()
    result = convert(recipe, progress=progress)
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    (first, before), (last, total) = events[0], events[-1]
    return {
        "seconds": seconds,
        "begins": first - started,
        "rate": (total - before) / max(last - first, 1e-9) / 1e9,
        "processor": processor,
        "source": total / 1e9,
        "written": sum(result.outputs[0].files.values()) / 1e9,
    }


def measured(source: Path, output: Path, scheme: str, executor: str, workers: int) -> dict[str, float]:
    shutil.rmtree(output, ignore_errors=True)
    os.sync()  # what an earlier process left to be written is not this one's
    words = [sys.executable, __file__, "--one", str(source), str(output), scheme, executor, str(workers)]
    found: dict[str, float] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return found


def median(rows: list[dict[str, float]], key: str) -> float:
    return statistics.median(row[key] for row in rows)


def scaling(source: Path, output: Path, rounds: int, scheme: str) -> Table:
    cases = [(executor, workers) for executor in ("threads", "ray") for workers in WORKERS]
    rows: dict[tuple[str, int], list[dict[str, float]]] = {case: [] for case in cases}
    for _ in range(rounds):
        for executor, workers in cases:
            rows[executor, workers].append(measured(source, output, scheme, executor, workers))
    size = rows["threads", 1][0]["source"]
    table = Table(title=f"{scheme}, {size:.2f} GB, medians of {rounds}")
    for heading in ("executor", "workers", "GB/s", "to one worker", "begins after s", "all s"):
        table.add_column(heading, justify="left" if heading == "executor" else "right")
    for executor, workers in cases:
        here, alone = rows[executor, workers], rows[executor, 1]
        rate = median(here, "rate")
        table.add_row(
            executor,
            str(workers),
            f"{rate:.2f}",
            f"{rate / median(alone, 'rate'):.2f}",
            f"{median(here, 'begins'):.1f}",
            f"{median(here, 'seconds'):.1f}",
        )
    return table


def costs(source: Path, output: Path, rounds: int) -> tuple[Table, dict[str, tuple[float, float]]]:
    """Processor seconds for a GB of the source with one thread, and bytes written for a byte read, by scheme."""
    rows: dict[str, list[dict[str, float]]] = {scheme: [] for scheme in SCHEMES}
    for _ in range(rounds):
        for scheme in SCHEMES:
            rows[scheme].append(measured(source, output, scheme, "threads", 1))
    table = Table(title=f"one worker, medians of {rounds}")
    for heading in ("scheme", "processor seconds a GB", "written a byte read"):
        table.add_column(heading, justify="left" if heading == "scheme" else "right")
    found = {}
    for scheme, several in rows.items():
        work = median(several, "processor") / several[0]["source"]
        ratio = several[0]["written"] / several[0]["source"]
        found[scheme] = work, ratio
        table.add_row(scheme, f"{work:.2f}", f"{ratio:.2f}")
    return table, found


def model(found: dict[str, tuple[float, float]], checkpoints: int, size: float, nodes: int, cores: int) -> Table:
    """Minutes for many checkpoints of ``size`` GB, by what limits them: processors, or the link of a node to the files.

    The link carries what is read and what is written; processors and link work at the same time.
    """
    links = {"10 Gbit/s": 1.25, "25 Gbit/s": 3.125, "100 Gbit/s": 12.5}
    table = Table(title=f"{checkpoints} checkpoints of {size:g} GB on {nodes} nodes of {cores} cores: minutes")
    for heading in ("scheme", "processors", *(f"link of {name}" for name in links), "shared storage, 10 GB/s in all"):
        table.add_column(heading, justify="left" if heading == "scheme" else "right")
    read = checkpoints * size
    for scheme, (work, ratio) in found.items():
        moved = read * (1 + ratio)
        processors = read * work / (nodes * cores) / 60
        table.add_row(
            scheme,
            f"{processors:.1f}",
            *(f"{moved / (nodes * rate) / 60:.1f}" for rate in links.values()),
            f"{moved / 10 / 60:.1f}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scheme", default="int8")
    parser.add_argument("--folder", type=Path, help="where to make the checkpoint (default: a temporary folder here)")
    parser.add_argument("--dtype", default="BF16")
    parser.add_argument("--costs", action="store_true", help="without the scaling")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        *words, workers = asked.one
        print(json.dumps(one(*words, workers=int(workers))))
        return
    with tempfile.TemporaryDirectory(dir=asked.folder or Path.cwd(), prefix="bench-") as name:
        source, output = Path(name) / "source", Path(name) / "out"
        script = [sys.executable, str(HERE / "checkpoints.py"), str(source), str(asked.blocks), asked.dtype]
        subprocess.run(script, check=True)
        console = Console(width=120)
        if not asked.costs:
            console.print(scaling(source, output, asked.rounds, asked.scheme))
        table, found = costs(source, output, asked.rounds)
        console.print(table)
        console.print(model(found, checkpoints=100, size=65.0, nodes=16, cores=32))


if __name__ == "__main__":
    main()
