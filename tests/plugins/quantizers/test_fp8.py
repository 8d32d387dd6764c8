import numpy as np
import pytest
import torch

from converter_core.api.tensors import same
from converter_core.errors import Refused
from converter_plugins.quantizers.fp8 import Fp8

F32 = np.float32
TIES = [448.0, 17.0, 19.0, -17.0, 2.0**-10, -(2.0**-10), 1.5 * 2**-9, 2.0**-7 + 2.0**-10, -0.0, 0.0146, 432.0, 400.0]


def restated(spec, weight, reach=None):
    rows = weight.float().numpy()
    codes, scales = np.zeros(rows.shape, np.uint8), np.zeros((len(rows), 1), F32)
    for r, row in enumerate(rows):
        most = F32(np.abs(row).max() if reach is None else reach)
        scales[r] = scale = F32(1) if most == 0 else max(spec.bf16(most / F32(448)), F32(2.0**-126))
        codes[r] = [spec.e4m3(value / scale) for value in row]
    return codes, scales


def qtorch(value):
    """``float_quantize(exp=4, man=3, "nearest")`` of one float32, as the E4M3 code of what it returns."""

    def rounded(x):
        return ((F32(x).view(np.uint32) + np.uint32(0x80000)) & np.uint32(0xFFF00000)).view(F32)

    if abs(value) >= F32(2.0**-6):
        result = rounded(value)
    else:
        shift = F32(-(2.0**-6)) if value < 0 else F32(2.0**-6)
        result = rounded(value + shift) - shift
    return result


def reference(spec, weight):
    rows, dtype = weight.float().numpy(), weight.dtype
    codes, scales = np.zeros(rows.shape, np.uint8), np.zeros((len(rows), 1), F32)
    for r, row in enumerate(rows):
        reach = max(np.abs(row).max(), spec.in_dtype(1e-5, dtype))
        scale = spec.in_dtype(F32(reach) / F32(448), dtype)
        scales[r] = scale
        if not scale:  # fp16 alone: w / 0 is clipped, and 0 / 0 is on x86 a NaN with its sign set, which qtorch and
            codes[r] = [0x7E if value > 0 else 0xFE for value in row]  # torch's cast take to -448
            continue
        for c, value in enumerate(row):
            y = qtorch(np.clip(spec.in_dtype(value / scale, dtype), F32(-448), F32(448)))
            codes[r, c] = spec.e4m3(y)
            assert spec.E4M3[codes[r, c] & 127] == abs(y)
    return codes, scales


@pytest.mark.parametrize("columns", [64, 45])
def test_equals_the_restatement(spec, dtype, columns):
    weight = spec.edges(columns, dtype, TIES)
    parts = Fp8(scale_rule="absmax").quantize(weight)
    codes, scales = restated(spec, weight)
    assert parts["weight"].dtype is torch.float8_e4m3fn
    assert parts["scale"].dtype is torch.float32
    np.testing.assert_array_equal(parts["scale"].numpy(), scales)
    np.testing.assert_array_equal(parts["weight"].view(torch.uint8).numpy(), codes)


def test_one_scale_for_the_weight_stands_in_every_row(spec, dtype):
    weight = spec.edges(48, dtype, TIES)[[0, 3, 5, 9]]
    quantizer = Fp8(per_channel=False)
    parts = quantizer.quantize(weight, **quantizer.observe(weight))
    codes, scales = restated(spec, weight, float(weight.abs().max()))
    np.testing.assert_array_equal(parts["scale"].numpy(), scales)
    np.testing.assert_array_equal(parts["weight"].view(torch.uint8).numpy(), codes)


@pytest.mark.parametrize("columns", [64, 45])
def test_parity_equals_the_restatement(spec, dtype, columns):
    weight = spec.edges(columns, dtype, TIES)
    parts = Fp8(numerics="lightx2v").quantize(weight)
    codes, scales = reference(spec, weight)
    assert parts["scale"].dtype is dtype
    np.testing.assert_array_equal(parts["scale"].float().numpy(), scales)
    np.testing.assert_array_equal(parts["weight"].view(torch.uint8).numpy(), codes)


def test_ties_by_hand():
    # 17 is between 16 (0x58) and 18 (0x59), 19 between 18 and 20 (0x5A); 2^-10 between 0 and 2^-9 (0x01)
    weight = torch.tensor([[448.0, 17.0, 19.0, -17.0, 2.0**-10, -(2.0**-10), -0.0, 1.5 * 2.0**-9]])
    exact = Fp8(scale_rule="absmax").quantize(weight)
    assert exact["weight"].view(torch.uint8).tolist() == [[0x7E, 0x58, 0x5A, 0xD8, 0x00, 0x80, 0x80, 0x02]]
    assert exact["scale"].item() == 1.0
    parity = Fp8(numerics="lightx2v").quantize(weight)
    assert parity["weight"].view(torch.uint8).tolist() == [[0x7E, 0x59, 0x5A, 0xD9, 0x01, 0x81, 0x00, 0x02]]
    small = torch.tensor([[448.0, -(2.0**-11), -(2.0**-12), 2.0**-10, 2.0**-6]])
    codes = Fp8(numerics="lightx2v").quantize(small)["weight"].view(torch.uint8)
    assert codes.tolist() == [[0x7E, 0x00, 0x00, 0x01, 0x08]]


