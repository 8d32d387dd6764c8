"""The specification once more: numpy scalars, plain loops, exact comparisons; nothing shared with the quantizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from converter_plugins.quantizers import _gguf_loops, _loops

F32 = np.float32
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
E4M3 = [m * 2.0**-9 if e == 0 else (8 + m) * 2.0 ** (e - 10) for e in range(16) for m in range(8)][:127]
SIXTH = np.uint32(0x3E2AAAAB).view(F32)


def nearest(grid: list[float], value: float) -> int:
    """Index of the grid value nearest to a magnitude; ties to the even index; saturates."""
    best = 0
    for code in range(1, len(grid)):
        was, now = abs(value - grid[best]), abs(value - grid[code])
        if now < was or (now == was and code % 2 == 0):
            best = code
    return best


def e2m1(value: float) -> int:
    if np.isnan(value):
        return 7
    return nearest(E2M1, min(abs(float(value)), 6.0)) | (8 if np.signbit(value) else 0)


def e4m3(value: float) -> int:
    return nearest(E4M3, min(abs(float(value)), 448.0)) | (128 if np.signbit(value) else 0)


def bf16(value: Any) -> np.float32:
    """A double or a float rounded once to 8 significant bits, ties to even."""
    value = float(value)
    if value == 0 or not np.isfinite(value):
        return F32(value)
    mantissa, exponent = np.frexp(value)
    bits = 8 if exponent >= -125 else 8 - (-125 - int(exponent))
    scaled = mantissa * 2.0**bits  # exact; np.rint rounds half to even
    return F32(np.ldexp(np.rint(scaled), int(exponent) - bits)) if bits >= 0 else F32(0)


def in_dtype(value: Any, dtype: torch.dtype) -> np.float32:
    """float32 rounded to a source dtype."""
    if dtype is torch.float16:
        return F32(np.float16(value))
    return bf16(value) if dtype is torch.bfloat16 else F32(value)


def packed(codes: np.ndarray) -> np.ndarray:
    out = np.zeros((codes.shape[0], codes.shape[1] // 2), dtype=np.uint8)
    for r in range(codes.shape[0]):
        for j in range(out.shape[1]):
            out[r, j] = codes[r, 2 * j] + 16 * codes[r, 2 * j + 1]
    return out


def edges(columns: int, dtype: torch.dtype, ties: list[float]) -> torch.Tensor:
    """Rows that go wrong in practice. ties: values at rounding ties relative to a largest value of ``ties[0]``."""
    generator = torch.Generator().manual_seed(columns)

    def noise(scale: float = 1.0) -> torch.Tensor:
        return torch.randn(columns, generator=generator, dtype=torch.float64) * scale

    tie = torch.tensor((ties * columns)[:columns], dtype=torch.float64)
    signs = torch.tensor([1.0, -1.0, -1.0] * columns, dtype=torch.float64)[:columns]
    largest = min(torch.finfo(dtype).max, 3.0e38)
    rows = [
        noise(),
        torch.zeros(columns, dtype=torch.float64),
        -torch.zeros(columns, dtype=torch.float64),
        tie,
        tie * signs * 2.0**-7,
        tie * signs * 1.375,
        noise(1e-7),
        noise(float(torch.finfo(dtype).tiny) * 0.75),
        noise(2.0**-20),
        torch.cat([noise(), torch.tensor([40.0], dtype=torch.float64)])[1:],
        torch.cat([torch.tensor([-largest], dtype=torch.float64), noise()])[:-1],
        torch.full((columns,), -0.5, dtype=torch.float64),
        noise() ** 5 * 1e-3,
        (torch.arange(columns) % 37 - 18).double() * 0.03125,
        torch.exp2(-(torch.arange(columns) % 40).double()) * signs,
    ]
    return torch.stack(rows).float().to(dtype)


@pytest.fixture(scope="session")
def spec() -> SimpleNamespace:
    functions: dict[str, Callable[..., Any]] = {
        "e2m1": e2m1,
        "e4m3": e4m3,
        "bf16": bf16,
        "in_dtype": in_dtype,
        "packed": packed,
        "edges": edges,
    }
    return SimpleNamespace(E2M1=E2M1, E4M3=E4M3, SIXTH=SIXTH, **functions)


@pytest.fixture(params=[torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(scope="module", params=["compiled", "torch"], autouse=True)
def loops(request: pytest.FixtureRequest) -> Iterator[str]:
    """All that is said of the quantizers holds with the compiled loops and without."""
    if request.param == "compiled":
        if _loops._library is None or not _gguf_loops._libraries:
            pytest.skip("the loops are not compiled")
        yield request.param
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_loops, "_library", None)
        patch.setattr(_gguf_loops, "_libraries", {})
        yield request.param
