"""Speed and memory, side by side in one run: the conventional way, ours, and the floor.

Whole processes, alternating, medians; one factor at a time is varied from a base (int8, single_file, bf16, 2 workers,
page cache warm). Prints tables, and JSON with --json FILE. Nothing here imports torch: a child's peak memory begins
with that of its parent.
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
FILE = "diffusion_pytorch_model.safetensors"
COMMAND = [sys.executable, "-m", "converter_core"]
PLAIN = ("int8", "fp8")


@dataclass(frozen=True)
class Case:
    """One way to convert."""

    scheme: str = "int8"
    rule: str | None = None
    layout: str = "single_file"
    dtype: str = "BF16"
    workers: int = 2
    cold: bool = False
    target: str | None = None

    def __str__(self) -> str:
        words = [
            self.scheme,
            self.rule,
            self.layout,
            self.dtype,
            f"{self.workers} workers",
            self.cold and "cold",
            self.target,
        ]
        return ", ".join(word for word in words if word)

    def command(self, source: Path, output: Path) -> list[str]:
        settings = {
            "quantization.method": self.scheme,
            "target.layout": self.layout,
            "performance.num_workers": self.workers,
        }
        if self.target:
            settings["target.format"] = self.target
        if self.rule:
            settings["quantization.options.scale_rule"] = self.rule
        flags = [flag for item in settings.items() for flag in ("--set", "{}={}".format(*item))]
        return [*COMMAND, "convert", "--source", str(source), "--output", str(output), "--json", *flags]


VARIED: Sequence[Sequence[dict[str, Any]]] = (
    (
        {"scheme": "fp8", "rule": "absmax"},
        {"scheme": "fp8", "rule": "mse"},
        {"scheme": "mxfp4", "rule": "rceil"},
        {"scheme": "nvfp4", "rule": "absmax"},
        {"scheme": "mxfp4", "rule": "mse"},
        {"scheme": "nvfp4", "rule": "mse"},
        *({"scheme": scheme, "target": "gguf"} for scheme in ("q8_0", "q4_0", "q6_k", "q4_k")),
    ),
    ({"layout": "by_block"}, {"layout": "chunked"}),
    ({"dtype": "F32"},),
    ({"workers": 1},),
    ({"cold": True},),
)


@dataclass
class Row:
    """What the rounds measured. seconds: of the process; work: what it says its conversion took, fsync included.

    processor: seconds of processor time, the system's too: what other processes on the machine disturb least.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def measure(row: Row, command: Sequence[str], output: Path | None, cold: Path | None = None) -> dict[str, Any]:
    """One whole process; what it printed, if that is JSON. cold: a file to drop from the page cache before."""
    if output is not None:
        shutil.rmtree(output, ignore_errors=True)
    if cold is not None:
        fd = os.open(cold, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    os.sync()  # what an earlier process left to be written is not this one's
    with tempfile.TemporaryFile() as printed:
        started = time.perf_counter()
        actions = [(os.POSIX_SPAWN_DUP2, printed.fileno(), 1)]
        pid = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
        _, status, usage = os.wait4(pid, 0)
        seconds = time.perf_counter() - started
        printed.seek(0)
        said = printed.read()
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    row.seconds.append(seconds)
    row.peak_mib.append(usage.ru_maxrss / 1024)
    row.processor.append(usage.ru_utime + usage.ru_stime)
    if "--json" not in command:
        return {}
    result: dict[str, Any] = json.loads(said)
    row.work.append(result.get("seconds", seconds))
    return result


def cases(full: bool) -> list[Case]:
    if not full:
        return [Case(), *(Case(**change) for changes in VARIED for change in changes)]
    product = [Case()]
    for changes in VARIED:
        product += [replace(case, **change) for case in product for change in changes]
    return product


def build(folder: Path, blocks: int | str, dtype: str) -> Path:
    subprocess.run([sys.executable, str(HERE / "checkpoints.py"), str(folder), str(blocks), dtype], check=True)
    return folder


def floor(source: Path, output: Path, written: int) -> list[str]:
    return [sys.executable, str(HERE / "floor.py"), str(source / FILE), str(output), str(written)]


def compare(folder: Path, wanted: Sequence[Case], blocks: int, rounds: int) -> dict[str, Any]:
    """All of ``wanted``, the plain programs and the floors on a checkpoint of so many blocks."""
    sources = {dtype: build(folder / dtype, blocks, dtype) for dtype in sorted({case.dtype for case in wanted})}
    output, source = folder / "out", sources["BF16"]
    plain = {scheme: Row(f"plain program, {scheme}") for scheme in PLAIN}
    ours = {case: Row(str(case)) for case in wanted}
    floors = {case: Row(f"floor of {case}") for case in wanted}
    read, read_cold = Row("read the source"), Row("read the source, cold")
    written: dict[Case, int] = {}
    for _ in range(rounds):
        for scheme, row in plain.items():
            measure(row, [sys.executable, str(HERE / "plain.py"), str(source / FILE), str(output), scheme], output)
        for case, row in ours.items():
            place = sources[case.dtype]
            files = measure(row, case.command(place, output), output, place / FILE if case.cold else None)["files"]
            written[case] = sum(files.values())
            if case == replace(Case(), scheme=case.scheme, rule=case.rule):
                measure(floors[case], floor(place, output, written[case]), output)
        measure(read, floor(source, output, 0), output)
        measure(read_cold, floor(source, output, 0), output, source / FILE)
    table = Table(title=f"{blocks} blocks, {(source / FILE).stat().st_size / 1e9:.2f} GB of bf16, medians of {rounds}")
    for heading in ("", "seconds", "work + fsync", "against the floor", "plain program / it", "peak MiB"):
        table.add_column(heading, justify="left" if not heading else "right")
    for case, row in ours.items():
        work, least = statistics.median(row.work), floors[case]
        against = f"{work / least.median:.2f}" if least.seconds else ""
        ratio = f"{plain[case.scheme].median / row.median:.2f}" if case.scheme in plain else ""
        table.add_row(row.name, f"{row.median:.2f}", f"{work:.2f}", against, ratio, _peak(row))
    for row in [*plain.values(), *(row for row in floors.values() if row.seconds), read, read_cold]:
        table.add_row(row.name, f"{row.median:.2f}", "", "", "", _peak(row))
    Console(width=160).print(table)
    shown = [*ours.values(), *plain.values(), *floors.values(), read, read_cold]
    return {"blocks": blocks, "bytes": (source / FILE).stat().st_size, "rows": [asdict(row) for row in shown]}


def startup(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """--help, a plan of the whole 14B from headers, and verify with and without the source that the base came from."""
    source, output = folder / "BF16", folder / "verified"
    headers = build(folder / "headers", "headers", "BF16")
    convert = Row("convert")
    plan = ["--source", str(headers), "--output", str(folder / "x"), "--set", "quantization.method=int8"]
    commands = {
        "--help": [*COMMAND, "--help"],
        "import torch": [sys.executable, "-c", "import torch"],
        "plan of the 14B": [*COMMAND, "plan", *plan],
        "verify": [*COMMAND, "verify", str(output)],
        "verify --against": [*COMMAND, "verify", str(output), "--against", str(source)],
    }
    rows = {name: Row(name) for name in commands}
    for _ in range(rounds):
        measure(convert, Case().command(source, output), output)
        for name, command in commands.items():
            measure(rows[name], command, None)
    table = Table(title="start-up and verify")
    for heading in ("", "seconds", "peak MiB"):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in [*rows.values(), convert]:
        table.add_row(row.name, f"{row.median:.2f}", _peak(row))
    Console(width=160).print(table)
    return [asdict(row) for row in (*rows.values(), convert)]


def _peak(row: Row) -> str:
    return f"{statistics.median(row.peak_mib):.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=4, help="of the checkpoint on which all is compared (4)")
    parser.add_argument("--growth", type=int, nargs="*", default=[], help="other numbers of blocks, for the base alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to make the checkpoints (default: a temporary folder here)")
    parser.add_argument("--full", action="store_true", help="the product of all factors instead of one at a time")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder or Path.cwd(), prefix="bench-") as name:
        folder = Path(name)
        growth = []
        for blocks in asked.growth:
            growth.append(compare(folder, [Case()], blocks, asked.rounds))
        compared = compare(folder, cases(asked.full), asked.blocks, asked.rounds)
        results = {"compared": compared, "growth": growth, "startup": startup(folder, asked.rounds)}
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