def test_parity_floor_by_hand():
    # bf16(1e-5) / 448 in bf16 = 2.2352e-08 -> 0x32C0
    parts = Fp8(numerics="lightx2v").quantize(torch.zeros(1, 3, dtype=torch.bfloat16))
    assert parts["scale"].view(torch.int16).tolist() == [[0x32C0]]
    assert parts["weight"].view(torch.uint8).tolist() == [[0, 0, 0]]


def test_parity_of_fp16_rows_whose_scale_becomes_zero():
    # fp16 rounds absmax / 448 to zero up to 448 * 2^-25 = 1.335e-5, whose quotient is a tie to even
    least = 2.0**-24
    weight = torch.tensor(
        [[0.0, -0.0, 0.0], [223 * least, -least, 0.0], [224 * least, 0, 0], [225 * least, 0, 0]]
    ).half()
    quantizer = Fp8(numerics="lightx2v")
    parts = quantizer.quantize(weight)
    assert parts["scale"].tolist() == [[0.0], [0.0], [0.0], [least]]
    assert parts["weight"].view(torch.uint8).tolist() == [
        [0xFE, 0xFE, 0xFE],
        [0x7E, 0xFE, 0xFE],
        [0x7E, 0xFE, 0xFE],
        [0x76, 0x00, 0x00],  # 225 is nearest to 224 = 1.75 * 2^7
    ]
    assert not quantizer.dequantize(parts)[:3].any()
    step = quantizer.quantization_step(parts)
    assert step[:3].tolist() == [[448 * least] * 3] * 3
    assert step[3, 0].item() == 16 * least
    assert (weight[:3].abs() <= 0.5 * step[:3]).all()


def test_mse_moves_the_grid_only_where_it_helps(spec, dtype):
    weight = torch.cat([spec.edges(512, dtype, TIES), torch.randn(20, 512).to(dtype)])
    errors = []
    for rule in ("absmax", "mse"):
        quantizer = Fp8(scale_rule=rule)
        parts = quantizer.quantize(weight)
        assert torch.equal(parts["scale"], parts["scale"].bfloat16().float())
        errors.append((quantizer.dequantize(parts).double() - weight.double()).square().sum(1))
    assert (errors[1] <= errors[0] * (1 + 1e-5)).all()
    assert errors[1][-20:].sum() < 0.96 * errors[0][-20:].sum()
    assert all(same(part, parts[role]) for role, part in Fp8().quantize(weight).items())


def test_no_scale_of_the_octave_is_better(dtype):
    """Against all 128 of them, each tried in float64."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(12, 300, generator=generator) * torch.rand(12, 1, generator=generator).exp2()
    weight[3:6] = weight[3:6] ** 5
    weight = weight.to(dtype)
    parts = Fp8().quantize(weight)
    first = Fp8(scale_rule="absmax").quantize(weight)["scale"]
    errors = []
    for step in range(128):
        scale = (first.view(torch.int32) + (step << 16)).view(torch.float32).double()
        codes = (weight.double() / scale).float().to(torch.float8_e4m3fn)
        errors.append(((codes.double() * scale - weight.double()) ** 2).sum(1))
    found = (Fp8().dequantize(parts).double() - weight.double()).square().sum(1)
    least = torch.stack(errors).amin(0)
    if dtype is torch.bfloat16:
        assert (found <= least * 1.0001).all()
    # of others mantissas are rounded, which shows in rows of few large weights
    assert found[:3].sum() + found[6:].sum() <= 1.02 * (least[:3].sum() + least[6:].sum())
    assert (found < errors[0]).sum() > 6


def test_dequantizes_every_code():
    codes = torch.arange(256, dtype=torch.uint8).view(16, 16).view(torch.float8_e4m3fn)
    restored = Fp8().dequantize({"weight": codes, "scale": torch.full((16, 1), 0.5)})
    assert torch.equal(restored.nan_to_num(nan=7.0), (codes.float() * 0.5).nan_to_num(nan=7.0))
    assert torch.signbit(restored[8, 0])


def test_options_that_exclude_each_other():
    with pytest.raises(Refused, match="per_channel: false is not what LightX2V's converter does"):
        Fp8(numerics="lightx2v", per_channel=False)
    with pytest.raises(Refused, match="scale_rule: mse"):
        Fp8(numerics="lightx2v", scale_rule="mse")
    with pytest.raises(Refused, match="needs per_channel: true"):
        Fp8(per_channel=False, scale_rule="mse")
    with pytest.raises(Refused, match="unknown numerics 'exakt'; did you mean 'exact'"):
        Fp8(numerics="exakt")
    assert (Fp8(numerics="lightx2v").required_target, Fp8(numerics="lightx2v").passthrough_dtype) == (
        "lightx2v",
        "float32",
    )
