"""The kit for targets."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import torch

from ..api.contexts import WeightContext
from ..api.formats import QuantFormat
from ..api.targets import Target
from ..api.tensors import same, spec_of
from ..api.values import TensorSpec
from ..errors import Refused
from ..planning.output_schema import common_row_block
from ..plugins.registry import load_plugins
from .options import check_class
from .samples import copies, difference, finite, given, sample_weight, slabs
from .target_files import TargetFiles
from .target_trials import INFO

if TYPE_CHECKING:
    from ..api.values import Parts


class TargetConformance(TargetFiles):
    """Subclass it with ``target = MyRuntime()`` and ``quantizers = (Int8(), ...)``, some of each format it stores.

    refused: quantizers whose parts it refuses. shapes: of the weights that are tried. container: that it is written
    in; None: the installed one of that name.
    """

    def test_it_is_a_plugin(self) -> None:
        check_class(self.target, Target)

    def test_the_trial_run_is_the_result(self) -> None:
        for at, quantizer, parts, shape in self._samples():
            context, made = self._context(quantizer, shape), {}
            for role, part in self.target.encode(context, parts).items():
                spec = spec_of(part)
                made[role] = self.target.stored_spec(context, role, spec)
                fits = made[role].nbytes == spec.nbytes
                assert fits, f"{at}: stored_spec calls {role}, {spec}, {made[role]}, which is of another size"
            planned = {role: spec for role, (spec, _) in self._trial(quantizer, shape).outputs.items()}
            assert made == planned, f"{at}: stored is {made}, planned from zeros was {planned}"

    def test_decode_undoes_encode(self) -> None:
        for at, quantizer, parts, shape in self._samples():
            context = self._context(quantizer, shape)
            back = self.target.decode(context, self.target.encode(context, parts))
            assert not difference(parts, back), f"{at}: {difference(parts, back)}"

    def test_the_input_is_not_modified(self) -> None:
        for at, quantizer, parts, shape in self._samples():
            context = self._context(quantizer, shape)
            before = copies(parts)
            stored = self.target.encode(context, parts)
            assert not difference(before, parts), f"{at}: encode changes its input"
            kept = copies(stored)
            self.target.decode(context, stored)
            self.target.simulate_load(context, stored)
            assert not difference(kept, stored), f"{at}: decode or simulate_load changes its input"

    def test_it_is_deterministic(self) -> None:
        for at, quantizer, parts, shape in self._samples():
            context = self._context(quantizer, shape)
            first = copies(self.target.encode(context, parts))
            again = copy.copy(self.target).encode(context, copies(parts))
            assert not difference(first, again), f"{at}: {difference(first, again)}"

    def test_every_device_gives_the_same_bytes(self) -> None:
        devices = [device for backend in load_plugins().devices.values() for device in backend().devices()]
        for at, quantizer, parts, shape in self._samples():
            context = self._context(quantizer, shape)
            expected = self.target.encode(context, parts)
            for device in devices:
                moved = {role: part.to(device) for role, part in parts.items()}
                made = self.target.encode(context, moved)
                assert not difference(expected, made), f"{at} on {device}: {difference(expected, made)}"

    def test_non_contiguous_input(self) -> None:
        for at, quantizer, parts, shape in self._samples():
            context = self._context(quantizer, shape)
            views = {
                role: part.t().contiguous().t() if part.dim() == 2 and part.element_size() > 0 else part
                for role, part in parts.items()
            }
            expected, made = (self.target.encode(context, given) for given in (parts, views))
            assert not difference(expected, made), f"{at}: {difference(expected, made)}"

    def test_stand_ins(self) -> None:
        for at, quantizer, parts, shape in self._samples():
            context = self._context(quantizer, shape)
            expected = {role: spec_of(part) for role, part in self.target.encode(context, parts).items()}
            meta = {role: part.to("meta") for role, part in parts.items()}
            made = {role: spec_of(part) for role, part in self.target.encode(context, meta).items()}
            assert made == expected, f"{at}: {made} on meta, {expected} of data"

    def test_row_tile_is_true_for_every_slab_height(self) -> None:
        for quantizer in self._all():
            tile = common_row_block(quantizer.row_block, self.target.row_block)
            if not tile:
                continue
            rows = 18 if tile < 8 else 3 * tile + tile // 2 + 1
            weight = sample_weight((rows, self.shapes[0][1]))
            context = self._context(quantizer, (rows, self.shapes[0][1]))
            around = given(quantizer, weight, INFO)
            whole = self.target.encode(context, quantizer.quantize(weight, **around))
            schema = self._trial(quantizer, (rows, weight.shape[1]))
            for height in range(tile, rows, tile):
                made = [
                    self.target.encode(context, quantizer.quantize(part, **around)) for part in slabs(weight, height)
                ]
                for role, expected in whole.items():
                    pieces = [stored[role] for stored in made]
                    grows = schema.outputs[role][1]
                    true = same(expected, torch.cat(pieces)) if grows else all(same(expected, one) for one in pieces)
                    assert true, (
                        f"{quantizer.format} {role} is another in slabs of {height} rows; row_block is not true"
                    )

    def test_what_encode_refuses_the_plan_refuses(self) -> None:
        for quantizer in self.refused:
            weight = sample_weight(self.shapes[0])
            context = self._context(quantizer, self.shapes[0])
            with pytest.raises(Refused):
                self._trial(quantizer, self.shapes[0])
            with pytest.raises(Refused):
                self.target.encode(context, quantizer.quantize(weight, **given(quantizer, weight, INFO)))

    def test_a_format_it_has_never_heard_of(self) -> None:
        """Taken as it is, or ``Refused`` in words."""
        parts = {"weight": torch.ones(4, 4, dtype=torch.int8), "spice": torch.ones(4)}
        context = WeightContext(INFO, INFO.name, TensorSpec("BF16", (4, 4)), QuantFormat("never_heard_of", "unknown"))
        try:
            stored = self.target.encode(context, parts)
        except Refused:
            return
        assert not difference(parts, self.target.decode(context, stored)), "taken, but not given back"

    def test_what_is_loaded_can_be_used(self) -> None:
        for at, quantizer, parts, shape in self._samples():
            context = self._context(quantizer, shape)
            loaded = self.target.simulate_load(context, self.target.encode(context, parts))
            restored = quantizer.dequantize(self.target.decode(context, loaded))
            assert tuple(restored.shape) == shape, f"{at}: comes back as {list(restored.shape)}"
            assert finite(restored), f"{at}: comes back with NaN or infinity"

    def test_threads_do_not_meet(self) -> None:
        samples = list(self._samples())

        def encode(number: int) -> Parts:
            _, quantizer, parts, shape = samples[number]
            return copies(self.target.encode(self._context(quantizer, shape), parts))

        expected = [encode(number) for number in range(len(samples))]
        with ThreadPoolExecutor(4) as pool:
            for number, made in enumerate(pool.map(encode, range(len(samples)))):
                found = difference(expected[number], made)
                assert not found, f"{samples[number][0]} in four threads at once: {found}; keep nothing between calls"
