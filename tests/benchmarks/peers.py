"""The output error of llm-compressor's best beside ours, at the same format: layers, tokens and texts of calibrated.py.

    python tests/benchmarks/peers.py      needs llmcompressor, which no test installs

Cells: the change against our ``mse``, median [best, worst] over the layers. ``imatrix`` is its scale search weighted
by ``E[x^2]``, to compare with ``weighted``; ``GPTQ`` is its modifier's function, with activation order where the scheme
has one scale per row, damping 0.01 (its default) and 0.1, on the same tokens (of which ours holds out a quarter).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from calibrated import RANKS, SCHEMES, WAYS, batch, cell, output_error, statistics_of, texts, trained
from torch import Tensor, nn

from converter_core.calibration.collect import Collector, linear_layers
from converter_core.calibration.statistics import Kept

PRESETS = {"int8": "W8A8", "fp8": "FP8_DYNAMIC", "mxfp4": "MXFP4A16", "nvfp4": "NVFP4A16"}
OURS = ("weighted", "gptq")


def arguments(scheme: str, **changed: Any) -> Any:
    """How compressed-tensors describes the weights of a scheme."""
    from compressed_tensors.quantization import preset_name_to_scheme

    made = preset_name_to_scheme(PRESETS[scheme], ["Linear"]).weights
    return made.model_copy(update=changed)


def observed(weight: Tensor, args: Any, observer: str, mean_square: Tensor) -> Any:
    """Scale, zero point and global scale."""
    from llmcompressor.observers import Observer

    args = args.model_copy(update={"observer_kwargs": {}})
    made = Observer.load_from_registry(observer, base_name="weight", args=args)
    if hasattr(made, "_imatrix_sum"):
        made._imatrix_sum, made._imatrix_count = mean_square.clone(), torch.tensor(1)
    return made(weight).get_qparams()


def nearest(weight: Tensor, args: Any, found: Any) -> Tensor:
    from compressed_tensors.quantization import fake_quantize

    return fake_quantize(weight, found["scale"], found["zero_point"], args, global_scale=found["global_scale"])


def gptq(weight: Tensor, args: Any, found: Any, tokens: Tensor, damping: float) -> Tensor:
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    hessian = (tokens.t() @ tokens / len(tokens) * 2)[None]
    whole = None if found["global_scale"] is None else found["global_scale"][None]
    made, _, fell_back = quantize_weight(
        weight.float()[None].clone(), hessian, found["scale"][None], found["zero_point"][None], whole, args,
        percdamp=damping,
    )  # fmt: skip
    assert not fell_back.any()
    return made[0]


def theirs(scheme: str, weight: Tensor, given: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """(way, restored weight)"""
    ordered = {"actorder": "weight"} if scheme in ("int8", "fp8") else {}
    args = arguments(scheme)
    scales = {name: observed(weight, args, name, given["mean_square"]) for name in ("memoryless_mse", "imatrix_mse")}
    yield "their mse", nearest(weight, args, scales["memoryless_mse"])
    yield "their imatrix", nearest(weight, args, scales["imatrix_mse"])
    tokens = given["tokens"].float()
    for damping in (0.01, 0.1):
        made = gptq(weight, arguments(scheme, **ordered), scales["memoryless_mse"], tokens, damping)
        yield f"their GPTQ, damping {damping}", made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=400)
    chosen = parser.parse_args()
    draw, text = torch.Generator().manual_seed(1), texts()
    for_training = text.split(len(text) * 8 // 10)
    for_calibration, held_out = for_training[1].chunk(2)
    model = trained(for_training[0], chosen.steps, draw)
    layers = [name for name in linear_layers(model) if name != "head"]

    def gathered(text: Tensor, runs: int, kept: Kept) -> Any:
        collector = Collector(model, {name: name for name in layers}, kept)
        with torch.no_grad(), collector:
            for _ in range(runs):
                model(batch(text, 16, draw)[:, :-1])
        return collector.finished()

    known = gathered(for_calibration, 8, Kept())
    for _ in RANKS:
        gathered(for_calibration, 8, Kept())  # the same draws as calibrated.py
    others = gathered(held_out, 4, Kept(4096))
    found: dict[tuple[str, str], list[float]] = {}
    with torch.no_grad():
        for name in layers:
            layer = model.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            weight, given = layer.weight.detach().bfloat16(), statistics_of(known, name)
            inputs = others.inputs[others.layers.get(name, name)].tokens.float()
            for scheme in SCHEMES:
                plain: Any = scheme(scale_rule="mse")
                statistic = plain.observe(weight)
                base = output_error(layer, {}, plain.dequantize(plain.quantize(weight, **statistic)), inputs)
                for way in OURS:
                    quantizer: Any = scheme(**WAYS[way])
                    wanted = {role: given[role] for role, _ in quantizer._wanted()}
                    parts = quantizer.quantize(weight, **statistic, **quantizer.prepare(wanted))
                    error = output_error(layer, parts, quantizer.dequantize(parts), inputs)
                    found.setdefault((scheme.name, way), []).append(error / base - 1)
                for way, restored in theirs(scheme.name, weight, given):
                    error = output_error(layer, {}, restored.float(), inputs)
                    found.setdefault((scheme.name, way), []).append(error / base - 1)
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print("| | " + " | ".join(scheme.name for scheme in SCHEMES) + " |")
    print("|---|" + "---|" * len(SCHEMES))
    for way in dict.fromkeys(way for _, way in found):
        print(f"| {way} | " + " | ".join(cell(found[scheme.name, way]) for scheme in SCHEMES) + " |")
    ahead = [
        f"{scheme.name}: {way}"
        for scheme in SCHEMES
        for way, mine in (("their mse", None), ("their imatrix", "weighted"), ("their GPTQ, damping 0.01", "gptq"),
                          ("their GPTQ, damping 0.1", "gptq"))
        if median(found[scheme.name, way]) < (0 if mine is None else median(found[scheme.name, mine]))
    ]  # fmt: skip
    print("ahead of ours:", ", ".join(ahead) or "nothing")


if __name__ == "__main__":
    main()
