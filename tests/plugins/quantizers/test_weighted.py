"""``scale_rule: weighted``: the candidate with the least error when the columns are weighted, and the same bytes."""

import numpy as np
import pytest
import torch

from converter_core.errors import Refused
from converter_plugins.quantizers import _loops
from converter_plugins.quantizers._importance import shares_of
from converter_plugins.quantizers.fp8 import Fp8
from converter_plugins.quantizers.int8 import Int8
from converter_plugins.quantizers.mxfp4 import Mxfp4
from converter_plugins.quantizers.nvfp4 import Nvfp4

COLUMNS = 96
SCHEMES = [Int8(scale_rule="weighted"), Fp8(scale_rule="weighted")]
BLOCKS = [Mxfp4(scale_rule="weighted"), Nvfp4(scale_rule="weighted")]


def sample(dtype):
    generator = torch.Generator().manual_seed(5)
    weight = (torch.randn(24, COLUMNS, generator=generator) * 0.02).to(dtype)
    weight[3] = 0
    mean_square = torch.randn(COLUMNS, generator=generator).mul(1.5).exp().square()
    mean_square[7] = 0
    return weight, mean_square


def quantized(quantizer, weight, mean_square):
    return quantizer.quantize(weight, mean_square=mean_square, **quantizer.observe(weight))


def errors(restored, weight, mean_square, width):
    squares = (restored.double() - weight.double()).square() * mean_square.double()
    return squares.view(len(weight), -1, width).sum(-1)


@pytest.mark.parametrize("quantizer", SCHEMES, ids=lambda one: one.name)
def test_no_other_row_scale_is_better(quantizer, dtype):
    weight, mean_square = sample(dtype)
    mean_square[7] = 1e-3  # of fp8's integers none is zero
    found = quantizer.dequantize(quantized(quantizer, weight, mean_square))
    first = type(quantizer)(scale_rule="absmax").quantize(weight)["scale"].double()
    steps = range(-16, 1) if quantizer.name == "int8" else range(128)
    tried = []
    for step in steps:
        scale = (first.float().view(torch.int32) + (step << 16)).view(torch.float32).double()
        codes = weight.double() / scale
        if quantizer.name == "int8":
            codes = codes.float().round().clamp(-127, 127)
        else:
            codes = codes.float().clamp(-448, 448).to(torch.float8_e4m3fn)
        tried.append(errors(codes.double() * scale, weight, mean_square, COLUMNS))
    least = torch.stack(tried).amin(0)
    got = errors(found, weight, mean_square, COLUMNS)
    exact = dtype is torch.bfloat16 or quantizer.name == "int8"
    assert (got <= least * (1.0001 if exact else 1.2) + 1e-30).all()
    plain = errors(
        type(quantizer)(scale_rule="mse").dequantize(type(quantizer)(scale_rule="mse").quantize(weight)),
        weight,
        mean_square,
        COLUMNS,
    )
    assert got.sum() < plain.sum()


@pytest.mark.parametrize("quantizer", BLOCKS, ids=lambda one: one.name)
def test_no_other_block_scale_is_better(spec, quantizer, dtype):
    weight, mean_square = sample(dtype)
    width = 32 if quantizer.name == "mxfp4" else 16
    parts = quantized(quantizer, weight, mean_square)
    got = errors(quantizer.dequantize(parts), weight, mean_square, width).numpy()
    scales = parts["scale"].view(torch.uint8).numpy()
    whole = float(parts["global_scale"]) if "global_scale" in parts else 0.0
    grid = np.array(spec.E2M1)
    for r in range(0, 24, 5):
        for b in range(COLUMNS // width):
            block = weight[r, b * width : (b + 1) * width].double().numpy()
            share = mean_square[b * width : (b + 1) * width].double().numpy()
            if not block.any():
                continue
            exact = np.abs(block).max()
            if quantizer.name == "mxfp4":
                floor = int(np.floor(np.log2(exact))) - 2 + 127
                tries = {code: 2.0 ** (code - 127) for code in (floor, floor + 1)}
            else:
                start = spec.e4m3(np.float32(np.float32(exact) * spec.SIXTH) * np.float32(whole))
                steps = (0, -1, 1, 4, 5, 3, -2, 6)
                tries = {start + step: spec.E4M3[start + step] / whole for step in steps if start + step <= 0x7E}
            of = {}
            for code, scale in tries.items():
                near = np.abs(np.minimum(np.abs(block) / scale, 6)[:, None] - grid).argmin(1)
                of[code] = (((grid[near] * scale - np.abs(block)) ** 2) * share).sum()
            assert scales[r, b] in tries
            assert got[r, b] <= min(of.values()) * 1.02
    plain = quantized(type(quantizer)(scale_rule="mse"), weight, None)
    assert not np.array_equal(scales, plain["scale"].view(torch.uint8).numpy())


@pytest.mark.parametrize("quantizer", [*SCHEMES, *BLOCKS, Int8(symmetric=False, scale_rule="weighted")], ids=str)
def test_bytes_are_those_of_torch_and_of_slabs(quantizer, dtype, monkeypatch):
    weight, mean_square = sample(dtype)
    observed = quantizer.observe(weight)
    whole = quantizer.quantize(weight, mean_square=mean_square, **observed)
    with monkeypatch.context() as patch:
        patch.setattr(_loops, "_library", None)
        halves = [quantizer.quantize(half, mean_square=mean_square, **observed) for half in weight.split(7)]
    for role, part in whole.items():
        other = torch.cat([half[role] for half in halves]) if part.dim() else halves[0][role]
        assert torch.equal(part.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)), role


def test_where_nothing_comes_in_all_columns_count_alike():
    assert shares_of(torch.zeros(5)).tolist() == [1.0] * 5
    assert shares_of(torch.tensor([1.0, 3.0, 0.0, 4.0])).tolist() == [0.5, 1.5, 0.0, 2.0]


@pytest.mark.parametrize("scheme", [Int8, Fp8])
def test_options_that_exclude_each_other(scheme):
    with pytest.raises(Refused, match="scale_rule: weighted is not what LightX2V's converter does"):
        scheme(numerics="lightx2v", scale_rule="weighted")
    with pytest.raises(Refused, match="needs per_channel: true"):
        scheme(per_channel=False, scale_rule="weighted")
