"""mxfp8 and mxfp6 against a slow restatement, code by code."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from converter_core.errors import Refused
from converter_plugins.quantizers.mxfp6 import Mxfp6
from converter_plugins.quantizers.mxfp8 import Mxfp8

F32 = np.float32
E3M2 = [m / 16 if e == 0 else (4 + m) * 2.0 ** (e - 5) for e in range(8) for m in range(4)]
SCHEMES = {"mxfp8": (Mxfp8, 448.0), "mxfp6": (Mxfp6, 28.0)}


def e3m2(spec, value):
    best = min(range(32), key=lambda code: (abs(abs(value) - E3M2[code]), code % 2))
    return best | (32 if np.signbit(value) else 0)


def restated(spec, scheme, weight, rounded=False):
    """Codes [rows, columns] and scales: LightX2V's mxfp8_quant_kernels_sm120.cu and mxfp6_..., zero blocks as zeros."""
    rows, top = weight.float().numpy(), SCHEMES[scheme][1]
    codes, scales = np.zeros(rows.shape, np.uint8), np.zeros((rows.shape[0], rows.shape[1] // 32), np.uint8)
    for r, b in np.ndindex(*scales.shape):
        block = [spec.bf16(v) if rounded else v for v in rows[r, 32 * b : 32 * b + 32]]
        needed = float(F32(max(map(abs, block))) / F32(top))
        mantissa, exponent = math.frexp(needed)
        scales[r, b] = scale = 0 if needed <= 2.0**-127 else exponent + 127 - (mantissa == 0.5)
        steps = [np.copysign(min(abs(float(v)) * 2.0 ** (127 - int(scale)), top), v) for v in block]
        codes[r, 32 * b : 32 * b + 32] = [spec.e4m3(v) if scheme == "mxfp8" else e3m2(spec, v) for v in steps]
    return codes, scales


def packed(codes):
    out = np.zeros((codes.shape[0], codes.shape[1] * 3 // 4), np.uint8)
    for r, i in np.ndindex(codes.shape[0], codes.shape[1] // 4):
        a, b, c, d = map(int, codes[r, 4 * i : 4 * i + 4])
        word = a | b << 6 | c << 12 | d << 18
        out[r, 3 * i : 3 * i + 3] = [word & 255, word >> 8 & 255, word >> 16]
    return out


def weights(spec, scheme, dtype):
    grid = E3M2 if scheme == "mxfp6" else spec.E4M3
    ties = [grid[-1], *((a + b) / 2 for a, b in zip(grid[:-1:3], grid[1::3], strict=False)), -0.0]
    return spec.edges(64, dtype, ties)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_equals_the_restatement(spec, scheme, dtype):
    weight = weights(spec, scheme, dtype)
    parts = SCHEMES[scheme][0]().quantize(weight)
    codes, scales = restated(spec, scheme, weight)
    np.testing.assert_array_equal(parts["scale"].numpy(), scales)
    expected = packed(codes) if scheme == "mxfp6" else codes
    np.testing.assert_array_equal(parts["weight"].view(torch.uint8).numpy(), expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_kernel_rounds_to_bf16_first(spec, scheme):
    weight = weights(spec, scheme, torch.float32).clamp(-1e38, 1e38)
    parts = SCHEMES[scheme][0](numerics="lightx2v").quantize(weight)
    codes, scales = restated(spec, scheme, weight, rounded=True)
    np.testing.assert_array_equal(parts["scale"].numpy(), scales)
    expected = packed(codes) if scheme == "mxfp6" else codes
    np.testing.assert_array_equal(parts["weight"].view(torch.uint8).numpy(), expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_code_decodes_to_its_number(spec, scheme):
    grid = E3M2 if scheme == "mxfp6" else spec.E4M3
    signed = np.array([*grid, *(-value for value in grid)])
    numbers = torch.from_numpy(np.resize(signed, 256)).float().view(4, 64)
    numbers[:, ::32] = grid[-1]  # so that the scale of every block is one
    quantizer = SCHEMES[scheme][0]()
    for factor in (1.0, 2.0**-30, 2.0**20):
        back = quantizer.dequantize(quantizer.quantize(numbers * factor))
        assert torch.equal(back, numbers * factor)
        step = quantizer.quantization_step(quantizer.quantize(numbers * factor)) / factor
        assert step[0, 0] == (4 if scheme == "mxfp6" else 32)
        assert step.min() == (2.0**-4 if scheme == "mxfp6" else 2.0**-9)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_zeros_stay_zeros(scheme):
    parts = SCHEMES[scheme][0]().quantize(torch.zeros(2, 64, dtype=torch.bfloat16))
    assert not parts["weight"].view(torch.uint8).any()
    assert not parts["scale"].any()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_columns_that_make_no_blocks_are_refused(scheme):
    with pytest.raises(Refused, match="48 columns; needs a multiple of 32"):
        SCHEMES[scheme][0]().quantize(torch.ones(2, 48))


def test_comfy_kitchen_makes_the_same_mxfp8(spec):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kitchen = pytest.importorskip("comfy_kitchen")
    weight = torch.randn(32, 128, generator=torch.Generator().manual_seed(4)).bfloat16()
    codes, scales = kitchen.quantize_mxfp8(weight)
    parts = Mxfp8().quantize(weight)
    assert torch.equal(codes.view(torch.uint8), parts["weight"].view(torch.uint8))
    flat = scales.view(torch.uint8).flatten()
    at = torch.tensor([[row * 16 + block for block in range(4)] for row in range(32)])
    assert torch.equal(flat[at], parts["scale"])
