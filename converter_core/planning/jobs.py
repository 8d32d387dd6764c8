"""Jobs: what is read of a weight, what LoRAs add to it, and what every output makes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..api.contexts import ModelFacts
from ..api.models import ModelAdapter
from ..api.quantizers import Quantizer
from ..api.targets import Target
from ..api.values import OutputTensor, TensorRef, TensorSpec, WeightInfo, refs_of
from ..errors import PluginError, unknown
from ..lora.forms import Amount
from .encoding import Encoding
from .output_schema import OutputSchema, SourceSpec
from .stores import Stores

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class BoundTensor:
    """A reference and the file that it is read from. spec: of the rows it means.

    row_block: at which multiples of rows it is cut; None: nowhere. decoded_from: bytes that it is decoded from; None:
    it is stored as it is. decoding_nbytes: memory that decoding it takes at a time.
    """

    path: str
    ref: TensorRef
    spec: TensorSpec
    row_block: int | None = 1
    decoded_from: int | None = None
    decoding_nbytes: int = 0

    @property
    def stored_nbytes(self) -> int:
        return self.spec.nbytes if self.decoded_from is None else self.decoded_from


@dataclass(frozen=True)
class Term:
    """What one LoRA adds to a weight. form: one of ``lora.forms``. parts: role -> tensor of its file.

    alpha: the recipe's. target: whose way of merging is followed; None: our own, and the weight becomes float32.
    """

    form: str
    parts: Mapping[str, BoundTensor]
    amount: Amount
    alpha: float | None = None
    target: Target | None = None


@dataclass(frozen=True)
class Export:
    """What one output makes of a weight. inputs: what its quantizer takes beside the rows, by name.

    bias_terms: what LoRAs add to the bias among them.
    """

    output: int
    quantizer: Quantizer
    encoding: Encoding
    schema: OutputSchema
    tensors: tuple[OutputTensor, ...]
    inputs: Mapping[str, BoundTensor | Tensor]
    bias_terms: tuple[Term, ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(tensor.spec.nbytes for tensor in self.tensors)


@dataclass(frozen=True)
class Job:
    """One weight: read once, and what every output makes of it. sources: role -> tensors joined along the rows.

    terms: what LoRAs add to it.
    """

    info: WeightInfo
    spec: TensorSpec
    model: ModelFacts
    sources: Mapping[str, tuple[BoundTensor, ...]]
    exports: tuple[Export, ...]
    terms: tuple[Term, ...] = ()

    @property
    def stored_nbytes(self) -> int:
        """Bytes of its sources in their files."""
        return sum(bound.stored_nbytes for several in self.sources.values() for bound in several)

    @property
    def source_nbytes(self) -> int:
        return sum(bound.spec.nbytes for several in self.sources.values() for bound in several)


def bias_name(info: WeightInfo) -> str:
    """Of the same layer's bias, whether there is one or not."""
    return info.bias if info.bias is not None else f"{info.name.removesuffix('.weight')}.bias"


def bind(
    stores: Stores, source: TensorRef | tuple[TensorRef, ...], owner: ModelAdapter | Quantizer
) -> tuple[BoundTensor, ...]:
    """Find the files of what a plugin refers to. PluginError if it is not there."""
    bound = []
    for ref in refs_of(source):
        tensors = stores.tensors(owner, ref.store)
        if ref.key not in tensors:
            raise PluginError(f"{owner.name} refers to {unknown(f'tensor of {ref.store}', ref.key, ())}")
        path, spec = stores.path(owner, ref.store), ref.spec(tensors[ref.key])
        file = stores.file(path)
        if ref.key in file.decoded:
            share = file.stored_nbytes(ref.key) * spec.nbytes // max(tensors[ref.key].nbytes, 1)
            decoding = file.decoding_nbytes(ref.key)
            bound.append(BoundTensor(path, ref, spec, file.row_block(ref.key), share, decoding))
        else:
            bound.append(BoundTensor(path, ref, spec))
    return tuple(bound)


def joined_spec(several: Sequence[BoundTensor]) -> SourceSpec:
    """Of tensors joined along the rows."""
    first = several[0]
    if len(several) == 1:
        packed_row = first.spec.block is not None and len(first.spec.shape) < 2
        return SourceSpec(first.spec, first.ref.by_rows and not packed_row)
    if any(not bound.ref.by_rows or bound.spec.rows(0) != first.spec.rows(0) for bound in several):
        names = ", ".join(bound.ref.key for bound in several)
        raise PluginError(f"{names} cannot be joined along the rows: they differ in dtype or columns")
    return SourceSpec(first.spec.rows(sum(bound.spec.shape[0] for bound in several)), True)


def source_spec(info: WeightInfo, stores: Stores, adapter: ModelAdapter) -> TensorSpec:
    """Of what a weight is read from; assembling usually keeps its shape."""
    sources = {role: bind(stores, source, adapter) for role, source in info.sources.items()}
    return joined_spec(sources.get("weight") or next(iter(sources.values()))).spec


def merged(several: Iterable[Sequence[Job]]) -> tuple[Job, ...]:
    """The jobs of all outputs, those of the same weight as one: its sources are read once."""
    found: dict[object, Job] = {}
    for jobs in several:
        for job in jobs:
            case = (job.info.name, tuple(job.sources.items()))
            one = found.get(case)
            found[case] = job if one is None else replace(one, exports=(*one.exports, *job.exports))
    return tuple(found.values())
