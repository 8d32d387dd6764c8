"""A model adapter that is a table and little else."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from .contexts import SourceTensors
from .models import ModelAdapter
from .roots import SourceRoot
from .table_contents import TableContents
from .tables import Size, Table
from .values import SyntheticCheckpoint, TensorRef, TensorSpec, WeightInfo


class TableModel(ModelAdapter):
    """Derive from it, and give it a ``table``: the rest follows, and any of it can be overridden.

    Names are those of the table's first key format, without prefix. What the table does not know is ``extra``.
    """

    table: ClassVar[Table]

    signature: ClassVar[Sequence[Collection[str]]]
    """Groups of row names; a checkpoint that holds at least one of each group is this model."""

    shared: ClassVar[Collection[str]] = ()
    """Row names that other models have too, e.g. ``norm.weight``: a file is not this model's for one of these."""

    ignored: ClassVar[tuple[str, ...]] = ()
    """What keys of other models in the same file begin with, beside the usual ones: they are left out."""

    variants: ClassVar[Mapping[str, Size]] = {}
    """The released models by name."""

    sample: ClassVar[Size | None] = None
    """A small model, for ``synthetic``."""

    classes: ClassVar[Collection[str]] = ()
    """What diffusers and transformers call it, for the index of a pipeline."""

    component: ClassVar[str] = ""
    """What part of a pipeline it is where that is not the diffusion transformer, e.g. ``t5``; a fact for targets."""

    @property
    def key_formats(self) -> Sequence[str]:
        return self.table.key_formats

    def contents(self, tensors: Mapping[str, TensorSpec]) -> TableContents:
        def make() -> TableContents:
            return TableContents(self.table, tensors, self.ignored)

        return tensors.remembered((self.table, self.ignored), make) if isinstance(tensors, SourceTensors) else make()

    def owns_key(self, key: str) -> bool:
        known = self.table.parse(key)
        return known.row.name not in self.shared if known is not None else self.table.is_companion(key)

    def components(self, root: SourceRoot) -> Mapping[str, str]:
        """Of a pipeline the folders of these ``classes``."""
        return root.of_classes(self.classes)

    def recognise(self, tensors: SourceTensors) -> str | None:
        """The name of a released model by dimensions, branches and blocks, else ``unknown``."""
        found = self.contents(tensors)
        return self.variant(found) if found.holds(*self.signature) else None

    def variant(self, found: TableContents) -> str:
        return next((name for name, size in self.variants.items() if found.is_of(size)), "unknown")

    def describe(self, tensors: SourceTensors) -> Mapping[str, Any]:
        """Key format and prefix, dimensions as far as the shapes show them, blocks of each stack, extra tensors."""
        found = self.contents(tensors)
        facts: dict[str, Any] = {"component": self.component} if self.component else {}
        facts |= {"key_format": found.key_format, "prefix": found.prefix, **found.dims}
        facts |= {f"num_{stack.split('.')[-3]}": found.layers(stack) for stack in self.table.stacks}
        return {**facts, "extra_tensors": len(found.extra)}

    def problems(self, tensors: SourceTensors) -> Iterable[str]:
        return self.contents(tensors).problems()

    def foreign(self, tensors: SourceTensors) -> Collection[str]:
        """Of all-in-one files: the other models beside this one."""
        return self.contents(tensors).foreign

    def weights(self, tensors: SourceTensors) -> Iterator[WeightInfo]:
        foreign = set(self.foreign(tensors))
        for key, spec in tensors.items():
            if key in foreign:
                continue
            sources = {"weight": TensorRef(key)}
            known = self.table.parse(key)
            if known is None:
                name = self.table.bare(key)
                yield WeightInfo(name, sources, "extra", block=self.table.block_of(name))
                continue
            kind = known.row.kind
            if kind == "linear" and len(spec.shape) != 2:
                kind = "other"
            module = known.row.group if known.row.group in self.modules else ""
            yield WeightInfo(known.name, sources, kind, module, known.block)

    def rename(self, name: str, key_format: str) -> str:
        """``key_format``: one of the table's; PluginError for another."""
        return self.table.rename(name, key_format)

    def lora_names(self, name: str) -> Iterable[str]:
        """The name in each key format of the table."""
        return [self.table.rename(name, key_format) for key_format in self.table.key_formats]

    def synthetic(self) -> SyntheticCheckpoint | None:
        """``sample`` in bf16."""
        return SyntheticCheckpoint(self.table.inventory(self.sample, "BF16")) if self.sample else None
