import numpy as np
import pytest
import torch

from converter_core.errors import Refused
from converter_plugins.quantizers.int8 import Int8

F32 = np.float32
TIES = [127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 63.5, -126.5, 126.5, 0.49999, 3.0]


def scale_of(spec, reach):
    return F32(1) if reach == 0 else max(spec.bf16(F32(reach) / F32(127)), F32(2.0**-126))


def restated(spec, weight, reach=None):
    rows = weight.float().numpy()
    codes, scales = np.zeros(rows.shape, np.int8), np.zeros((len(rows), 1), F32)
    for r, row in enumerate(rows):
        scales[r] = scale = scale_of(spec, np.abs(row).max() if reach is None else reach)
        for c, value in enumerate(row):
            codes[r, c] = int(np.clip(np.rint(value / scale), -127, 127))
    return codes, scales


def reference(spec, weight):
    rows, dtype = weight.float().numpy(), weight.dtype
    codes, scales = np.zeros(rows.shape, np.int8), np.zeros((len(rows), 1), F32)
    for r, row in enumerate(rows):
        reach = max(np.abs(row).max(), spec.in_dtype(1e-5, dtype))
        scales[r] = scale = spec.in_dtype(F32(reach) / F32(127), dtype)
        for c, value in enumerate(row):
            codes[r, c] = int(np.clip(np.rint(spec.in_dtype(value / scale, dtype)), -128, 127))
    return codes, scales


@pytest.mark.parametrize("columns", [64, 77])
def test_equals_the_restatement(spec, dtype, columns):
    weight = spec.edges(columns, dtype, TIES)
    parts = Int8().quantize(weight)
    codes, scales = restated(spec, weight)
    assert parts["weight"].dtype is torch.int8
    assert parts["scale"].dtype is torch.float32
    np.testing.assert_array_equal(parts["scale"].numpy(), scales)
    np.testing.assert_array_equal(parts["weight"].numpy(), codes)


def test_one_scale_for_the_weight_stands_in_every_row(spec, dtype):
    weight = spec.edges(48, dtype, TIES)[[0, 3, 5, 9]]
    quantizer = Int8(per_channel=False)
    parts = quantizer.quantize(weight, **quantizer.observe(weight))
    codes, scales = restated(spec, weight, float(weight.abs().max()))
    np.testing.assert_array_equal(parts["scale"].numpy(), scales)
    np.testing.assert_array_equal(parts["weight"].numpy(), codes)


@pytest.mark.parametrize("columns", [64, 77])
def test_parity_equals_the_restatement(spec, dtype, columns):
    weight = spec.edges(columns, dtype, TIES)
    parts = Int8(numerics="lightx2v").quantize(weight)
    codes, scales = reference(spec, weight)
    assert parts["scale"].dtype is dtype
    np.testing.assert_array_equal(parts["scale"].float().numpy(), scales)
    np.testing.assert_array_equal(parts["weight"].numpy(), codes)


def test_bytes_by_hand():
    weight = torch.tensor([[127.0, 0.5, 1.5, -2.5, -127.0], [0.0, -0.0, 0.0, 0.0, 0.0], [254.0, 1.0, 3.0, -5.0, 0.99]])
    parts = Int8().quantize(weight)
    assert parts["scale"].tolist() == [[1.0], [1.0], [2.0]]
    assert parts["weight"].tolist() == [[127, 0, 2, -2, -127], [0, 0, 0, 0, 0], [127, 0, 2, -2, 0]]


def test_parity_by_hand():
    # bf16(1e-5) / 127 in bf16; a bf16 quotient of 126.5 is a tie
    parts = Int8(numerics="lightx2v").quantize(torch.tensor([[0.0, 0.0], [127.0, -126.5]], dtype=torch.bfloat16))
    assert parts["scale"].view(torch.int16).tolist() == [[0x33A9], [0x3F80]]
    assert parts["weight"].tolist() == [[0, 0], [127, -126]]
    # fp16 cannot hold 1e-5 / 127 better than as its smallest number
    assert Int8(numerics="lightx2v").quantize(torch.zeros(1, 2).half())["scale"].tolist() == [[2.0**-24]]


