"""What activation statistics buy: the output error of every layer of a small trained model, against plain ``mse``.

    python tests/benchmarks/calibrated.py              trains a byte-level transformer on Python's library first
    python tests/benchmarks/calibrated.py --steps 50   trains less

A layer's error is the squared difference of its outputs for tokens of other files than the ones it was calibrated on.
Cells: the change against the same scheme's ``mse``, median [best, worst] over the layers. The second table is of the
whole model, all its layers quantized: the squared error of the logits for texts it has not seen. Seeded.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from converter_core.api.calibration import HELD_OUT
from converter_core.calibration.collect import Collector, linear_layers
from converter_core.calibration.statistics import Calibration, Kept
from converter_plugins.quantizers.fp8 import Fp8
from converter_plugins.quantizers.int8 import Int8
from converter_plugins.quantizers.mxfp4 import Mxfp4
from converter_plugins.quantizers.nvfp4 import Nvfp4

SCHEMES = (Int8, Fp8, Mxfp4, Nvfp4)
WAYS: Mapping[str, Mapping[str, Any]] = {
    "weighted": {"scale_rule": "weighted"},
    "bias": {"scale_rule": "mse", "bias_correction": True},
    "weighted + bias": {"scale_rule": "weighted", "bias_correction": True},
    "gptq": {"scale_rule": "mse", "rounding": "gptq"},
    "gptq + bias": {"scale_rule": "mse", "rounding": "gptq", "bias_correction": True},
}
RANKS = (16, 64)
"""Of factors that gptq has in the place of tokens."""
CONTEXT = 128


class Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.before(x)
        q, k, v = (part(seen).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.between(x))))


class Bytes(nn.Module):
    """Predicts the next byte."""

    def __init__(self, dim: int = 128, layers: int = 3) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(256, dim), nn.Embedding(CONTEXT, dim)
        self.blocks = nn.ModuleList(Block(dim, 4) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 256)

    def forward(self, text: Tensor) -> Tensor:
        x = self.embedding(text) + self.places(torch.arange(text.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def texts() -> Tensor:
    """All modules of the standard library's top folder, in order of their names, as bytes."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return torch.tensor(list(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8)


def batch(text: Tensor, size: int, draw: torch.Generator) -> Tensor:
    starts = torch.randint(len(text) - CONTEXT - 1, (size,), generator=draw)
    return torch.stack([text[start : start + CONTEXT + 1] for start in starts]).long()


