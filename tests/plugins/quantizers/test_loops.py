"""The compiled loops: there where they can be, and their bytes are torch's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig

import pytest
import torch

from converter_core.api.quantizers import Quantizer
from converter_plugins.quantizers import _loops, fp8, int8, mxfp4, mxfp6, mxfp8, nvfp4

QUANTIZERS = [
    *(int8.Int8(**options) for options in ({}, {"per_channel": False}, {"scale_rule": "mse"}, {"symmetric": False})),
    *(fp8.Fp8(**options) for options in ({}, {"per_channel": False}, {"scale_rule": "absmax"})),
    *(mxfp4.Mxfp4(scale_rule=rule) for rule in ("mse", "rceil", "floor", "even")),
    mxfp6.Mxfp6(),
    mxfp8.Mxfp8(),
    *(nvfp4.Nvfp4(scale_rule=rule) for rule in ("mse", "absmax", "four_over_six")),
    *(scheme(numerics="lightx2v") for scheme in (int8.Int8, fp8.Fp8, mxfp4.Mxfp4, nvfp4.Nvfp4)),
]
COLUMNS = [32, 96, 1056, 4128]
"""Below, and beyond but no multiple of, what the loops take at a time."""


@pytest.fixture(scope="module", autouse=True)
def loops() -> None:
    """Both are asked here; not one after the other."""


def loaded(environment: dict[str, str]) -> str:
    show = "from converter_plugins.quantizers import _loops; print(_loops._library is not None)"
    done = subprocess.run(
        [sys.executable, "-c", show], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_compiled_where_there_is_a_compiler() -> None:
    compiler = shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0])
    if compiler is None:
        pytest.skip("no C compiler here")
    assert loaded({"CONVERTER_PURE_TORCH": ""}) == "True"


def test_the_environment_turns_them_off() -> None:
    assert loaded({"CONVERTER_PURE_TORCH": "1"}) == "False"


def every_number(dtype: torch.dtype) -> torch.Tensor:
    """All finite numbers of a dtype; of float32 those whose first 16 bits are any and the rest telling."""
    bits = torch.arange(1 << 16, dtype=torch.int32)
    if dtype is torch.float32:
        rest = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
        values = ((bits << 16).unsqueeze(1) | rest).view(-1).view(torch.float32)
    else:
        values = bits.to(torch.int16).view(dtype)
    return values[values.float().isfinite()]


def weights(columns: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(columns)
    noise = torch.randn(24, columns, generator=generator).to(dtype)
    spread = (noise.float() * torch.exp2(torch.randint(-30, 14, noise.shape, generator=generator))).to(dtype)
    numbers = every_number(dtype)
    numbers = numbers[torch.randperm(len(numbers), generator=generator)]
    return [noise, spread, numbers[: len(numbers) // columns * columns].view(-1, columns), torch.zeros_like(noise)]


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=str)
@pytest.mark.parametrize("columns", COLUMNS)
def test_bytes_are_those_of_torch(
    quantizer: Quantizer, columns: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if _loops._library is None:
        pytest.skip("the loops are not compiled")
    for weight in weights(columns, dtype):
        compiled = quantizer.quantize(weight, **quantizer.observe(weight))
        with monkeypatch.context() as patch:
            patch.setattr(_loops, "_library", None)
            expected = quantizer.quantize(weight, **quantizer.observe(weight))
        assert compiled.keys() == expected.keys()
        for role, part in expected.items():
            assert compiled[role].dtype is part.dtype
            assert torch.equal(compiled[role].reshape(-1).view(torch.uint8), part.reshape(-1).view(torch.uint8)), role


@pytest.mark.parametrize("scale", [1.0, 2.0**-20, 3e38, 2.0**-140, 0.0, -0.75])
def test_e4m3_codes_come_back_as_in_torch(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    if _loops._library is None:
        pytest.skip("the loops are not compiled")
    codes = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(torch.float8_e4m3fn)
    parts = {"weight": codes, "scale": torch.tensor([[1.0], [scale], [0.3]])}
    value, step = fp8.Fp8().dequantize(parts), fp8.Fp8().quantization_step(parts)
    assert torch.equal(value.isnan(), (torch.arange(256) % 128 == 127).expand(3, 256))
    assert value[0, :3].tolist() == [0.0, 2.0**-9, 2.0**-8]
    assert value[0, 0x7E] == 448
    assert step[0, [0, 8, 16, 0x7E, 0xFE]].tolist() == [2.0**-9, 2.0**-9, 2.0**-8, 32.0, 32.0]
    monkeypatch.setattr(_loops, "_library", None)
    expected, expected_step = fp8.Fp8().dequantize(parts), fp8.Fp8().quantization_step(parts)
    numbers = ~expected.isnan()
    assert torch.equal(value[numbers].view(torch.int32), expected[numbers].view(torch.int32))
    ordinary = ~codes.float().isnan()
    assert torch.equal(step[ordinary].view(torch.int32), expected_step[ordinary].view(torch.int32))
