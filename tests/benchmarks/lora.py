"""What LoRAs cost: conversions of a Wan2.1-I2V-14B of N blocks without and with one or two, beside a bare ``addmm``.

Whole processes, alternating, medians of processor seconds (a busy machine shows in the others). ``addmm`` is the time
that torch takes on one thread for the same multiply-adds, 256 rows at a time. Only the children import torch.
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
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
COMMAND = [sys.executable, "-m", "converter_core", "convert", "--json"]

WRITE = """
import sys, torch
from dataclasses import replace
from pathlib import Path
from safetensors.torch import save_file
from converter_plugins.models.wan_dit import VARIANTS
folder, blocks, rank = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
draw, made = torch.Generator().manual_seed(rank), {}
for key, spec in replace(VARIANTS["I2V-14B"], num_layers=blocks).inventory("BF16").items():
    if key.startswith("blocks.") and key.endswith(".weight") and len(spec.shape) == 2:
        base = "diffusion_model." + key.removesuffix(".weight")
        made[base + ".lora_up.weight"] = (torch.randn(spec.shape[0], rank, generator=draw) * 0.01).bfloat16()
        made[base + ".lora_down.weight"] = (torch.randn(rank, spec.shape[1], generator=draw) * 0.01).bfloat16()
save_file(made, folder / f"rank{rank}.safetensors")
"""

ADDMM = """
import sys, time, torch
torch.set_num_threads(1)
rank, best = int(sys.argv[1]), float("inf")
weight, left, right = torch.zeros(256, 5120), torch.randn(256, rank), torch.randn(rank, 5120)
for _ in range(30):
    began = time.thread_time()
    weight.addmm_(left, right)
    best = min(best, time.thread_time() - began)
print(best / weight.numel())
"""


def python(code: str, *arguments: object) -> str:
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, stdout=-1, text=True).stdout


def measured(command: Sequence[str], output: Path) -> tuple[float, float, float]:
    """Processor seconds, wall seconds that the conversion says it took, peak MiB."""
    shutil.rmtree(output, ignore_errors=True)
    os.sync()
    with tempfile.TemporaryFile() as printed:
        pid = os.posix_spawn(command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, printed.fileno(), 1)])
        _, status, usage = os.wait4(pid, 0)
        printed.seek(0)
        said = printed.read()
    if status:
        raise SystemExit(f"{' '.join(command)} failed: {said!r}")
    return usage.ru_utime + usage.ru_stime, json.loads(said)["seconds"], usage.ru_maxrss / 1024


def main(folder: Path, blocks: int, rounds: int, scheme: str, ranks: Sequence[Sequence[int]]) -> None:
    source = folder / "source"
    subprocess.run([sys.executable, str(HERE / "checkpoints.py"), str(source), str(blocks), "BF16"], check=True)
    elements = blocks * (10 * 5120 + 2 * 13824) * 5120  # of the linear weights
    for rank in {rank for several in ranks for rank in several}:
        python(WRITE, folder, blocks, rank)
    seconds: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(rounds):
        for several in ((), *ranks):
            paths = [str(folder / f"rank{rank}.safetensors") for rank in several]
            flags = ["--lora_path", *paths] if paths else []
            scheme_flags = ["--quantized", "--linear_type", scheme, "--source", str(source)]
            command = [*COMMAND, "--output", str(folder / "out"), *scheme_flags, *flags]
            name = " + ".join(map(str, several)) or "none"
            seconds.setdefault(name, []).append(measured(command, folder / "out"))
    bare = [statistics.median(column) for column in zip(*seconds["none"], strict=True)]
    print(f"{scheme}, {blocks} blocks, {elements / 1e9:.2f} billion elements; medians of {rounds}")
    print(f"{'ranks':>12} {'cpu s':>7} {'x':>5} {'wall s':>7} {'x':>5} {'MiB':>5}  more cpu s / addmm s")
    for name, rows in seconds.items():
        cpu, wall, peak = (statistics.median(column) for column in zip(*rows, strict=True))
        product = sum(float(python(ADDMM, rank)) for rank in map(int, name.split(" + "))) if name != "none" else 0
        beside = f"{(cpu - bare[0]) / (product * elements):.2f}" if product else ""
        print(f"{name:>12} {cpu:7.1f} {cpu / bare[0]:5.2f} {wall:7.1f} {wall / bare[1]:5.2f} {peak:5.0f}  {beside}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scheme", default="int8")
    parser.add_argument(
        "--ranks", nargs="*", default=["16", "64", "128,128"], help="of one LoRA, or of several: 128,128"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        wanted = [[int(rank) for rank in one.split(",")] for one in given.ranks]
        main(Path(scratch), given.blocks, given.rounds, given.scheme, wanted)
