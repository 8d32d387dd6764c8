"""The kit for quantizers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ClassVar

import torch

from ..api.quantizers import Quantizer
from ..api.tensors import same, spec_of
from ..api.values import TensorRef, TensorSpec, WeightInfo
from ..errors import PluginError, Refused
from ..planning.shape_inference import OutputSchema
from ..plugins.registry import load_plugins
from .options import check_class, check_options, variants
from .samples import (
    CASES,
    KERNEL_DTYPES,
    BareTarget,
    OneThread,
    copies,
    difference,
    finite,
    given,
    inputs_of,
    norm,
    sample_weight,
    schema_of,
    slabs,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..api.values import Parts

ODD = ((4, 127), (4, 100), (4, 24), (4, 1), (64,), (2, 3, 64), (0, 64), (4, 0), ())
"""Shapes that many schemes refuse."""

ROUNDING = 0.6
"""Steps; rounding to the nearest stays below a half."""

CLIPPED = 0.05
"""Share of the elements that a scale may leave outside of the range."""

SMALLEST_SHARE = 1 / 20
"""Of the steps, below which an error is none of rounding: uniform ones make 0.29."""

THREADED = 1 << 18
"""Elements of a weight that takes long enough for threads to meet."""


class QuantizerConformance(OneThread):
    """Subclass it with ``quantizer = MyScheme()``; once more for every set of options that takes another path.

    shapes, dtypes: what the scheme takes. weight: for which weight ``inputs`` is asked.
    most_error: Frobenius norm of the error over that of the weight; counts where ``quantization_step`` says nothing.
    smallest: magnitude of the smallest weights that it must keep; more where its scales underflow by their format.
    """

    quantizer: Quantizer
    shapes: ClassVar[Sequence[tuple[int, ...]]] = ((7, 128), (1, 128), (130, 256))
    dtypes: ClassVar[Sequence[str]] = KERNEL_DTYPES
    weight: ClassVar[WeightInfo] = WeightInfo("blocks.0.ffn.0.weight", {"weight": TensorRef("w")}, "linear", "ffn", "0")
    most_error: ClassVar[float] = 0.5
    smallest: ClassVar[float] = 1e-6

    def test_it_is_a_plugin(self) -> None:
        check_class(self.quantizer, Quantizer)

    def test_options_survive_yaml_and_repr(self) -> None:
        check_options(self.quantizer)

    def test_the_trial_run_is_the_result(self) -> None:
        for at, weight in self._samples():
            try:
                schema = self._trial(spec_of(weight))
            except PluginError as error:
                raise AssertionError(f"{at}: the plan, which tries it on zeros, fails: {error}") from None
            planned = {role: spec for role, (spec, _) in schema.outputs.items()}
            made = {role: spec_of(part) for role, part in self._quantize(weight).items()}
            assert made == planned, f"{at}: became {_told(made)}, but zeros became {_told(planned)}"

    def test_the_input_is_not_modified(self) -> None:
        for at, weight in self._samples():
            before = weight.clone()
            around = given(self.quantizer, weight, self.weight)
            assert same(before, weight), f"{at}: statistic changes its input"
            handed = copies(around)
            parts = self.quantizer.quantize(weight, **around)
            assert same(before, weight), f"{at}: quantize changes its input; work on a copy (float() may be none)"
            assert not difference(handed, around), f"{at}: quantize changes what it is given beside the weight"
            kept = copies(parts)
            self.quantizer.dequantize(parts)
            self.quantizer.quantization_step(parts)
            assert not difference(kept, parts), f"{at}: dequantize or step changes the parts"

    def test_it_is_deterministic(self) -> None:
        fresh = dataclasses.replace(self.quantizer)  # type: ignore[type-var]
        for at, weight in self._samples():
            first = copies(self._quantize(weight))
            again = self._quantize(weight)
            assert not difference(first, again), f"{at}: a second run gives {difference(first, again)}"
            other = fresh.quantize(weight.clone(), **given(fresh, weight, self.weight))
            assert not difference(first, other), f"{at}: an equal quantizer gives {difference(first, other)}"

    def test_every_device_gives_the_same_bytes(self) -> None:
        devices = [device for backend in load_plugins().devices.values() for device in backend().devices()]
        for at, weight in self._samples():
            expected = self._quantize(weight)
            for device in devices:
                made = self._quantize(weight.to(device))
                found = difference(expected, made)
                assert not found, f"{at} on {device}: {found}; divide by tensors, add in a fixed order"

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

    def test_one_format_is_stored_in_one_way(self) -> None:
        """Options that change what is stored change the format: targets decide by it."""
        weight = sample_weight(self.shapes[0])
        stored = {role: spec_of(part) for role, part in self._quantize(weight).items()}
        for other in variants(self.quantizer):
            if other.format != self.quantizer.format:
                continue
            try:
                parts = other.quantize(weight, **given(other, weight, self.weight))
            except Refused:
                continue
            made = {role: spec_of(part) for role, part in parts.items()}
            assert made == stored, (
                f"{other} stores {_told(made)}, {self.quantizer} {_told(stored)}: one format for both"
            )

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

    def test_non_contiguous_input(self) -> None:
        for at, weight in self._samples(("ordinary",)):
            expected = self._quantize(weight)
            wide = torch.cat([weight, weight], 1)[:, : weight.shape[1]]
            for layout, view in (("transposed", weight.t().contiguous().t()), ("cut from a wider one", wide)):
                found = difference(expected, self._quantize(view))
                assert not found, f"{at} {layout}: {found}"

    def test_dtypes(self) -> None:
        for dtype in self.dtypes:
            weight = sample_weight(self.shapes[0], dtype)
            self._check_finite(f"{dtype}", weight, "something overflows")
            parts = self._quantize(weight)
            self._decoded(weight, parts)
            self._steps(weight, parts)

    def test_what_quantize_refuses_the_plan_refuses(self) -> None:
        """With the data that it meets, not only with zeros; and what the plan refuses, ``quantize`` does."""
        shapes = (*self.shapes, *ODD)
        for shape in shapes:
            for dtype in (*self.dtypes, "I8"):
                reason = ""
                try:
                    self._trial(TensorSpec(dtype, shape))
                except Refused as refusal:
                    reason = str(refusal) or "no reason"
                except PluginError as error:
                    reason = str(error)
                    if math.prod(shape):
                        at = f"{dtype} {list(shape)}"
                        raise AssertionError(f"{at}: {error}; raise Refused for what it cannot take") from None
                for case in CASES:
                    weight = sample_weight(shape, dtype, case)
                    try:
                        self.quantizer.quantize(weight, **given(self.quantizer, weight, self.weight))
                        failure = ""
                    except Exception as error:
                        failure = f"{type(error).__name__}: {error}"
                    at = f"{dtype} {list(shape)}, {case}"
                    assert not failure or reason, f"{at}: {failure}, but the plan takes it; refuse by shape and dtype"
                    assert failure or not reason, f"{at}: is taken, but the plan refuses it: {reason}"

    def test_stand_ins(self) -> None:
        """Large weights are planned on ``meta``, small ones on zeros; both must say the same."""
        for shape in self.shapes:
            for dtype in self.dtypes:
                zeros = sample_weight(shape, dtype, "zeros")
                expected = {role: spec_of(part) for role, part in self._quantize(zeros).items()}
                try:
                    meta = zeros.to("meta")
                    parts = self.quantizer.quantize(meta, **given(self.quantizer, meta, self.weight))
                    made = {role: spec_of(part) for role, part in parts.items()}
                except Exception as error:
                    raise AssertionError(
                        f"{dtype} {list(shape)} on meta: {type(error).__name__}: {error}; never look at values"
                    ) from error
                assert made == expected, f"{dtype} {list(shape)}: {_told(made)} on meta, {_told(expected)} of zeros"

    def test_row_tile_is_true_for_every_slab_height(self) -> None:
        for at, weight, whole, height in self._heights():
            around = self._slabwise(weight, height)
            made = [self.quantizer.quantize(rows, **around) for rows in slabs(weight, height)]
            try:
                schema = self._trial(spec_of(weight))
            except PluginError as error:
                raise AssertionError(f"{at}: {error}") from None
            for role, expected in whole.items():
                pieces = [parts[role] for parts in made]
                if not schema.row_block or schema.outputs[role][1]:
                    true = same(expected, torch.cat(pieces))
                else:
                    true = all(same(expected, piece) for piece in pieces)
                assert true, f"{at}: {role} is another in slabs of {height} rows; row_block is not true"

    def test_the_statistic_of_slabs_is_that_of_the_whole(self) -> None:
        for at, weight, _, height in self._heights():
            expected = given(self.quantizer, weight, self.weight)
            found = difference(expected, self._slabwise(weight, height))
            assert not found, f"{at}: combined by maximum from slabs of {height} rows: {found}"

    def test_parts_of_rows_stand_for_these_rows(self) -> None:
        """``verify`` reads back slab by slab."""
        for at, weight, whole, height in self._heights():
            if height not in (self.quantizer.row_block, 5 * (self.quantizer.row_block or 1)):
                continue
            restored = slabs(self.quantizer.dequantize(whole), height)
            around = given(self.quantizer, weight, self.weight)
            for number, rows in enumerate(slabs(weight, height)):
                made = self.quantizer.dequantize(self.quantizer.quantize(rows, **around))
                assert same(restored[number], made), (
                    f"{at}: rows from {number * height} of {height} come back otherwise"
                )

    def test_threads_do_not_meet(self) -> None:
        rows, columns = max(THREADED // max(1, self.shapes[0][1]), 1), self.shapes[0][1]
        rows += -rows % (self.quantizer.row_block or 1)
        weights = [weight for _, weight in self._samples(("ordinary", "one outlier"))]
        weights += [
            sample_weight((rows, columns), dtype, case) for dtype in self.dtypes for case in ("mixed", "ordinary")
        ]
        expected = [copies(self._quantize(weight)) for weight in weights]
        with ThreadPoolExecutor(4) as pool:
            for _ in range(3):
                for number, made in enumerate(pool.map(self._quantize, weights)):
                    found = difference(expected[number], made)
                    assert not found, f"in four threads at once: {found}; keep nothing between calls"

    def _samples(self, cases: Sequence[str] = CASES) -> Iterator[tuple[str, Tensor]]:
        for shape in self.shapes:
            for dtype in self.dtypes:
                for case in cases:
                    yield f"{dtype} {list(shape)}, {case}", sample_weight(shape, dtype, case)

    def _heights(self) -> Iterator[tuple[str, Tensor, Parts, int]]:
        """Weights that are cut, what they become whole, and every height of slabs (none for whole-weight schemes)."""
        tile = self.quantizer.row_block
        if not tile:
            return
        rows = 18 if tile < 8 else 4 * tile + tile // 2
        for dtype in self.dtypes:
            weight = sample_weight((rows, self.shapes[0][1]), dtype, "mixed")
            whole = copies(self._quantize(weight))
            for height in range(tile, rows, tile):
                yield f"{dtype} {list(weight.shape)}", weight, whole, height

    def _slabwise(self, weight: Tensor, height: int) -> Mapping[str, Tensor]:
        around = {name: tensor.to(weight.device) for name, tensor in inputs_of(self.quantizer, self.weight).items()}
        total: dict[str, Tensor] = {}
        for rows in slabs(weight, height):
            for name, value in self.quantizer.observe(rows).items():
                total[name] = torch.maximum(total[name], value) if name in total else value
        return {**around, **total}

    def _trial(self, spec: TensorSpec) -> OutputSchema:
        return schema_of(self.quantizer, BareTarget(), self.weight, spec)

    def _quantize(self, weight: Tensor) -> Parts:
        try:
            return self.quantizer.quantize(weight, **given(self.quantizer, weight, self.weight))
        except Warning as warning:
            raise AssertionError(f"{spec_of(weight)}: torch warns, an error in these tests: {warning}") from None
        except Exception as error:
            if tuple(weight.shape)[1:] not in {shape[1:] for shape in self.shapes}:
                raise
            raise AssertionError(
                f"{spec_of(weight)}: {type(error).__name__}: {error}; if the scheme takes no such weights, set shapes "
                "(and dtypes) in the test class to those that it takes"
            ) from error

    def _decoded(self, weight: Tensor, parts: Parts) -> Tensor:
        restored = self.quantizer.dequantize(parts)
        assert restored.dtype == torch.float32, f"dequantize must give float32, not {restored.dtype}"
        assert restored.shape == weight.shape, f"dequantize gives {list(restored.shape)} of {list(weight.shape)}"
        return restored

    def _steps(self, weight: Tensor, parts: Parts) -> Tensor | None:
        step = self.quantizer.quantization_step(parts)
        if step is not None:
            assert step.dtype == torch.float32, f"step must give float32, not {step.dtype}"
            assert step.shape == weight.shape, f"step gives {list(step.shape)} of {list(weight.shape)}"
        return step

    def _restored(self, weight: Tensor) -> Tensor:
        return self._decoded(weight, self._quantize(weight))

    def _check_finite(self, at: str, weight: Tensor, why: str) -> None:
        for role, part in self._quantize(weight).items():
            assert finite(part), f"{at}: {role} has NaN or infinity; {why}"
        assert finite(self._restored(weight)), f"{at}: comes back with NaN or infinity; {why}"

    def _check_error(self, at: str, weight: Tensor) -> None:
        parts = self._quantize(weight)
        error = norm(self._decoded(weight, parts).double() - weight.double())
        step = self._steps(weight, parts)
        if step is None:
            most = self.most_error * norm(weight)
            assert error <= most, f"{at}: error {error:.4g}, more than {self.most_error} of the weight ({most:.4g})"
            return
        assert error <= norm(step), f"{at}: error {error:.4g}, more than the declared steps ({norm(step):.4g})"


def _told(specs: Mapping[str, TensorSpec]) -> str:
    return ", ".join(f"{role} {spec}" for role, spec in specs.items())
