"""Error sums against numpy in float64, compiled and in torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from converter_core.verification import error_stats as sums
from converter_core.verification.error_stats import ErrorStats

SOURCE_DTYPES = [torch.bfloat16, torch.float16, torch.float32]
COLUMNS = [1, 15, 16, 17, 100, 4096, 4111, 13824]
"""Around what the loop takes at a time."""


@pytest.fixture(scope="module", params=["compiled", "torch"], autouse=True)
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "compiled":
        if sums._library is None:
            pytest.skip("the sums are not compiled")
        yield request.param
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums, "_library", None)
        yield request.param


def pair(rows: int, columns: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * columns)
    source = torch.randn(rows, columns, generator=generator).to(dtype)
    return source, source.float() + 0.03 * torch.randn(rows, columns, generator=generator)


@pytest.mark.parametrize("dtype", SOURCE_DTYPES)
@pytest.mark.parametrize("columns", COLUMNS)
def test_they_are_those_of_numpy(columns: int, dtype: torch.dtype) -> None:
    source, decoded = pair(7, columns, dtype)
    step = torch.full((7, 1), 0.25).expand(7, columns)
    found = ErrorStats()
    for at in (0, 4):
        found.add(at, source[at : at + 4], decoded[at : at + 4], step[at : at + 4])
    s, d = source.float().numpy().astype(np.float64), decoded.numpy().astype(np.float64)
    e = (decoded.numpy() - source.float().numpy()).astype(np.float64)
    assert found.error == pytest.approx((e * e).sum(), rel=2e-6)
    assert found.signal == pytest.approx((s * s).sum(), rel=2e-6)
    assert found.cross == pytest.approx((s * e).sum(), abs=2e-6 * math.sqrt((s * s).sum() * (e * e).sum()))
    assert found.step == pytest.approx(7 * columns * 0.25**2)
    assert found.cosine == pytest.approx((s * d).sum() / math.sqrt((s * s).sum() * (d * d).sum()), rel=1e-6)
    assert found.relative_error == pytest.approx(math.sqrt((e * e).sum() / (s * s).sum()), rel=1e-6)
    worst = np.unravel_index(np.abs(e).argmax(), e.shape)
    assert found.worst.position == tuple(map(int, worst))
    assert found.worst.error == np.abs(e).max()


def test_a_view_is_compared_by_its_elements() -> None:
    source, decoded = pair(6, 40, torch.bfloat16)
    whole, turned = ErrorStats(), ErrorStats()
    whole.add(0, source, decoded, None)
    turned.add(0, source.t().contiguous().t(), decoded.t().contiguous().t(), None)
    assert (turned.error, turned.signal, turned.cross, turned.worst) == (
        whole.error,
        whole.signal,
        whole.cross,
        whole.worst,
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 16, 39])
def test_what_is_not_finite_is_seen(bad: float, at: int) -> None:
    source, decoded = pair(3, 40, torch.bfloat16)
    decoded[1, at] = bad
    found = ErrorStats()
    found.add(0, source, decoded, None)
    assert not found.finite
    assert not found.ok


@pytest.mark.parametrize("shape", [(), (5,), (4, 3, 2, 2), (0, 8), (8, 0)])
def test_every_shape(shape: tuple[int, ...]) -> None:
    source = torch.ones(shape, dtype=torch.bfloat16)
    found = ErrorStats()
    found.add(0, source, torch.full(shape, 1.5), None)
    assert found.error == 0.25 * source.numel()
    assert found.signal == source.numel()
    assert found.worst.position == (tuple(0 for _ in shape) if source.numel() else ())


def test_a_long_row_loses_nothing() -> None:
    """In float32 alone, ones would stop counting at 2^24."""
    source = torch.ones(1, (1 << 25) + 3)
    found = ErrorStats()
    found.add(0, source, source * 2, None)
    assert (found.error, found.signal, found.cross) == (source.numel(),) * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("columns", [7, 4111])
@pytest.mark.parametrize("magnitude", [1e20, 1.0, 1e-12, 1e-20, 1e-24, 1e-37])
def test_one_percent_is_one_percent_at_every_magnitude(magnitude: float, columns: int, dtype: torch.dtype) -> None:
    source = (torch.randn(5, columns, generator=torch.Generator().manual_seed(1)) * magnitude).to(dtype)
    check(source, source.float() * 1.01, torch.full((5, 1), magnitude).expand(5, columns))


def test_magnitudes_may_be_mixed() -> None:
    """Rows of 1e20 beside rows of 1e-24, both in one run, and zeros."""
    noise = torch.randn(6, 5000, generator=torch.Generator().manual_seed(2))
    source = noise * torch.tensor([1e20, 1e-24, 1.0, 0.0, 1e-37, 1e-20]).unsqueeze(1)
    check(source, source * 1.01, source.abs())
    for row in range(6):
        check(source[row : row + 1], source[row : row + 1] * 1.01, source[row : row + 1].abs())
    turned = source.t().contiguous()
    check(turned, turned * 1.01, turned.abs())


def test_an_error_too_small_to_square_in_float32_is_no_exact_copy() -> None:
    source = torch.ones(2, 64)
    source[:, 1] = 0
    decoded = source.clone()
    decoded[1, 1] = 1e-30
    found = check(source, decoded, torch.ones(2, 64))
    assert found.error == pytest.approx(1e-60, rel=1e-6)
    assert found.worst.position == (1, 1)


def check(source: torch.Tensor, decoded: torch.Tensor, step: torch.Tensor) -> ErrorStats:
    """Against sums in float64 of the same float32 numbers."""
    found = ErrorStats()
    found.add(0, source, decoded, step)
    s, t = source.float().numpy().astype(np.float64), step.numpy().astype(np.float64)
    e = (decoded.numpy() - source.float().numpy()).astype(np.float64)
    assert found.error == pytest.approx((e * e).sum(), rel=2e-6, abs=0)
    assert found.signal == pytest.approx((s * s).sum(), rel=2e-6, abs=0)
    assert found.cross == pytest.approx((s * e).sum(), rel=2e-6, abs=0)
    assert found.step == pytest.approx((t * t).sum(), rel=2e-6, abs=0)
    if found.signal:
        assert found.relative_error == pytest.approx(math.sqrt((e * e).sum() / (s * s).sum()), rel=1e-6, abs=0)
    return found