def trained(text: Tensor, steps: int, draw: torch.Generator) -> Bytes:
    torch.manual_seed(0)
    model = Bytes()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        seen = batch(text, 8, draw)
        loss = nn.functional.cross_entropy(model(seen[:, :-1]).flatten(0, 1), seen[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step}: {loss.item():.3f}", file=sys.stderr, flush=True)
    return model.eval()


def gathered(model: Bytes, text: Tensor, runs: int, kept: Kept, draw: torch.Generator) -> Collector:
    collector = Collector(model, {name: name for name in linear_layers(model) if name != "head"}, kept)
    with torch.no_grad(), collector:
        for _ in range(runs):
            model(batch(text, 16, draw)[:, :-1])
    return collector


def output_error(layer: nn.Linear, parts: Mapping[str, Tensor], restored: Tensor, inputs: Tensor) -> float:
    weight = layer.weight.detach().bfloat16().float()
    difference = inputs @ (restored - weight).t()
    if "bias" in parts:
        difference = difference + (parts["bias"].float() - layer.bias.detach().float())
    return float(difference.square().sum())


def statistics_of(found: Calibration, name: str) -> dict[str, Tensor]:
    given = found.inputs[found.layers.get(name, name)]
    made = {"mean": (given.total / given.count).float(), "mean_square": (given.squares / given.count).float()}
    if len(given.factors):
        made["factors"] = given.factors / math.sqrt(given.count * (1 - 1 / HELD_OUT))
    return {**made, "tokens": given.tokens}


def made_of(
    layer: nn.Linear, given: Mapping[str, Tensor], low_rank: Mapping[str, Mapping[str, Tensor]]
) -> Iterator[tuple[str, str, Tensor, Tensor | None]]:
    """(scheme, way, restored weight, new bias), ``mse`` first of each scheme. low_rank: way -> statistics."""
    weight = layer.weight.detach().bfloat16()
    for scheme in SCHEMES:
        plain: Any = scheme(scale_rule="mse")
        observed = plain.observe(weight)
        yield scheme.name, "mse", plain.dequantize(plain.quantize(weight, **observed)), None
        for way, options in WAYS.items():
            quantizer: Any = scheme(**options)
            wanted = {name: given[name] for name, _ in quantizer._wanted()}
            bias = {"bias": layer.bias.detach()} if quantizer.wants_bias else {}
            parts = quantizer.quantize(weight, **observed, **quantizer.prepare(wanted), **bias)
            yield scheme.name, way, quantizer.dequantize(parts), parts.get("bias")
        for way, made in low_rank.items():
            quantizer = scheme(**WAYS["gptq"])
            parts = quantizer.quantize(weight, **observed, **quantizer.prepare(made))
            yield scheme.name, way, quantizer.dequantize(parts), None


def whole_error(model: Bytes, replaced: Mapping[str, tuple[Tensor, Tensor | None]], seen: Tensor) -> float:
    """Of the logits, with these layers' weights and biases in the place of the model's own."""
    other = copy.deepcopy(model)
    for name, (weight, bias) in replaced.items():
        layer = other.get_submodule(name)
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return float((other(seen) - model(seen)).square().sum())


def cell(changes: Sequence[float]) -> str:
    shown = [f"{100 * value:+.1f}" for value in (median(changes), min(changes), max(changes))]
    return "{} [{}, {}]".format(*shown).replace("-", "−")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=1024)
    chosen = parser.parse_args()
    started = time.monotonic()
    draw, text = torch.Generator().manual_seed(1), texts()
    for_training = text.split(len(text) * 8 // 10)
    for_calibration, held_out = for_training[1].chunk(2)
    model = trained(for_training[0], chosen.steps, draw)
    known = gathered(model, for_calibration, 8, Kept(chosen.tokens), draw).finished()
    low_rank = {
        f"gptq, rank {rank}": gathered(model, for_calibration, 8, Kept(rank=rank), draw).finished() for rank in RANKS
    }
    others = gathered(model, held_out, 4, Kept(4096), draw).finished()
    found: dict[tuple[str, str], list[float]] = {}
    replaced: dict[tuple[str, str], dict[str, tuple[Tensor, Tensor | None]]] = {}
    layers = [name for name in linear_layers(model) if name != "head"]
    with torch.no_grad():
        for name in layers:
            inputs = others.inputs[others.layers.get(name, name)].tokens.float()
            made = {way: statistics_of(found, name) for way, found in low_rank.items()}
            layer, base = model.get_submodule(name), 0.0
            for scheme, way, restored, bias in made_of(layer, statistics_of(known, name), made):
                error = output_error(layer, {} if bias is None else {"bias": bias}, restored, inputs)
                base = error if way == "mse" else base
                found.setdefault((scheme, way), []).append(error / base - 1)
                replaced.setdefault((scheme, way), {})[name] = (restored, bias)
            print(".", end="", file=sys.stderr, flush=True)
        seen = batch(held_out, 64, draw)[:, :-1]
        whole = {key: whole_error(model, layers_of_way, seen) for key, layers_of_way in replaced.items()}
    print(f"\n{len(layers)} layers, {time.monotonic() - started:.0f} s", file=sys.stderr)
    print("| | " + " | ".join(scheme.name for scheme in SCHEMES) + " |")
    print("|---|" + "---|" * len(SCHEMES))
    for way in (*WAYS, *low_rank):
        print(f"| {way} | " + " | ".join(cell(found[scheme.name, way]) for scheme in SCHEMES) + " |")
    print("\nThe whole model:")
    for way in (*WAYS, *low_rank):
        changes = [whole[scheme.name, way] / whole[scheme.name, "mse"] - 1 for scheme in SCHEMES]
        print(f"| {way} | " + " | ".join(f"{100 * change:+.1f}".replace("-", "−") for change in changes) + " |")


if __name__ == "__main__":
    main()
