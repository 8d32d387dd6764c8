import math

import numpy as np
import pytest
import torch

from converter_core.errors import Refused
from converter_plugins.quantizers.mxfp4 import Mxfp4

F32 = np.float32
TIES = [6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5.0, -0.0, 0.2499]


def rceil(spec, most):
    value = float(F32(most) * spec.SIXTH)
    return 0 if value <= 2.0**-127 else math.frexp(value)[1] + 127 - (math.frexp(value)[0] == 0.5)


def floor(spec, most):
    return max(math.frexp(float(most))[1] - 1 - 2 + 127, 0) if most else 0


def even(spec, most):
    if not most:
        return 0
    mantissa, exponent = math.frexp(float(most))  # [0.5, 1)
    return max(exponent - 1 - 2 + 127 + (mantissa >= 0.875), 0)


def error(spec, block, scale):
    """Exact: multiples of a power of two in Python's fractions."""
    from fractions import Fraction

    unit = Fraction(2) ** (scale - 127)
    return sum(
        (abs(Fraction(float(v))) - Fraction(spec.E2M1[spec.e2m1(abs(v) * 2.0 ** (127 - scale))]) * unit) ** 2
        for v in block
    )


def mse(spec, block):
    candidates = [rceil(spec, np.abs(block).max()), floor(spec, np.abs(block).max())]
    candidates.append(candidates[1] + 1)
    return min(candidates, key=lambda scale: error(spec, block, scale))  # the first of equals


