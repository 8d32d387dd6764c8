"""The kit for targets."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch

from ..api.containers import Container
from ..api.contexts import ModelFacts, SourceTensors, WeightContext
from ..api.formats import UNQUANTIZED, QuantFormat
from ..api.local_file import LocalFile
from ..api.quantizers import Quantizer
from ..api.targets import Target
from ..api.tensors import same, spec_of
from ..api.values import OutputTensor, PlannedWeight, Stored, TensorRef, TensorSpec, WeightInfo
from ..errors import Refused
from ..planning.file_layout import container_of
from ..planning.passthrough import Passthrough
from ..planning.shape_inference import OutputSchema, common_row_block
from ..plugins.registry import load_plugins
from .models import FOREIGN
from .options import check_class
from .samples import OneThread, context_of, copies, difference, finite, given, later, sample_weight, schema_of, slabs

if TYPE_CHECKING:
    from torch import Tensor

    from ..api.values import Parts

INFO = WeightInfo("blocks.0.ffn.0.weight", {"weight": TensorRef("w")}, "linear", "ffn", "0")


class TargetConformance(OneThread):
    """Subclass it with ``target = MyRuntime()`` and ``quantizers = (Int8(), ...)``, some of each format it stores.

    refused: quantizers whose parts it refuses. shapes: of the weights that are tried. container: that it is written
    in; None: the installed one of that name.
    """

    target: Target
    quantizers: ClassVar[Sequence[Quantizer]] = ()
    refused: ClassVar[Sequence[Quantizer]] = ()
    container: ClassVar[Container | None] = None
    shapes: ClassVar[Sequence[tuple[int, int]]] = ((7, 128), (1, 128), (130, 192))

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

    def test_keys_are_unique(self) -> None:
        for quantizer in self._all():
            seen: dict[str, str] = {}
            for weight in self._planned(quantizer):
                for output in weight.outputs:
                    what = f"{output.role} of {weight.name}"
                    assert output.key, f"{what}: has an empty key"
                    assert output.key not in seen, f"{output.key!r} is {seen.get(output.key)} and {what}"
                    seen[output.key] = what

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

    def test_what_it_adds_is_sound(self) -> None:
        for quantizer in self._all():
            weights = self._planned(quantizer)
            reasons = list(self.target.refuse(ModelFacts(), weights))
            assert not reasons, f"all {quantizer.format}: refused: {reasons}"
            extras = self.target.extras(ModelFacts(), weights)
            for key, value in extras.metadata.items():
                assert isinstance(key, str), f"a key of the metadata must be text: {key!r} ({value!r})"
            for name, content in extras.side_files.items():
                plain = Path(name).name == name and not name.startswith(".")
                assert plain, f"{name!r} is no name of a side file"
                assert isinstance(content, bytes), f"side file {name} must be bytes, not {type(content).__name__}"
            taken = {output.key for weight in weights for output in weight.outputs}
            assert not taken & set(extras.tensors), (
                f"extra tensors under keys of weights: {taken & set(extras.tensors)}"
            )
            again = self.target.extras(ModelFacts(), weights)
            same_again = (extras.metadata, extras.side_files) == (again.metadata, again.side_files)
            assert same_again, "extras are others when asked for again"
            assert not difference(extras.tensors, again.tensors), "extra tensors are others when asked for again"

    def test_it_finds_its_own(self) -> None:
        if type(self.target).detect is Target.detect:
            return
        for quantizer in self._all():
            weights = self._planned(quantizer)
            extras = self.target.extras(ModelFacts(), weights)
            tensors = {output.key: output.spec for weight in weights for output in weight.outputs}
            tensors |= {key: spec_of(tensor) for key, tensor in extras.tensors.items()}
            found = self.target.detect(SourceTensors(tensors, extras.metadata))
            taken = {key: stored for stored in found.values() for key in stored.keys.values()}
            for weight in weights:
                expected = {output.role: output.key for output in weight.outputs}
                stored = next((taken[key] for key in expected.values() if key in taken), None)
                if weight.format == UNQUANTIZED:
                    assert stored is None, f"{weight.name} is not quantized, but detect says {stored}"
                    continue
                assert stored is not None, f"detect does not find {weight.name} ({weight.format})"
                right = stored.format.matches(weight.format) and dict(stored.keys) == expected
                assert right, f"detect finds {weight.name} ({weight.format}) as {stored}"

    def test_it_leaves_others_alone(self) -> None:
        """Weights that are not quantized, and those of other models, are none of its own."""
        bare = [TensorSpec("BF16", (64, 32)), TensorSpec("BF16", (64,))]
        tensors = {
            f"blocks.0.ffn.{n}.{leaf}": s for n in (0, 2) for leaf, s in zip(("weight", "bias"), bare, strict=True)
        }
        for others in (tensors, FOREIGN):
            found = self.target.detect(SourceTensors(others))
            assert not found, f"detect claims {sorted(found)} of {', '.join(others)}"

    def test_what_to_configure_is_json(self) -> None:
        for quantizer in self._all():
            stored = {
                weight.name: Stored(weight.format, {output.role: output.key for output in weight.outputs})
                for weight in self._planned(quantizer)
                if weight.format != UNQUANTIZED
            }
            config = self.target.runtime_config(ModelFacts(), stored, "/models/wan")
            assert json.loads(json.dumps(config)) == config, (
                f"{quantizer.format}: runtime_config is {config!r}, not JSON"
            )

    def test_its_files_can_be_read(self) -> None:
        for quantizer in self._all():
            weights = self._planned(quantizer)
            container = self.container or container_of(self.target, load_plugins())
            metadata = {**container.metadata, **self.target.extras(ModelFacts(), weights).metadata}
            placed = container.place(weights, metadata)
            with later():
                extras = self.target.extras(ModelFacts(), weights)
                again = container.place(weights, {**container.metadata, **extras.metadata})
            assert again == placed, f"{quantizer.format}: the header is another one at another time"
            for weight in weights:
                for output in weight.outputs:
                    end = placed.offsets[output.key] + output.spec.nbytes
                    assert end <= placed.size, f"{output.key} ends at {end}, the file at {placed.size}"
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"file{container.suffixes[0]}"
                with open(path, "wb") as file:
                    file.write(placed.header)
                    file.truncate(placed.size)
                source = LocalFile(path)
                found = container.read(source)
                source.close()
            expected = {out.key: out.spec for weight in weights for out in weight.outputs}
            assert dict(found.tensors) == expected, f"{quantizer.format}: the container reads other tensors"
            assert dict(found.offsets) == dict(placed.offsets), f"{quantizer.format}: read elsewhere than placed"
            for key, value in metadata.items():
                assert found.metadata.get(key) == value, f"{quantizer.format}: metadata {key!r} does not come back"

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

    def _all(self) -> tuple[Quantizer, ...]:
        return (*self.quantizers, Passthrough())

    def _samples(self) -> Iterator[tuple[str, Quantizer, Mapping[str, Tensor], tuple[int, int]]]:
        for quantizer in self._all():
            for shape in self.shapes:
                weight = sample_weight(shape)
                parts = quantizer.quantize(weight, **given(quantizer, weight, INFO))
                yield f"{quantizer.format} {list(shape)}", quantizer, parts, shape

    def _trial(self, quantizer: Quantizer, shape: tuple[int, ...]) -> OutputSchema:
        return schema_of(quantizer, self.target, INFO, TensorSpec("BF16", shape))

    def _context(self, quantizer: Quantizer, shape: tuple[int, ...]) -> WeightContext:
        return context_of(quantizer, INFO, TensorSpec("BF16", shape))

    def _planned(self, quantizer: Quantizer) -> list[PlannedWeight]:
        """Two blocks whose linear weights are quantized, their biases, and a norm."""
        infos = [
            WeightInfo(f"blocks.{block}.{module}.{leaf}", {}, kind, module.split(".")[0], f"{block}")
            for block in range(2)
            for module in ("ffn.0", "self_attn.q")
            for leaf, kind in (("weight", "linear"), ("bias", "bias"))
        ]
        infos.append(WeightInfo("head.norm.weight", {}, "norm"))
        planned = []
        for info in infos:
            scheme = quantizer if info.kind == "linear" else Passthrough()
            shape = self.shapes[-1] if info.kind == "linear" else self.shapes[-1][:1]
            schema = self._trial(scheme, shape)
            context = WeightContext(info, info.name, schema.spec, scheme.format)
            outputs = tuple(
                OutputTensor(self.target.key(context, role), role, spec, nbytes)
                for role, (spec, nbytes) in schema.outputs.items()
            )
            planned.append(PlannedWeight(info, info.name, schema.spec, scheme.format, outputs))
        return planned
