from fractions import Fraction

import numpy as np
import pytest
import torch

from converter_core.errors import Refused
from converter_plugins.quantizers.nvfp4 import Nvfp4

F32 = np.float32
TIES = [6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5.0, -0.0]


def quantized(weight, **options):
    quantizer = Nvfp4(**options)
    return quantizer.quantize(weight, **quantizer.observe(weight))


def whole_scale(spec, most):
    """bf16(2688 / most), rounded once: by exact fractions."""
    if most == 0:
        return F32(1)
    quotient = Fraction(2688) / Fraction(float(most))
    exponent = 0
    while quotient >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while quotient < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (exponent - 7)
    return F32(min(float(round(quotient / unit) * unit), 2.0**118))  # round() takes ties to even


def reference_scale(spec, most):
    with np.errstate(divide="ignore", over="ignore"):
        whole = spec.bf16(spec.bf16(F32(1) / F32(most)) * F32(2688))
    return whole if np.isfinite(whole) else whole_scale(spec, most)


def per_step(whole, value):
    return F32(0) if value == 0 else F32(whole) * (F32(1) / F32(value))


def error(spec, block, whole, code):
    """In units of the global scale."""
    value = spec.E4M3[code]
    times = per_step(whole, value)
    total = 0.0
    for v in block:
        y = abs(v) * times
        q = spec.E2M1[spec.e2m1(y)]
        total += (float(y) - q) ** 2 * value**2 if value else (float(v) * float(whole)) ** 2
    return total


def absmax(spec, block, whole):
    return spec.e4m3(F32(whole) * (np.abs(block).max() * spec.SIXTH))