def restated(spec, weight, scale_of):
    rows = weight.float().numpy()
    codes = np.zeros(rows.shape, np.uint8)
    scales = np.zeros((rows.shape[0], rows.shape[1] // 32), np.uint8)
    for r in range(scales.shape[0]):
        for b in range(scales.shape[1]):
            block = rows[r, 32 * b : 32 * b + 32]
            scales[r, b] = scale = scale_of(block)
            codes[r, 32 * b : 32 * b + 32] = [spec.e2m1(float(v) * 2.0 ** (127 - int(scale))) for v in block]
    return spec.packed(codes), scales


def reference(spec, weight):
    rows = weight.float().numpy()
    codes = np.zeros(rows.shape, np.uint8)
    scales = np.zeros((rows.shape[0], rows.shape[1] // 32), np.uint8)
    for r in range(scales.shape[0]):
        for b in range(scales.shape[1]):
            block = [spec.bf16(v) for v in rows[r, 32 * b : 32 * b + 32]]
            scales[r, b] = scale = rceil(spec, max(map(abs, block)))
            for c, value in enumerate(block):
                if scale:
                    code = spec.e2m1(float(value) * 2.0 ** (127 - scale))
                else:  # the reciprocal of 2^-127 is infinite; zero times infinity is NaN, which becomes +6
                    code = 7 if value == 0 else 7 | (8 if value < 0 else 0)
                codes[r, 32 * b + c] = code
    return spec.packed(codes), scales


def check(parts, expected):
    codes, scales = expected
    assert parts["weight"].dtype is torch.uint8
    assert parts["scale"].dtype is torch.uint8
    np.testing.assert_array_equal(parts["scale"].numpy(), scales)
    np.testing.assert_array_equal(parts["weight"].numpy(), codes)


@pytest.mark.parametrize(("rule", "scale"), [("rceil", rceil), ("floor", floor), ("even", even)])
def test_equals_the_restatement(spec, dtype, rule, scale):
    weight = spec.edges(96, dtype, TIES)
    check(Mxfp4(scale_rule=rule).quantize(weight), restated(spec, weight, lambda b: scale(spec, np.abs(b).max())))


def test_mse_is_the_better_of_two_in_exact_arithmetic(spec, dtype):
    weight = torch.cat(
        [spec.edges(64, dtype, TIES), torch.randn(24, 64, generator=torch.Generator().manual_seed(1)).to(dtype)]
    )
    parts = Mxfp4(scale_rule="mse").quantize(weight)
    check(parts, restated(spec, weight, lambda block: mse(spec, block)))
    assert not torch.equal(parts["scale"], Mxfp4(scale_rule="rceil").quantize(weight)["scale"])
    assert not torch.equal(parts["scale"], Mxfp4(scale_rule="floor").quantize(weight)["scale"])


def test_even_is_what_one_gets_unasked(spec, dtype):
    weight = spec.edges(96, dtype, TIES)
    check(Mxfp4().quantize(weight), restated(spec, weight, lambda b: even(spec, np.abs(b).max())))


def test_parity_equals_the_restatement(spec, dtype):
    weight = spec.edges(96, dtype, TIES)
    check(Mxfp4(numerics="lightx2v").quantize(weight), reference(spec, weight))


def test_bytes_by_hand():
    block = [6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -6.0, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5.0] + [
        0.0
    ] * 16
    codes = bytes.fromhex("07 22 44 66 8F AA CC EE".replace(" ", "")) + bytes(8)
    for rule in ("rceil", "floor", "even", "mse"):
        parts = Mxfp4(scale_rule=rule).quantize(torch.tensor([block]))
        assert parts["scale"].tolist() == [[127]]
        assert bytes(parts["weight"][0].tolist()) == codes


@pytest.mark.parametrize(
    ("most", "scales"),
    [  # rceil, floor, even
        (4.0, (127, 127, 127)),
        (6.0, (127, 127, 127)),
        (6.0625, (128, 127, 127)),
        (7.0, (128, 127, 128)),
        (8.0, (128, 128, 128)),
        (1.5 * 2.0**-30, (95, 95, 95)),
        (2.0**-122, (3, 3, 3)),
        (6 * 2.0**-126, (1, 1, 1)),
        (6 * 2.0**-127, (0, 0, 0)),
        (7 * 2.0**-127, (1, 0, 1)),
        (2.0**-140, (0, 0, 0)),
        (3.0e38, (253, 252, 253)),
    ],
)
def test_scales_of_powers_of_two_by_hand(most, scales):
    weight = torch.zeros(1, 32)
    weight[0, 5] = -most
    for rule, scale in zip(("rceil", "floor", "even"), scales, strict=True):
        parts = Mxfp4(scale_rule=rule).quantize(weight)
        assert parts["scale"].tolist() == [[scale]], rule


def test_zero_blocks():
    weight = torch.zeros(1, 64)
    weight[0, 3] = -0.0
    weight[0, 32] = 1.0
    exact = Mxfp4().quantize(weight)
    assert exact["scale"].tolist() == [[0, 125]]
    assert exact["weight"][0, :16].tolist() == [0x00, 0x80] + [0] * 14
    parity = Mxfp4(numerics="lightx2v").quantize(weight)
    assert parity["scale"].tolist() == [[0, 125]]
    assert parity["weight"][0, :16].tolist() == [0x77] * 16
    assert parity["weight"][0, 16:].tolist() == [0x06] + [0] * 15


def test_decodes_and_steps():
    parts = {
        "weight": torch.tensor([[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE] + [0] * 8], dtype=torch.uint8),
        "scale": torch.tensor([[129]], dtype=torch.uint8),
    }
    values = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    assert Mxfp4().dequantize(parts)[0, :16].tolist() == [4 * v for v in values] + [-4 * v for v in values]
    assert Mxfp4().quantization_step(parts)[0, :8].tolist() == [2.0, 2.0, 2.0, 2.0, 4.0, 4.0, 8.0, 8.0]
    least = {"weight": torch.full((1, 16), 0x22, dtype=torch.uint8), "scale": torch.zeros(1, 1, dtype=torch.uint8)}
    assert Mxfp4().dequantize(least)[0, 0].item() == 2.0**-127


def test_options_that_exclude_each_other():
    with pytest.raises(Refused, match="scale_rule: mse is not what LightX2V's converter does"):
        Mxfp4(numerics="lightx2v", scale_rule="mse")
    with pytest.raises(Refused, match="unknown scale_rule 'ceil'"):
        Mxfp4(scale_rule="ceil")
    assert Mxfp4(numerics="lightx2v", scale_rule="rceil").required_target == "lightx2v"
    with pytest.raises(Refused, match="has 48 columns; needs a multiple of 32"):
        Mxfp4().quantize(torch.ones(2, 48))
