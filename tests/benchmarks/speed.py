"""Speed and memory, side by side in one run: the conventional way, ours, and the floor.

Whole processes, alternating, medians; one factor at a time is varied from a base (int8, single_file, bf16, 2 workers,
page cache warm). Prints a table, and JSON with --json FILE.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from checkpoints import build
from rich.console import Console
from rich.table import Table

from converter_core.sample import write_headers_only
from converter_plugins.models.wan_dit import VARIANTS

HERE = Path(__file__).parent
BASE = {"scheme": "int8", "layout": "single_file", "dtype": "BF16", "workers": 2, "rule": None, "cold": False}
VARIED: Mapping[str, Sequence[Mapping[str, object]]] = {
    "scheme": [
        {"scheme": "fp8"},
        {"scheme": "mxfp4", "rule": "rceil"},
        {"scheme": "nvfp4", "rule": "absmax"},
        {"scheme": "mxfp4", "rule": "mse"},
        {"scheme": "nvfp4", "rule": "mse"},
    ],
    "layout": [{"layout": "by_block"}, {"layout": "chunked"}],
    "dtype": [{"dtype": "F32"}],
    "workers": [{"workers": 1}],
    "cache": [{"cold": True}],
}


@dataclass
class Row:
    """seconds, peak: medians over the rounds; peak in MiB."""

    name: str
    seconds: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def measure(row: Row, command: Sequence[str], output: Path, source: Path | None = None) -> None:
    """One whole process; the page cache of ``source`` is dropped first if it is given."""
    shutil.rmtree(output, ignore_errors=True)
    if source is not None:
        for path in source.iterdir():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
    started = time.perf_counter()
    pid = os.posix_spawn(
        command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    )
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    row.seconds.append(time.perf_counter() - started)
    row.peak.append(usage.ru_maxrss / 1024)


def ours(source: Path, output: Path, case: Mapping[str, object]) -> list[str]:
    options = [f"quantization.options.scale_rule={case['rule']}"] if case["rule"] else []
    settings = [
        f"quantization.method={case['scheme']}",
        f"target.layout={case['layout']}",
        f"performance.num_workers={case['workers']}",
        *options,
    ]
    flags = [flag for setting in settings for flag in ("--set", setting)]
    place = ["--source", str(source), "--output", str(output), "--quiet"]
    return [sys.executable, "-m", "converter_core", "convert", *place, *flags]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, nargs="+", default=[4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to make the checkpoints (default: a temporary folder here)")
    parser.add_argument("--full", action="store_true", help="the product of all factors instead of one at a time")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder or Path.cwd(), prefix="bench-") as folder:
        results = [run(Path(folder), blocks, asked.rounds, asked.full) for blocks in asked.blocks]
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=1))


def cases(full: bool) -> list[dict[str, object]]:
    if not full:
        return [dict(BASE), *({**BASE, **change} for changes in VARIED.values() for change in changes)]
    product = [dict(BASE)]
    for changes in VARIED.values():
        product += [{**case, **change} for case in product for change in changes]
    return product


def run(folder: Path, blocks: int, rounds: int, full: bool) -> dict[str, object]:
    output = folder / "out"
    wanted = cases(full)
    sizes = {}
    for dtype in sorted({str(case["dtype"]) for case in wanted}):
        sizes[dtype] = build(folder / dtype, blocks, dtype)
    source = folder / "BF16"
    file = source / "diffusion_pytorch_model.safetensors"
    plain = [Row(f"plain program, {scheme}") for scheme in ("int8", "fp8")]
    read = Row("read the source")
    read_cold = Row("read the source, cold")
    mine = [Row(", ".join(_words(case))) for case in wanted]
    floors = {name: Row(f"floor, {name}") for name in ("8 bit", "4 bit")}
    written = {"8 bit": sizes["BF16"] * 0.51, "4 bit": sizes["BF16"] * 0.29}
    for _ in range(rounds):
        for row in plain:
            scheme = row.name.split()[-1]
            measure(row, [sys.executable, str(HERE / "plain.py"), str(file), str(output), scheme], output)
        for row, case in zip(mine, wanted, strict=True):
            cold = folder / str(case["dtype"]) if case["cold"] else None
            measure(row, ours(folder / str(case["dtype"]), output, case), output, cold)
        for name, row in floors.items():
            measure(
                row, [sys.executable, str(HERE / "floor.py"), str(file), str(output), str(int(written[name]))], output
            )
        measure(read, [sys.executable, str(HERE / "floor.py"), str(file), str(output), "0"], output)
        measure(read_cold, [sys.executable, str(HERE / "floor.py"), str(file), str(output), "0"], output, source)
    start = startup(folder, rounds, ours(source, output, BASE))
    rows = [*plain, *mine, *floors.values(), read, read_cold, *start]
    table = Table(title=f"{blocks} blocks, {sizes['BF16'] / 1e9:.2f} GB of bf16, medians of {rounds}")
    for heading in ("", "seconds", "peak MiB", "plain int8 / it"):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in rows:
        ratio = f"{plain[0].median / row.median:.2f}"
        table.add_row(row.name, f"{row.median:.2f}", f"{statistics.median(row.peak):.0f}", ratio)
    Console().print(table)
    return {"blocks": blocks, "bytes": sizes, "rows": [asdict(row) for row in rows]}


def startup(folder: Path, rounds: int, converting: Sequence[str]) -> list[Row]:
    """--help, a plan of the whole 14B from headers, and verify of the base conversion with and without its source."""
    headers, output = folder / "headers", folder / "verified"
    write_headers_only(headers, VARIANTS["I2V-14B"].inventory("BF16"))
    command = [sys.executable, "-m", "converter_core"]
    made = [str(output) if part == str(folder / "out") else part for part in converting]
    measure(Row("made"), made, output)
    source = converting[converting.index("--source") + 1]
    plan = ["--source", str(headers), "--output", str(folder / "x"), "--set", "quantization.method=int8"]
    rows = {
        "--help": [*command, "--help"],
        "import torch": [sys.executable, "-c", "import torch"],
        "plan of the 14B": [*command, "plan", *plan],
        "verify": [*command, "verify", str(output)],
        "verify --against": [*command, "verify", str(output), "--against", source],
    }  # fmt: skip
    measured = [Row(name) for name in rows]
    for _ in range(rounds):
        for row in measured:
            measure(row, rows[row.name], folder / "out")
    return measured


def _words(case: Mapping[str, object]) -> list[str]:
    rule = [f"{case['rule']}"] if case["rule"] else []
    words = [f"{case['scheme']}", *rule, f"{case['layout']}", f"{case['dtype']}", f"{case['workers']} workers"]
    return [*words, "cold"] if case["cold"] else words


if __name__ == "__main__":
    main()
