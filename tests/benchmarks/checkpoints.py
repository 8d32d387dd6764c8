"""Wan2.1-I2V checkpoints of N blocks with real names and shapes, made in seconds."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from converter_core.api.tensors import raw, torch_dtype
from converter_core.api.values import OutputTensor, PlannedWeight, TensorRef, WeightInfo
from converter_core.checkpoint.synthetic import write_headers_only
from converter_plugins.containers.safetensors import Safetensors
from converter_plugins.models.wan_dit import VARIANTS

POOL = 8 << 20


def build(folder: Path, blocks: int, dtype: str = "BF16") -> int:
    """One file of gaussian weights (a pool of 8 Mi values, begun anew at another place for each tensor); its bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = replace(VARIANTS["I2V-14B"], num_layers=blocks).inventory(dtype)
    weights = [
        PlannedWeight(
            WeightInfo(key, {"weight": TensorRef(key)}), key, spec, "none", (OutputTensor(key, "weight", spec),)
        )
        for key, spec in tensors.items()
    ]
    placed = Safetensors().place(weights, {"format": "pt"})
    generator = torch.Generator().manual_seed(0)
    pool = (torch.randn(POOL, generator=generator) * 0.02).to(torch_dtype(dtype))
    data = raw(pool)
    path = folder / "diffusion_pytorch_model.safetensors"
    with path.open("wb") as file:
        file.write(placed.header)
        at = 0
        left = placed.size - len(placed.header)
        while left:
            count = min(left, len(data) - at)
            file.write(data[at : at + count])
            left -= count
            at = (at + count + 1_000_003 * 8) % len(data) if count == len(data) - at else 0
    return placed.size


def main(folder: str, blocks: str, dtype: str) -> None:
    """blocks: their number, or ``headers`` for all of the 14B without data."""
    if blocks == "headers":
        write_headers_only(Path(folder), VARIANTS["I2V-14B"].inventory(dtype))
    else:
        build(Path(folder), int(blocks), dtype)


if __name__ == "__main__":
    main(*sys.argv[1:])
