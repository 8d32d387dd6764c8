"""Blocks of 32 against gguf-py, the reference implementation in numpy, and by hand."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from converter_core.errors import Refused
from converter_plugins.quantizers.gguf_blocks import Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Block, converter_quantizers

BLOCKS = [Q8_0(), Q5_1(), Q5_0(), Q4_1(), Q4_0()]
TIES = [
    1.0,
    0.5 / 127,
    1.5 / 127,
    2.5 / 127,
    0.5 / 8,
    1.5 / 8,
    2.5 / 16,
    -0.5 / 127,
    -1.5 / 8,
    -3.5 / 16,
    -0.0,
    0.49999997,
]


@pytest.fixture(params=BLOCKS, ids=lambda block: block.name)
def block(request: pytest.FixtureRequest) -> Block:
    return request.param


def type_of(block: Block) -> GGMLQuantizationType:
    return GGMLQuantizationType[block.name.upper()]


def weights(spec, dtype: torch.dtype) -> torch.Tensor:
    """What goes wrong in practice, and noise; values that gguf-py cannot store are another test's."""
    edges = spec.edges(96, dtype, TIES).float().clamp(-60000, 60000)
    edges[edges.abs() < 2.0**-100] = 0.0  # beyond, gguf-py multiplies by infinity
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(40, 96, generator=generator) * torch.exp2(
        torch.randint(-26, 9, (40, 1), generator=generator).float()
    )
    return torch.cat([edges, noise]).to(dtype)


def test_bytes_are_those_of_gguf_py(block: Block, spec, dtype: torch.dtype) -> None:
    weight = weights(spec, dtype)
    parts = block.quantize(weight)
    expected = gguf.quants.quantize(weight.float().numpy(), type_of(block))
    assert set(parts) == {"weight"}
    assert parts["weight"].dtype is torch.uint8
    assert parts["weight"].shape == (len(weight), 3 * block.nbytes)
    if block.affine:  # whether a minimum of 0 is -0 depends on the order in which numpy looks
        expected = without_negative_zeros(expected, block.nbytes)
        made = without_negative_zeros(parts["weight"].numpy(), block.nbytes)
    else:
        made = parts["weight"].numpy()
    np.testing.assert_array_equal(made, expected)


def without_negative_zeros(packed: np.ndarray, nbytes: int) -> np.ndarray:
    minimum = packed.copy().reshape(-1, nbytes)
    negative = (minimum[:, 2] == 0) & (minimum[:, 3] == 0x80)
    minimum[negative, 3] = 0
    return minimum.reshape(packed.shape)


def test_values_are_those_of_gguf_py(block: Block) -> None:
    """Of any bytes whose scales are finite."""
    packed = torch.randint(
        0, 256, (64, 2 * block.nbytes), dtype=torch.uint8, generator=torch.Generator().manual_seed(5)
    )
    by_block = packed.view(-1, block.nbytes)
    for high in (1, 3) if block.affine else (1,):
        by_block[:, high] &= 0xBF
    expected = gguf.quants.dequantize(packed.numpy(), type_of(block))
    np.testing.assert_array_equal(block.dequantize({"weight": packed}).numpy().view(np.int32), expected.view(np.int32))


def test_q8_0_by_hand() -> None:
    values = [127.0, -127.0, 0.5, -0.5, 1.5, -2.5, 0.49, 3.0] + [0.0] * 24
    packed = Q8_0().quantize(torch.tensor([values]))["weight"]
    assert bytes(packed[0].tolist()) == bytes.fromhex("003C 7F 81 01 FF 02 FD 00 03") + bytes(24)  # 1.0 is 0x3C00


def test_q4_0_by_hand() -> None:
    # the largest magnitude is 8, so a step is -1: codes are 8 - x rounded, 8 itself is code 0 and -8 saturates at 15
    values = [8.0, -8.0, 1.0, 0.0] + [0.0] * 12 + [7.0, 0.4, -0.6, 2.0] + [0.0] * 12
    packed = Q4_0().quantize(torch.tensor([values]))["weight"]
    assert bytes(packed[0].tolist()) == bytes.fromhex("00BC 10 8F 97 68") + b"\x88" * 12
    assert Q4_0().dequantize({"weight": packed})[0, [0, 1, 2, 16, 17, 18]].tolist() == [8, -7, 1, 7, 0, -1]
    assert Q4_0().quantization_step({"weight": packed}).tolist() == [[1.0] * 32]


def test_q5_1_by_hand() -> None:
    # from -1 to 14.5 in 31 steps of 0.5: codes are 2 (x + 1)
    values = [-1.0, 14.5, 0.0, 7.0] + [-1.0] * 12 + [14.0, -1.0, 7.5, 3.0] + [-1.0] * 12
    packed = Q5_1().quantize(torch.tensor([values]))["weight"]
    # high bits: codes 31 (column 1), 16 (3), 30 (16), 17 (18)
    assert bytes(packed[0].tolist()) == bytes.fromhex("0038 00BC 0A000500 E0 0F 12 80") + bytes(12)
    assert Q5_1().dequantize({"weight": packed}).tolist() == [values]


def test_zero_blocks() -> None:
    assert not Q8_0().quantize(torch.zeros(1, 32))["weight"].any()
    assert bytes(Q4_0().quantize(torch.zeros(1, 32))["weight"][0].tolist()) == b"\x00\x80" + b"\x88" * 16
    assert bytes(Q5_0().quantize(torch.zeros(1, 32))["weight"][0].tolist()) == b"\x00\x80" + b"\xff" * 4 + bytes(16)
    assert not Q4_1().quantize(torch.zeros(1, 32))["weight"].any()


def test_what_fp16_cannot_hold_stays_finite(block: Block) -> None:
    weight = torch.zeros(3, 32)
    weight[0, 3], weight[0, 4] = 3.0e38, -3.0e38
    weight[1, 3] = 2.0**-149
    weight[2, 3] = 2.0**-20
    parts = block.quantize(weight)
    values, steps = block.dequantize(parts), block.quantization_step(parts)
    assert values.isfinite().all()
    assert not values[1].any()
    assert steps.isfinite().all()
    assert (steps[1] == 2.0**-24).all()


def test_columns_that_fill_no_block(block: Block) -> None:
    with pytest.raises(Refused, match="has 48 columns; needs a multiple of 32"):
        block.quantize(torch.ones(2, 48))


def test_formats() -> None:
    assert [cls.name for cls in converter_quantizers()] == ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
    assert [cls().format.symmetric for cls in converter_quantizers()] == [True, False, True, False, True]
    facts = Q5_0().format.facts()
    assert facts == {
        "element": "int5",
        "bits": 5,
        "granularity": "group",
        "group_size": 32,
        "scale_dtype": "F16",
        "symmetric": True,
        "packing": "gguf q5_0",
    }
    for block in BLOCKS:
        assert gguf.GGML_QUANT_SIZES[type_of(block)] == (32, block.nbytes)
