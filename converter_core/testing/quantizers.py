"""The kit for quantizers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch

from ..api.quantizers import Quantizer
from ..api.tensors import same, spec_of
from ..api.values import TensorSpec
from ..errors import PluginError, Refused
from ..plugins.registry import load_plugins
from .options import check_class, check_options, variants
from .quantizer_errors import QuantizerErrors
from .samples import CASES, copies, difference, given, sample_weight, slabs

ODD = ((4, 127), (4, 100), (4, 24), (4, 1), (64,), (2, 3, 64), (0, 64), (4, 0), ())
"""Shapes that many schemes refuse."""

THREADED = 1 << 18
"""Elements of a weight that takes long enough for threads to meet."""


class QuantizerConformance(QuantizerErrors):
    """Subclass it with ``quantizer = MyScheme()``; once more for every set of options that takes another path.

    shapes, dtypes: what the scheme takes. weight: for which weight ``inputs`` is asked.
    most_error: Frobenius norm of the error over that of the weight; counts where ``quantization_step`` says nothing.
    smallest: magnitude of the smallest weights that it must keep; more where its scales underflow by their format.
    """

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

    def test_non_contiguous_input(self) -> None:
        for at, weight in self._samples(("ordinary",)):
            expected = self._quantize(weight)
            wide = torch.cat([weight, weight], 1)[:, : weight.shape[1]]
            for layout, view in (("transposed", weight.t().contiguous().t()), ("cut from a wider one", wide)):
                found = difference(expected, self._quantize(view))
                assert not found, f"{at} {layout}: {found}"

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


def _told(specs: Mapping[str, TensorSpec]) -> str:
    return ", ".join(f"{role} {spec}" for role, spec in specs.items())