def test_tiny_rows_keep_a_normal_scale():
    weight = torch.tensor([[2.0**-130, -(2.0**-127)], [2.0**-119, 0.0]])
    parts = Int8().quantize(weight)
    assert parts["scale"].tolist() == [[2.0**-126], [1.0078125 * 2.0**-126]]
    assert parts["weight"].tolist() == [[0, 0], [127, 0]]


@pytest.mark.parametrize("per_channel", [True, False])
def test_asymmetric_equals_the_restatement(spec, dtype, per_channel):
    weight = spec.edges(50, dtype, TIES)
    weight = weight[[0, 1, 3, 6, 9, 11, 13]]
    weight[0] = weight[0].abs() + 0.25
    quantizer = Int8(symmetric=False, per_channel=per_channel)
    parts = quantizer.quantize(weight, **quantizer.observe(weight))
    rows = weight.float().numpy()
    for r, row in enumerate(rows):
        of = row if per_channel else rows
        low, high = F32(max(-of.min(), 0)), F32(max(of.max(), 0))
        span = low / F32(255) + high / F32(255)
        scale = F32(1) if span == 0 else max(spec.bf16(span), F32(2.0**-126))
        zero = int(np.clip(np.rint(low / scale - F32(128)), -128, 127))
        at = r if per_channel else 0
        assert parts["scale"].reshape(-1)[at].item() == scale
        assert parts["zero_point"].reshape(-1)[at].item() == zero
        expected = [int(np.clip(np.rint(value / scale) + zero, -128, 127)) for value in row]
        assert parts["weight"][r].tolist() == expected
    assert parts["zero_point"].dtype is torch.int8
    error = quantizer.dequantize(parts) - weight.float()
    assert (error.abs() <= 1.5 * quantizer.quantization_step(parts)).all()


def test_asymmetric_by_hand():
    weight = torch.tensor([[0.0, 255.0, 100.0, 0.5]])
    quantizer = Int8(symmetric=False)
    parts = quantizer.quantize(weight)
    assert parts["scale"].item() == 1.0
    assert parts["zero_point"].item() == -128
    assert parts["weight"].tolist() == [[-128, 127, -28, -128]]
    assert quantizer.dequantize(parts).tolist() == [[0.0, 255.0, 100.0, 0.0]]


def test_mse_clips_only_where_it_helps(spec, dtype):
    noise = torch.randn(12, 4096, generator=torch.Generator().manual_seed(3)).to(dtype)
    for weight, gain in ((spec.edges(512, dtype, TIES), 1.00001), (noise, 0.985)):
        for symmetric in (True, False):
            errors = []
            for rule in ("absmax", "mse"):
                quantizer = Int8(scale_rule=rule, symmetric=symmetric)
                restored = quantizer.dequantize(quantizer.quantize(weight)).double()
                errors.append((restored - weight.double()).square().sum(1))
            assert (errors[1] <= errors[0] * (1 + 1e-5)).all()
            assert errors[1].sum() < (gain if symmetric else 1.00001) * errors[0].sum()


def test_options_that_exclude_each_other():
    with pytest.raises(Refused, match="per_channel: false is not what LightX2V's converter does"):
        Int8(numerics="lightx2v", per_channel=False)
    with pytest.raises(Refused, match="symmetric: false"):
        Int8(numerics="lightx2v", symmetric=False)
    with pytest.raises(Refused, match="scale_rule: mse"):
        Int8(numerics="lightx2v", scale_rule="mse")
    with pytest.raises(Refused, match="needs per_channel: true"):
        Int8(per_channel=False, scale_rule="mse")
    with pytest.raises(Refused, match="did you mean 'absmax'"):
        Int8(scale_rule="abs_max")
    assert Int8(numerics="lightx2v").required_target == "lightx2v"
    assert Int8(numerics="lightx2v").passthrough_dtype == "float32"
    assert Int8().required_target is None
    assert Int8().passthrough_dtype is None
