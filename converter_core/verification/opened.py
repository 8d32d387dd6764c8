"""What an output consists of, and which plugins understand it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..api.contexts import SourceTensors
from ..api.formats import UNQUANTIZED
from ..api.models import ModelAdapter
from ..api.quantizers import Quantizer
from ..api.targets import Target
from ..api.values import Stored, TensorSpec, WeightInfo
from ..checkpoint.files import NothingKnown, open_checkpoint
from ..checkpoint.inventory import inventory
from ..errors import ConverterError, RecipeError, Refused, VerificationError, shown
from ..planning import provenance, transcode
from ..planning.dequantize import DEQUANTIZED, Dequantized
from ..planning.exact_numbers import NO_NUMBERS, Numbers
from ..planning.exact_numbers import read as read_numbers
from ..planning.loras import NO_LORAS, Loras, plan_loras
from ..planning.planner import config_beside, source_tensors
from ..planning.stores import Stores
from ..planning.transcode import Quantized
from ..plugins.attribution import call_each
from ..plugins.registry import Registry
from ..recipe.load import Recipe, Rule, make_plugin, quantizer_for
from .expected import Expected, reason_of
from .files import Output
from .source import Source


@dataclass(frozen=True)
class Weight:
    """One weight of the output. spec: before quantization, if the manifest tells. numbers: as the header has them."""

    name: str
    stored: Stored
    spec: TensorSpec | None
    numbers: Numbers = NO_NUMBERS

    @property
    def key(self) -> str:
        """Of the part that a message names."""
        return self.stored.primary


class OpenedOutput:
    """What an output consists of, and the plugins that understand it."""

    def __init__(self, output: Output, expected: Expected | None, registry: Registry) -> None:
        self.output = output
        self.expected = expected
        self.registry = registry
        self._recipe_schemes: tuple[Rule, ...] = ()
        self._metadata_schemes = {name: provenance.load(file.metadata) for name, file in output.files.items()}
        self._quantizers: dict[tuple[str, str], Quantizer | None] = {}
        if expected is not None:
            self.target: Target = registry.targets[expected.target]()
            self.weights = [
                Weight(name, stored, spec) for name, (stored, spec) in expected.weights.items() if stored.keys
            ]
            try:
                recipe = Recipe.from_dict(expected.recipe)
                self._recipe_schemes = provenance.schemes_of(recipe.quantization)
                self.target = make_plugin(type(self.target), recipe.target.options)
            except (RecipeError, Refused, RecursionError) as error:
                output.notes.append(f"the recipe in the manifest cannot be read: {reason_of(error)}")
        else:
            self._config = config_beside(output.folder)
            self.target, stored = self._recognise()
            output.notes.append(
                "there is no manifest, so there are no checksums: names, dtypes and shapes were compared with what "
                f"{self.target.name} reads"
                + (
                    ""
                    if any(self._metadata_schemes.values())
                    else "; nothing tells the schemes' options, so these are defaults"
                )
            )
            parts = {key for weight in stored.values() for key in weight.keys.values()} | self._added()
            self.weights = [Weight(name, weight, None) for name, weight in stored.items()]
            self.weights += [
                Weight(key, Stored(UNQUANTIZED, {"weight": key}), None) for key in output.weight_map if key not in parts
            ]
        told = {name: one for file in output.files.values() for name, one in read_numbers(file.metadata).items()}
        self.weights = [replace(one, numbers=told.get(one.name, NO_NUMBERS)) for one in self.weights]
        self.adapter = self._adapter()

    def _recognise(self) -> tuple[Target, Mapping[str, Stored]]:
        """The target that finds the most weights of its own; file by file, for each has its own metadata."""
        best: tuple[Target, dict[str, Stored]] | None = None
        tensors = self.output.tensors
        metadata = {key: text for file in self.output.files.values() for key, text in file.metadata.items()}

        def scan(target: Target) -> dict[str, Stored]:
            found: dict[str, Stored] = {}
            for file in self.output.files.values():
                found |= target.detect(SourceTensors(file.tensors, file.metadata, self._config, read=file.tensor))
            if not found and len(self.output.files) > 1:
                found |= target.detect(SourceTensors(tensors, metadata, self._config))
            return found

        classes = sorted(self.registry.targets.values(), key=lambda cls: not cls.default)
        for target, found in call_each([cls() for cls in classes], scan, self.output.notes):
            if best is None or len(found) > len(best[1]):
                best = target, found
        if best is None:
            raise VerificationError("no target plugin is installed")
        if not best[1]:
            self.output.notes.append("no weight in it is quantized, as far as the installed targets can tell")
            return best
        target, found = best
        options = target.options_for(SourceTensors(tensors, metadata, self._config))
        return make_plugin(type(target), options), found

    def _added(self) -> set[str]:
        """Tensors that the target added, which belong to no weight."""
        files = self.output.files.values()
        told = (self.target.added(SourceTensors(file.tensors, file.metadata, read=file.tensor)) for file in files)
        return {key for keys in told for key in keys}

    @property
    def model(self) -> str:
        """The adapter's name, and the variant where the manifest tells."""
        variant = self.expected.variant if self.expected is not None else ""
        return " ".join(filter(None, (self.adapter.name if self.adapter else "", variant)))

    def _adapter(self) -> ModelAdapter | None:
        if self.expected is not None:
            name = self.expected.adapter
            return self.registry.models[name]() if name in self.registry.models else None
        names = {weight.name: self.output.tensors[weight.key] for weight in self.weights}
        adapters = [cls() for cls in self.registry.models.values() if not cls.by_name]
        known = list(call_each(adapters, lambda adapter: sum(map(adapter.owns_key, names)), self.output.notes))
        return max(known, key=lambda answer: answer[1])[0] if known else None

    def open_source(self, against: str | os.PathLike[str], stack: ExitStack) -> Source:
        if self.adapter is None:
            raise VerificationError(f"{shown(self.output.folder)}: no model adapter knows its weights")
        try:
            checkpoint = open_checkpoint(against, owns_key=self.adapter.owns_key, registry=self.registry)
        except NothingKnown:
            raise VerificationError(f"{shown(against)}: has no tensor that {self.adapter.name} knows") from None
        notes = self.output.notes
        tensors = source_tensors(checkpoint)
        quantized, dressed = transcode.recognise(tensors, self.registry, self.target, notes), None
        if quantized is not None:
            dressed = quantized.dress
            quantized = transcode.with_shapes(quantized, tensors, self.registry)
            tensors = transcode.unpacked(tensors, quantized)
            if self._was_dequantized:
                own = transcode.without(quantized, self.adapter.foreign(tensors)) or quantized
                checkpoint = Dequantized(checkpoint, own, self.registry)
                notes.append(f"the source is itself quantized ({own}); errors are those against what it decodes to")
                tensors, quantized, dressed = source_tensors(checkpoint), None, None
            else:
                notes.append(f"the source is itself quantized ({quantized}); it is compared bit by bit")
        stores = Stores(checkpoint, partial(open_checkpoint, registry=self.registry))
        tensors = source_tensors(checkpoint, tensors, stores.of(self.adapter))
        stack.callback(stores.close)
        loras = self._loras(stores, tensors, quantized)
        return Source(stores, self.adapter, self.target, tensors, quantized, loras, dressed)

    @property
    def _was_dequantized(self) -> bool:
        if self.expected is not None:
            source = self.expected.recipe.get("source")
            return isinstance(source, Mapping) and source.get("dequantize") is True
        return any(DEQUANTIZED in file.metadata for file in self.output.files.values())

    def _loras(self, stores: Stores, tensors: SourceTensors, quantized: Quantized | None) -> Loras:
        """What was merged into the source. VerificationError if a file of it is not what it was."""
        assert self.adapter is not None
        if self.expected is None or not self.expected.loras:
            return NO_LORAS
        try:
            recipe = Recipe.from_dict(self.expected.recipe)
            found = plan_loras(recipe, self.adapter, inventory(self.adapter, tensors), stores, quantized, self.registry)
        except ConverterError as error:
            raise VerificationError(*(f"a LoRA was merged, and {problem}" for problem in error.problems)) from None
        changed = [lora.section.path for lora in found.files if lora.sha256 not in self.expected.loras]
        if changed or found.problems:
            told = (f"{shown(path)}: is not the file that was merged" for path in changed)
            raise VerificationError(*told, *found.problems)
        return found

    def infos(self, source: Source | None) -> Mapping[str, WeightInfo]:
        """What the model says of each weight, by its name in the output; by the output's own names without a source."""
        if self.adapter is None:
            return {}
        if source is not None:
            tensors: Mapping[str, TensorSpec] = source.tensors
        else:
            stored = self.output.tensors
            tensors = {
                weight.name: spec
                for weight in self.weights
                if (spec := weight.spec or stored.get(weight.key)) is not None
            }
        infos = inventory(self.adapter, tensors)
        known = [self.target.key_format_for(self.adapter.key_formats)]
        if self.expected is None:  # a target that finds nothing of its own says nothing of the names
            known += [one for one in self.adapter.key_formats if one not in known]
        there = {weight.name for weight in self.weights}
        named = [{self.adapter.rename(info.name, one): info for info in infos} for one in known]
        return max(named, key=lambda names: len(names.keys() & there))

    def quantizer(self, weight: Weight, info: WeightInfo | None) -> Quantizer | None:
        """The one that made it, by the recipe in the manifest or the metadata; else any that reads its format.

        info: what the model says of it; rules may use the model's names.
        """
        for scheme in self._schemes(weight, {weight.name, info.name} if info is not None else {weight.name}):
            made = self._made(scheme.method, scheme.options)
            if made is not None and made.format.matches(weight.stored.format):
                return made
        return transcode.reader_of(self.registry, weight.stored.format)

    def _schemes(self, weight: Weight, names: Collection[str]) -> Iterator[Rule]:
        file = self.output.weight_map[weight.key].name
        yield from provenance.deciding(self._recipe_schemes, names)
        yield from provenance.deciding(self._metadata_schemes[file], names)

    def _made(self, method: str, options: Mapping[str, Any]) -> Quantizer | None:
        case = (method, repr(options))
        if case not in self._quantizers:
            own = {key: value for key, value in options.items() if key != "target_modules"}
            try:
                cls = self.registry.quantizers.get(method)
                self._quantizers[case] = quantizer_for(cls, own, self.target) if cls is not None else None
            except ConverterError:  # a file that an option names may be gone; reading back does not need it
                self._quantizers[case] = None
        return self._quantizers[case]
