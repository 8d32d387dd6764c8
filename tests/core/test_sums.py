"""Error sums against numpy in float64, compiled and in torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from converter_core import sums
from converter_core.sums import Sums

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", COLUMNS)
def test_they_are_those_of_numpy(columns: int, dtype: torch.dtype) -> None:
    source, decoded = pair(7, columns, dtype)
    step = torch.full((7, 1), 0.25).expand(7, columns)
    found = Sums()
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
    whole, turned = Sums(), Sums()
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
    found = Sums()
    found.add(0, source, decoded, None)
    assert not found.finite
    assert not found.ok


@pytest.mark.parametrize("shape", [(), (5,), (4, 3, 2, 2), (0, 8), (8, 0)])
def test_every_shape(shape: tuple[int, ...]) -> None:
    source = torch.ones(shape, dtype=torch.bfloat16)
    found = Sums()
    found.add(0, source, torch.full(shape, 1.5), None)
    assert found.error == 0.25 * source.numel()
    assert found.signal == source.numel()
    assert found.worst.position == (tuple(0 for _ in shape) if source.numel() else ())


def test_a_long_row_loses_nothing() -> None:
    """In float32 alone, ones would stop counting at 2^24."""
    source = torch.ones(1, (1 << 25) + 3)
    found = Sums()
    found.add(0, source, source * 2, None)
    assert (found.error, found.signal, found.cross) == (source.numel(),) * 3
