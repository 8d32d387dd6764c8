"""The kit for quantizers: how close to the weights what comes back is."""

from __future__ import annotations

import torch

from .quantizer_trials import QuantizerTrials
from .samples import norm, sample_weight

ROUNDING = 0.6
"""Steps; rounding to the nearest stays below a half."""

CLIPPED = 0.05
"""Share of the elements that a scale may leave outside of the range."""

SMALLEST_SHARE = 1 / 20
"""Of the steps, below which an error is none of rounding: uniform ones make 0.29."""


class QuantizerErrors(QuantizerTrials):
    """Errors are those of rounding, and nothing overflows or vanishes."""

    def test_the_round_trip_is_within_the_declared_error(self) -> None:
        for at, weight in self._samples(("ordinary", "one sign")):
            self._check_error(at, weight)

    def test_errors_are_those_of_rounding(self) -> None:
        """Half a step at most where nothing is clipped, and no less than rounding alone makes of them."""
        for at, weight in self._samples(("ordinary",)):
            parts = self._quantize(weight)
            error, step = self._decoded(weight, parts).double() - weight.double(), self._steps(weight, parts)
            if step is None:
                continue
            beyond = float((error.abs() > ROUNDING * step.double()).double().mean())
            assert beyond <= CLIPPED, f"{at}: {beyond:.0%} of the errors are above {ROUNDING} steps; is it rounded?"
            small = SMALLEST_SHARE * norm(step)
            assert norm(error) >= small, f"{at}: error {norm(error):.4g}, far below the steps ({norm(step):.4g})"

    def test_what_comes_back_is_as_large_as_what_went_in(self) -> None:
        for at, weight in self._samples(("ordinary",)):
            restored, source = self._restored(weight).double(), weight.double()
            size = float((restored * source).sum() / source.square().sum())
            share = norm(restored - source) / norm(source)
            allowed = min(max(0.003, 4 * share**2, 4 * share / weight.numel() ** 0.5), 0.3)  # few errors: by chance
            assert abs(size - 1) <= allowed, f"{at}: comes back {size:.4f} times as large"

    def test_small_values(self) -> None:
        """They lose no more than others of the same shape: no scale underflows."""
        if "F32" not in self.dtypes:
            return
        ordinary = sample_weight(self.shapes[0], "F32")
        small = ordinary * self.smallest
        usual, found = (
            norm(self._restored(weight).double() - weight.double()) / norm(weight) for weight in (ordinary, small)
        )
        at = f"F32 {list(small.shape)}, around {self.smallest}"
        assert found <= 2 * usual, f"{at}: relative error {found:.4g}, {usual:.4g} of larger ones; a scale underflows"

    def test_zero_rows(self) -> None:
        for at, weight in self._samples(("zero rows",)):
            self._check_finite(at, weight, "a scale of 0 divides to NaN")
            self._check_error(at, weight)

    def test_zeros(self) -> None:
        for at, weight in self._samples(("zeros",)):
            self._check_finite(at, weight, "a scale of 0 divides to NaN")
            wrong = int(torch.count_nonzero(self._restored(weight)))
            assert not wrong, f"{at}: {wrong} zeros come back as something else"

    def test_one_outlier(self) -> None:
        for at, weight in self._samples(("one outlier",)):
            self._check_finite(at, weight, "something overflows")
            self._check_error(at, weight)

    def test_dtypes(self) -> None:
        for dtype in self.dtypes:
            weight = sample_weight(self.shapes[0], dtype)
            self._check_finite(f"{dtype}", weight, "something overflows")
            parts = self._quantize(weight)
            self._decoded(weight, parts)
            self._steps(weight, parts)
