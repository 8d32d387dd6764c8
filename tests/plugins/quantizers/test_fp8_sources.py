"""Weights that were only cast to fp8, without scales, are ordinary values."""

from __future__ import annotations

import pytest
import torch

from converter_core.api.tensors import same
from converter_core.plugins.registry import load_plugins
from converter_plugins.quantizers._bits import admit


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_finite_value_is_taken_exactly(dtype):
    codes = torch.arange(256, dtype=torch.uint8).view(dtype)
    codes = codes[codes.float().isfinite()].view(1, -1)
    assert torch.equal(admit(codes).double(), codes.double())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("scheme", ["int8", "fp8", "mxfp4", "nvfp4"])
def test_the_same_codes_as_of_its_bf16_upcast(scheme, dtype):
    cast = torch.randn(32, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    quantizer = load_plugins().quantizers[scheme]()
    inputs = [quantizer.observe(weight) if hasattr(quantizer, "observe") else {} for weight in (cast, cast.bfloat16())]
    one = quantizer.quantize(cast, **(inputs[0] or {}))
    other = quantizer.quantize(cast.bfloat16(), **(inputs[1] or {}))
    assert set(one) == set(other)
    assert all(same(one[role], other[role]) for role in one)
