"""Processor seconds of whole conversions against the floor's, side by side, medians: for a machine that others use too.

The floor reads, writes and fsyncs as many bytes. A plan's processor time, which is start-up, is taken off ours.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from speed import COMMAND, Case, Row, build, floor, measure

SCHEMES = ("int8", "fp8", "mxfp4", "mxfp8", "nvfp4", "q8_0", "q4_0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES))
    parser.add_argument("--folder", type=Path, help="where to make the checkpoint (default: a temporary folder here)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder or Path.cwd(), prefix="bench-") as name:
        source, output = build(Path(name) / "source", asked.blocks, "BF16"), Path(name) / "out"
        ours = {scheme: Row(scheme) for scheme in asked.schemes}
        floors = {scheme: Row(scheme) for scheme in asked.schemes}
        start = Row("start")
        plan = ["--source", str(source), "--output", str(output), "--set", "quantization.method=int8"]
        for _ in range(asked.rounds):
            measure(start, [*COMMAND, "plan", *plan], output)
            for scheme in asked.schemes:
                case = Case(scheme=scheme, target="gguf" if scheme.startswith("q") else "lightx2v")
                files = measure(ours[scheme], case.command(source, output), output)["files"]
                measure(floors[scheme], floor(source, output, sum(files.values())), output)
    begin = statistics.median(start.processor)
    print(f"start {begin:.2f} s")
    for scheme, row in ours.items():
        pairs = list(zip(row.processor, floors[scheme].processor, strict=True))
        ratios = [(whole - begin) / least for whole, least in pairs]
        whole, least = (statistics.median(several) for several in zip(*pairs, strict=True))
        print(
            f"{scheme}: {whole:.2f} s, floor {least:.2f} s, without start / floor {statistics.median(ratios):.2f}, "
            f"{min(ratios):.2f} to {max(ratios):.2f}"
        )


if __name__ == "__main__":
    main()
