"""Peak memory (``ru_maxrss`` of a whole process) of every scheme x target on real-size blocks, and of what starts from
a quantized source: into every other target that holds the same format, and dequantized. Fails above ``--most`` MiB.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from speed import COMMAND, Row, build, measure

ROWS = ("lightx2v", "diffusers", "diffusers/torchao", "compressed_tensors", "plain")
HOLD: Mapping[str, Sequence[str]] = {
    "int8": (*ROWS, "comfyui", "vllm_omni"),
    "fp8": (*ROWS, "comfyui", "diffusers/bfl"),
    "mxfp4": ("lightx2v", "compressed_tensors", "plain"),
    "mxfp6": ("lightx2v", "plain"),
    "mxfp8": ("lightx2v", "comfyui", "compressed_tensors", "plain"),
    "nvfp4": ("lightx2v", "comfyui", "compressed_tensors", "plain"),
    **dict.fromkeys(("q8_0", "q6_k", "q5_1", "q5_k", "q4_0", "q4_k", "q3_k", "q2_k"), ("gguf",)),
}
"""Scheme -> targets, with their style."""


def command(source: Path, output: Path, scheme: str, target: str, *more: str) -> list[str]:
    format, _, style = target.partition("/")
    settings = [f"quantization.method={scheme}", f"target.format={format}", "performance.num_workers=2", *more]
    settings += [f"target.options.style={style}"] if style else []
    flags = [flag for setting in settings for flag in ("--set", setting)]
    return [*COMMAND, "convert", "--source", str(source), "--output", str(output), "--json", *flags]


def cases(schemes: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """(scheme of the source, scheme, target); the source is the original where its scheme is empty."""
    for scheme in schemes:
        for target in HOLD[scheme]:
            yield "", scheme, target
        first, *others = HOLD[scheme]
        for target in others:
            if (scheme, target) != ("fp8", "comfyui"):  # of rows here, of the whole weight there
                yield scheme, "none", target
        yield scheme, "none", first
        yield scheme, "dequantize", "plain"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="where to make the checkpoint (default: a temporary folder here)")
    parser.add_argument("--schemes", nargs="+", default=list(HOLD))
    parser.add_argument("--most", type=float, default=300, help="MiB that each may take")
    asked = parser.parse_args()
    table = Table(title=f"peak MiB, {asked.blocks} blocks, 2 workers, page cache warm")
    for heading in ("source", "scheme", "target", "peak MiB"):
        table.add_column(heading, justify="right" if heading == "peak MiB" else "left")
    over = []
    with tempfile.TemporaryDirectory(dir=asked.folder or Path.cwd(), prefix="bench-") as name:
        original, kept, output = (
            build(Path(name) / "source", asked.blocks, "BF16"),
            Path(name) / "kept",
            Path(name) / "o",
        )
        for before, scheme, target in cases(asked.schemes):
            row, decoded = Row(f"{before or 'bf16'} -> {scheme} {target}"), scheme == "dequantize"
            more = ["source.dequantize=true"] if decoded else []
            source = kept / before if before else original
            measure(row, command(source, output, "none" if decoded else scheme, target, *more), output)
            table.add_row(before or "bf16", scheme, target, f"{row.peak_mib[0]:.0f}")
            print(f"{row.name}: {row.peak_mib[0]:.0f}", flush=True)
            over += [row.name] if row.peak_mib[0] > asked.most else []
            if not before and target == HOLD[scheme][0]:
                shutil.rmtree(kept, ignore_errors=True)
                kept.mkdir()
                output.rename(kept / scheme)
    Console(width=100).print(table)
    if over:
        raise SystemExit(f"over {asked.most:.0f} MiB: {', '.join(over)}")


if __name__ == "__main__":
    main()