def restated(spec, weight, whole, code_of):
    rows = weight.float().numpy()
    codes = np.zeros(rows.shape, np.uint8)
    scales = np.zeros((rows.shape[0], rows.shape[1] // 16), np.uint8)
    for r in range(scales.shape[0]):
        for b in range(scales.shape[1]):
            block = rows[r, 16 * b : 16 * b + 16]
            scales[r, b] = code_of(spec, block, whole)
            times = per_step(whole, spec.E4M3[scales[r, b]])
            with np.errstate(invalid="ignore", over="ignore"):
                codes[r, 16 * b : 16 * b + 16] = [spec.e2m1(v * times) for v in block]
    return spec.packed(codes), scales


def check(parts, expected, whole):
    codes, scales = expected
    assert parts["weight"].dtype is torch.uint8
    assert parts["scale"].dtype is torch.float8_e4m3fn
    assert parts["global_scale"].dtype is torch.float32
    assert parts["global_scale"].shape == ()
    assert parts["global_scale"].item() == whole
    np.testing.assert_array_equal(parts["scale"].view(torch.uint8).numpy(), scales)
    np.testing.assert_array_equal(parts["weight"].numpy(), codes)


ORDINARY = [0, 1, 2, 3, 4, 5, 6, 8, 9, 11, 12, 13, 14]  # without the rows beside which all others vanish
TINY = [1, 2, 6, 7]


@pytest.mark.parametrize("rows", [ORDINARY, TINY, [1, 2], [1, 7], list(range(15))])
def test_equals_the_restatement(spec, dtype, rows):
    weight = spec.edges(48, dtype, TIES)[rows]
    whole = whole_scale(spec, weight.abs().max().item())
    check(quantized(weight, scale_rule="absmax"), restated(spec, weight, whole, absmax), whole)


@pytest.mark.parametrize("rows", [ORDINARY, TINY, [1, 7], list(range(15))])
def test_parity_equals_the_restatement(spec, dtype, rows):
    weight = spec.edges(48, dtype, TIES)[rows]
    rounded = weight.bfloat16()
    whole = reference_scale(spec, rounded.abs().max().item())
    check(quantized(weight, numerics="lightx2v"), restated(spec, rounded, whole, absmax), whole)


def test_parity_where_a_reciprocal_overflows(spec):
    # G is 2^124.4, and over block scales below 2^-3.6 it is infinite; infinity times zero is NaN, which becomes +6
    weight = (
        torch.randn(6, 48, generator=torch.Generator().manual_seed(4))
        * torch.tensor([1.0, 2.0**-14, 0.0]).repeat(2)[:, None]
    )
    weight = (weight * 2.0**-115).bfloat16()
    weight[1, ::5] = 0
    weight[1, ::7] = -0.0
    whole = reference_scale(spec, weight.float().abs().max().item())
    assert whole > 2.0**120
    parts = quantized(weight, numerics="lightx2v")
    with np.errstate(over="ignore"):
        check(parts, restated(spec, weight, whole, absmax), whole)
    low = parts["weight"] & 15
    assert low[1, [0, 5, 7, 10]].tolist() == [7, 7, 7, 7]  # columns 0, 10 and 20 are +0, column 14 is -0
    assert not (parts["weight"][2] & 0x77).any()  # zero blocks: the scale is 0, and the kernel then multiplies by 0


def test_parity_of_what_bf16_cannot_hold():
    weight = torch.full((1, 32), 3.4e38)
    parts = quantized(weight, numerics="lightx2v")
    assert parts["scale"].view(torch.uint8).tolist() == [[0x7E, 0x7E]]
    assert parts["global_scale"].isfinite()
    assert parts["weight"].tolist() == [[0x77] * 16]


def test_the_global_scale_is_rounded_once_by_hand():
    # 1.0: 2688 fits; 1.0078125 = 129/128: 2667.16 -> 2672 (a step of 16), and 2688 * bf16(128/129 = 0.99219) = 2667 too
    assert quantized(torch.tensor([[1.0] * 16]))["global_scale"].item() == 2688.0
    twice = [
        quantized(torch.full((1, 16), m / 128).bfloat16(), numerics="lightx2v")["global_scale"] for m in range(128, 256)
    ]
    once = [quantized(torch.full((1, 16), m / 128).bfloat16())["global_scale"] for m in range(128, 256)]
    assert sum(a.item() != b.item() for a, b in zip(once, twice, strict=True)) == 35
    # just above a tie between 1344 and 1352 that float32 division would hit: 1348 * amax < 2688 in exact arithmetic
    amax = np.nextafter(F32(2688 / 1348), F32(0))
    found = quantized(torch.full((1, 16), float(amax)))["global_scale"].item()
    assert found == (1352.0 if Fraction(1348) * Fraction(float(amax)) < 2688 else 1344.0)
    assert quantized(torch.full((1, 16), 1e-38))["global_scale"].item() == 2.0**118


def test_all_zero_weight():
    for options in ({}, {"numerics": "lightx2v"}, {"scale_rule": "absmax"}, {"scale_rule": "four_over_six"}):
        parts = quantized(torch.zeros(2, 32), **options)
        assert parts["global_scale"].item() == 1.0
        assert not parts["scale"].view(torch.uint8).any()
        assert not parts["weight"].any()


def test_bytes_by_hand():
    # amax 6: G = 448; the block's scale is 448 * (6 * fp32(1/6)) = 448 (0x7E); codes in steps of one
    row = [6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -6.0, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5.0]
    parts = quantized(torch.tensor([row + [0.75] * 8 + [-0.0] * 8]), scale_rule="absmax")
    assert parts["global_scale"].item() == 448.0
    assert parts["scale"].view(torch.uint8).tolist() == [[0x7E, 0x66]]  # 448 / 8 = 56 = 1.75 * 2^5
    assert bytes(parts["weight"][0].tolist()) == bytes.fromhex("072244668FAACCEE") + b"\x77" * 4 + b"\x88" * 4


@pytest.mark.parametrize("rule", ["four_over_six", "mse"])
def test_the_best_of_the_candidates(spec, dtype, rule):
    noise = torch.randn(16, 32, generator=torch.Generator().manual_seed(2)).to(dtype)
    weight = torch.cat([spec.edges(32, dtype, TIES)[ORDINARY], noise])
    whole = whole_scale(spec, weight.abs().max().item())
    rows = weight.float().numpy()
    parts = quantized(weight, scale_rule=rule)
    scales = parts["scale"].view(torch.uint8)
    moved, spent, least = 0, 0.0, 0.0
    for r in range(scales.shape[0]):
        for b in range(scales.shape[1]):
            block = rows[r, 16 * b : 16 * b + 16]
            start, chosen = absmax(spec, block, whole), scales[r, b].item()
            if rule == "mse":
                near = set(range(max(start - 4, 0), min(start + 6, 126) + 1))
            else:
                near = {start, spec.e4m3(F32(whole) * (np.abs(block).max() * spec.SIXTH) * F32(1.5))}
            costs = {code: error(spec, block, whole, code) for code in near}
            assert chosen in near
            assert costs[chosen] <= costs[start] * (1 + 1e-6)
            if not costs[start] or start < 16:
                assert chosen == start
            moved += chosen != start
            spent += costs[chosen]
            least += min(costs.values())
    assert moved > 10
    assert spent <= 1.002 * least
    in_order = iter(scales.flatten().tolist())
    check(parts, restated(spec, weight, whole, lambda *_: next(in_order)), whole)


def test_no_block_is_worse_than_with_absmax(spec, dtype):
    weight = torch.cat([spec.edges(256, dtype, TIES)[ORDINARY], torch.randn(40, 256).to(dtype)])
    errors = {}
    for rule in ("absmax", "four_over_six", "mse"):
        parts = quantized(weight, scale_rule=rule)
        difference = Nvfp4().dequantize(parts).double() - weight.double()
        errors[rule] = difference.square().view(-1, 16).sum(1)
    for rule in ("four_over_six", "mse"):
        assert (errors[rule] <= errors["absmax"] * (1 + 1e-5)).all()
    assert errors["mse"][-640:].sum() < 0.77 * errors["absmax"][-640:].sum()
    assert errors["four_over_six"][-640:].sum() < 0.88 * errors["absmax"][-640:].sum()


def test_decodes_and_steps():
    scale = torch.tensor([[0x38, 0x00]], dtype=torch.uint8).view(torch.float8_e4m3fn)
    codes = torch.tensor([[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE] * 2], dtype=torch.uint8)
    parts = {"weight": codes, "scale": scale, "global_scale": torch.tensor(4.0)}
    values = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    assert Nvfp4().dequantize(parts)[0, :16].tolist() == [v / 4 for v in values] + [-v / 4 for v in values]
    assert Nvfp4().quantization_step(parts)[0, :8].tolist() == [0.125] * 4 + [0.25] * 2 + [0.5] * 2
    assert Nvfp4().quantization_step(parts)[0, 16].item() == 2.0**-12


def test_options_that_exclude_each_other():
    with pytest.raises(Refused, match="scale_rule: four_over_six is not what LightX2V's converter does"):
        Nvfp4(numerics="lightx2v", scale_rule="four_over_six")
    with pytest.raises(Refused, match="unknown scale_rule 'rceil'"):
        Nvfp4(scale_rule="rceil")
    assert Nvfp4(numerics="lightx2v").passthrough_dtype == "float32"
    with pytest.raises(Refused, match="has 100 columns; needs a multiple of 16"):
        quantized(torch.ones(2, 100))
