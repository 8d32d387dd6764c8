"""The kit for model adapters."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from ..api.contexts import SourceTensors, WeightContext
from ..api.models import ModelAdapter
from ..api.tensors import same, spec_of
from ..api.values import BASE, TensorRef, TensorSpec, WeightInfo, refs_of
from .options import check_class
from .samples import OneThread, copies, difference, sample_weight

FOREIGN: Mapping[str, TensorSpec] = {
    "text_model.encoder.layers.0.mlp.fc1.weight": TensorSpec("F16", (64, 16)),
    "encoder.conv_in.weight": TensorSpec("F32", (128, 3, 3, 3)),
    "token_embedding.table": TensorSpec("BF16", (1000, 64)),
}
"""Of a text encoder and a VAE, which often stand in the same folder."""


class ModelConformance(OneThread):
    """Subclass it with ``model = MyModel()``; the checkpoint that is tried is ``model.synthetic()`` or ``checkpoint``.

    stores: the tensors of the other files that it takes weights from. key_formats: those that ``rename`` knows.
    other_modules: those of variants that the checkpoint is none of. shared: keys that several weights are made of.
    """

    model: ModelAdapter
    checkpoint: ClassVar[Mapping[str, TensorSpec]] = {}
    stores: ClassVar[Mapping[str, Mapping[str, TensorSpec]]] = {}
    key_formats: ClassVar[Sequence[str]] = ("original",)
    other_modules: ClassVar[Sequence[str]] = ()
    shared: ClassVar[Sequence[str]] = ()

    def test_it_is_a_plugin(self) -> None:
        check_class(self.model, ModelAdapter)

    def test_it_recognises_its_own(self) -> None:
        variant = self.model.recognise(self._tensors())
        assert variant, f"recognise gives {variant!r} of its own checkpoint"
        shuffled = SourceTensors(dict(sorted(self._tensors().items(), reverse=True)))
        assert self.model.recognise(shuffled) == variant, "recognise depends on the order of tensors"
        for info in self._infos():
            for key in _keys(info) if info.kind == "linear" and info.block else ():
                assert self.model.owns_key(key), f"owns_key({key!r}) is false"

    def test_it_leaves_others_alone(self) -> None:
        assert self.model.recognise(SourceTensors({})) is None, "recognises a checkpoint without tensors"
        assert self.model.recognise(SourceTensors(FOREIGN)) is None, f"recognises a checkpoint of {', '.join(FOREIGN)}"
        for key in FOREIGN:
            assert not self.model.owns_key(key), f"owns_key({key!r}), which is another model's"

    def test_every_tensor_belongs_to_one_weight(self) -> None:
        claimed = Counter(key for info in self._infos() for key in _keys(info))
        strange = sorted(set(claimed) - set(self._tensors()))
        assert not strange, f"weights have sources that are not there: {strange}"
        left = sorted(set(self._tensors()) - set(claimed))
        assert not left, f"no weight claims {left}; say kind='extra' for what is only copied"
        parts = {ref.key for info in self._infos() for ref in info.refs if ref.rows is not None or not ref.by_rows}
        twice = sorted(key for key, count in claimed.items() if count > 1 and key not in {*parts, *self.shared})
        assert not twice, f"more than one weight claims {twice}; if they share it, list it in shared"

    def test_weights_are_told_apart(self) -> None:
        names = Counter(info.name for info in self._infos())
        twice = sorted(name for name, count in names.items() if count > 1)
        assert not twice, f"more than one weight is called {twice}"

    def test_what_it_says_of_weights_is_text(self) -> None:
        for info in self._infos():
            for field in ("name", "kind", "module", "block"):
                value = getattr(info, field)
                assert isinstance(value, str), f"{info.name}: {field} must be text, not {value!r}"

    def test_weights_come_in_source_order(self) -> None:
        """What is read in the order of the file is read fastest."""
        place = {key: number for number, key in enumerate(self._tensors())}
        first = [min(place[key] for key in _keys(info)) for info in self._infos() if info.sources]
        assert first == sorted(first), "weights come in another order than their tensors"

    def test_linear_weights_can_be_chosen(self) -> None:
        tensors = self._tensors()
        linear = [info for info in self._infos() if info.kind == "linear"]
        assert linear, "no weight is of the kind linear, so nothing can be quantized"
        for info in linear:
            for key in _keys(info):
                assert len(tensors[key].shape) == 2, f"{info.name} is linear, but {key} is {tensors[key]}"
        modules = {info.module for info in linear if info.module}
        unknown = modules - set(self.model.modules)
        assert not unknown, f"weights are of modules {sorted(unknown)}, which modules does not list"
        unused = set(self.model.modules) - modules - set(self.other_modules)
        assert not unused, f"modules lists {sorted(unused)}, but no linear weight is of them"

    def test_a_sound_checkpoint_has_no_problems(self) -> None:
        found = list(self.model.problems(self._tensors()))
        assert not found, f"its own checkpoint: {found}"

    def test_a_missing_tensor_is_told(self) -> None:
        if type(self.model).problems is ModelAdapter.problems:
            return
        tensors = self._tensors()
        for info in [info for info in self._infos() if info.kind == "linear" and info.block][:4]:
            for missing in _keys(info):
                rest = {key: spec for key, spec in tensors.items() if key != missing}
                assert list(self.model.problems(SourceTensors(rest))), f"without {missing} it has no problems"

    def test_a_wrong_shape_is_told(self) -> None:
        if type(self.model).problems is ModelAdapter.problems:
            return
        tensors = self._tensors()
        for info in [info for info in self._infos() if info.kind == "linear" and info.block][:4]:
            for key in _keys(info):
                wrong = TensorSpec(tensors[key].dtype, (tensors[key].shape[0] + 1, *tensors[key].shape[1:]))
                assert list(self.model.problems(SourceTensors({**tensors, key: wrong}))), (
                    f"{key} as {wrong} is no problem"
                )

    def test_names_in_other_key_formats_are_unique(self) -> None:
        names = [info.name for info in self._infos()]
        for key_format in self.key_formats:
            renamed = Counter(self.model.rename(name, key_format) for name in names)
            twice = sorted(name for name, count in renamed.items() if count > 1)
            assert not twice, f"in {key_format} more than one weight is called {twice}"
            assert all(renamed), f"in {key_format} a weight has no name"

    def test_its_own_names_are_original(self) -> None:
        for info in self._infos():
            again = self.model.rename(info.name, "original")
            assert again == info.name, f"{info.name} is called {again} in original, but weights are named in it"

    def test_facts_are_json(self) -> None:
        facts = self.model.describe(self._tensors())
        assert json.loads(json.dumps(facts)) == facts, f"describe gives {facts!r}"

    def test_the_config_is_not_modified(self) -> None:
        sample = self.model.synthetic()
        config = dict(sample.config) if sample else {"dim": 1}
        tensors = SourceTensors(self._tensors(), config=config, stores=self.stores)
        before = json.dumps(config)
        for key_format in self.key_formats:
            made = self.model.config(tensors, key_format)
            assert json.dumps(config) == before, f"config changes what it is given ({key_format})"
            assert made is tensors.config or dict(made) != config, (
                f"an unchanged config must be the same object ({key_format})"
            )

    def test_weights_are_assembled_slab_by_slab(self) -> None:
        """From rows as from the whole, on meta too, and without changing the sources."""
        for info in self._kinds():
            sources = {role: sample_weight(self._shape(source)) for role, source in info.sources.items()}
            by_rows = {role: all(ref.by_rows for ref in refs_of(source)) for role, source in info.sources.items()}
            context = WeightContext(info, info.name)
            kept = copies(sources)
            whole = self.model.assemble(context, sources)
            assert not difference(kept, sources), f"{info.name}: assemble changes its sources"
            meta = self.model.assemble(context, {role: tensor.to("meta") for role, tensor in sources.items()})
            assert spec_of(meta) == spec_of(whole), f"{info.name}: {spec_of(meta)} on meta, {spec_of(whole)} of data"
            if whole.dim() != 2 or not any(by_rows.values()):
                continue
            half = whole.shape[0] // 2
            rows = {role: tensor[:half] if by_rows[role] else tensor for role, tensor in sources.items()}
            top = self.model.assemble(context, rows)
            assert same(top, whole[:half].contiguous()), f"{info.name}: half of the rows gives others than the whole"

    def _shape(self, source: TensorRef | tuple[TensorRef, ...]) -> tuple[int, ...]:
        """Of the tensors that a source means, joined along the rows."""
        specs = [ref.spec(self._store(ref.store)[ref.key]) for ref in refs_of(source)]
        return specs[0].shape if len(specs) == 1 else (sum(spec.shape[0] for spec in specs), *specs[0].shape[1:])

    def _store(self, name: str) -> Mapping[str, TensorSpec]:
        return self._tensors() if name == BASE else self._tensors().stores[name]

    def _tensors(self) -> SourceTensors:
        if self.checkpoint:
            return SourceTensors(self.checkpoint, stores=self.stores)
        sample = self.model.synthetic()
        assert sample is not None, "set checkpoint (key -> TensorSpec): the model has no synthetic()"
        return SourceTensors(sample.tensors, config=sample.config, stores=self.stores)

    def _infos(self) -> Sequence[WeightInfo]:
        return list(self.model.weights(self._tensors()))

    def _kinds(self) -> Iterator[WeightInfo]:
        """One weight of each kind and number of sources."""
        seen = set()
        for info in self._infos():
            what = (info.kind, len(info.sources))
            if what not in seen:
                seen.add(what)
                yield info


def _keys(info: WeightInfo) -> list[str]:
    return list(dict.fromkeys(ref.key for ref in info.refs if ref.store == BASE))
