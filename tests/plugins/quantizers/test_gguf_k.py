"""K-quants: layout against gguf-py's dequantize and by hand, scales against llama.cpp's search, loops against torch."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from converter_core.api import TensorSpec
from converter_core.errors import Refused
from converter_plugins.quantizers import _gguf_loops
from converter_plugins.quantizers.gguf_blocks import Q8_0
from converter_plugins.quantizers.gguf_k import Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, KQuant, converter_quantizers

from . import llama_cpp

HALVES = {"q6_k": (208,), "q5_k": (0, 2), "q4_k": (0, 2), "q3_k": (108,), "q2_k": (80, 82)}
"""Where the fp16 numbers of a block stand."""


@pytest.fixture(params=[Q6_K(), Q5_K(), Q4_K(), Q3_K(), Q2_K()], ids=lambda scheme: scheme.name)
def scheme(request: pytest.FixtureRequest) -> KQuant:
    return request.param


def type_of(scheme: KQuant) -> GGMLQuantizationType:
    return GGMLQuantizationType[scheme.name.upper()]


def weights(spec, dtype: torch.dtype) -> torch.Tensor:
    """What goes wrong in practice, and noise of every size; an odd number of blocks."""
    edges = spec.edges(768, dtype, [1.0, 1 / 30, -3 / 30, 0.5 / 63, -0.5, 1 / 6, -0.0])
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(8, 768, generator=generator) * torch.exp2(
        torch.randint(-40, 9, (8, 768 // 32), generator=generator).float().repeat_interleave(32, 1)
    )
    smooth = torch.randn(8, 768, generator=generator) * 0.02
    return torch.cat([edges, noise.to(dtype), smooth.to(dtype), smooth.abs().to(dtype)])


def test_loops_give_the_bytes_of_torch(scheme: KQuant, spec, dtype: torch.dtype, loops: str, monkeypatch) -> None:
    if loops == "torch":
        pytest.skip("compared once")
    weight = weights(spec, dtype)
    compiled = scheme.quantize(weight)["weight"]
    monkeypatch.setattr(_gguf_loops, "_libraries", {})
    assert torch.equal(compiled, scheme.quantize(weight)["weight"])


def test_values_are_those_of_gguf_py(scheme: KQuant) -> None:
    """Of any bytes whose scales are finite."""
    generator = torch.Generator().manual_seed(5)
    packed = torch.randint(0, 256, (32, 2 * scheme.nbytes), dtype=torch.uint8, generator=generator)
    for at in HALVES[scheme.name]:
        packed.view(-1, scheme.nbytes)[:, at + 1] &= 0xBF
    expected = gguf.quants.dequantize(packed.numpy(), type_of(scheme))
    made = scheme.dequantize({"weight": packed}).numpy()
    np.testing.assert_array_equal(made.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("kind", ["gaussian", "outliers", "heavy tails", "one sign"])
def test_squared_error_is_not_above_that_of_llama_cpp(scheme: KQuant, kind: str) -> None:
    generator = torch.Generator().manual_seed(11)
    weight = torch.randn(12, 1024, generator=generator) * 0.02
    if kind == "outliers":
        weight *= torch.randn(12, 1, generator=generator).mul(0.5).exp()
        weight.view(-1)[::997] *= 8
    elif kind == "heavy tails":
        weight /= torch.randn(12, 1024, 4, generator=generator).square().mean(-1).sqrt()
    elif kind == "one sign":
        weight.abs_()
    weight = weight.bfloat16().float()
    theirs = np.square(llama_cpp.values(weight.numpy(), scheme.bits).astype(np.float64) - weight.numpy()).sum()
    ours = (scheme.dequantize(scheme.quantize(weight)).double() - weight).square().sum().item()
    # figures of larger weights: docs/targets/gguf.md; affine codes of one sign have one number less to choose
    assert ours <= theirs * (1.0 if kind == "one sign" else 0.99), ours / theirs


def test_q4_k_by_hand() -> None:
    weight = torch.zeros(1, 256)
    weight[0, :16] = weight[0, 16:32] = 63.0 * torch.arange(16)  # from 0 in steps of 63: scale code 63 of unit 1
    weight[0, 224:256] = -126.0  # a minimum, and nothing above it: code 63 of unit 2
    packed = bytes(Q4_K().quantize(weight)["weight"][0].tolist())
    assert packed[:4] == bytes.fromhex("003C 0040")
    # the last group's minimum: its low bits beside, its high bits above the fourth of the first
    assert packed[4:16] == bytes([63, 0, 0, 0, 0, 0, 0, 0xC0, 0, 0, 0, 0xF0])
    assert packed[16:48] == bytes(range(16)) * 2
    assert packed[48:] == bytes(96)
    assert torch.equal(Q4_K().dequantize(Q4_K().quantize(weight)), weight)


def test_q6_k_by_hand() -> None:
    weight = torch.zeros(1, 256)
    weight[0, :16] = 128.0 * torch.arange(-32, -16)  # steps of 128: scale code -128 of unit -1
    weight[0, 64:80] = 1.0 * torch.arange(-32, -16)
    packed = bytes(Q6_K().quantize(weight)["weight"][0].tolist())
    assert packed[:16] == bytes(code | code << 4 for code in range(16))  # columns 0 and 64 share a byte
    assert packed[16:128] == bytes(112)
    assert {byte & 0b110011 for byte in packed[128:144]} == {0}  # codes 0 to 15 in columns 0 and 64
    assert {byte & 0b11001100 for byte in packed[128:144]} == {0b10001000}  # zeros are code 32
    assert packed[192:208] == bytes([0x80, 0, 0, 0, 0xFF, *bytes(11)])
    assert packed[208:] == bytes.fromhex("00BC")
    assert torch.equal(Q6_K().dequantize(Q6_K().quantize(weight)), weight)


def test_what_the_other_formats_can_hold_comes_back() -> None:
    steps = torch.arange(256)
    five = torch.where(steps < 32, 63.0 * (steps % 32), 0.0)[None]
    three = torch.where(steps < 16, 32.0 * (steps % 8 - 4), 0.0)[None]
    two = torch.where(steps < 16, 15.0 * (steps % 4) - 30.0, 0.0)[None]
    for scheme, weight in ((Q5_K(), five), (Q3_K(), three), (Q2_K(), two)):
        assert torch.equal(scheme.dequantize(scheme.quantize(weight)), weight)
        assert scheme.quantization_step(scheme.quantize(weight))[0, 0] == weight.unique().diff().min()


def test_what_fp16_cannot_hold_stays_finite(scheme: KQuant) -> None:
    weight = torch.zeros(4, 256)
    weight[0, 3], weight[0, 4] = 3.0e38, -3.0e38
    weight[1, 3] = 2.0**-149
    weight[2] = -3.0e38
    weight[3, ::2] = 2.0**-30
    parts = scheme.quantize(weight)
    values, steps = scheme.dequantize(parts), scheme.quantization_step(parts)
    assert values.isfinite().all()
    assert steps.isfinite().all()
    assert not values[1].any()
    assert (steps >= 2.0**-24).all()


def test_columns_that_fill_no_block(scheme: KQuant) -> None:
    with pytest.raises(Refused, match="has 128 columns; needs a multiple of 256"):
        scheme.quantize(torch.ones(2, 128))


def test_other_columns_fall_back_to_q8_0(scheme: KQuant) -> None:
    assert scheme.fallback(TensorSpec("BF16", (4, 320))) == Q8_0()
    assert scheme.fallback(TensorSpec("BF16", (4, 512))) is None
    assert scheme.fallback(TensorSpec("BF16", (4, 100))) is None


def test_formats(scheme: KQuant) -> None:
    assert [cls.name for cls in converter_quantizers()] == ["q6_k", "q5_k", "q4_k", "q3_k", "q2_k"]
    assert gguf.GGML_QUANT_SIZES[type_of(scheme)] == (256, scheme.nbytes)
    assert scheme.format.packing == f"gguf {scheme.name}"
    assert scheme.format.symmetric == (scheme.name in ("q6_k", "q3_k"))
