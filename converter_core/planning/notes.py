"""What a plan tells its reader beside what it will do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..api.formats import UNQUANTIZED
from ..api.quantizers import Quantizer
from ..api.targets import Target
from ..api.tensors import spec_of
from ..api.values import PlannedWeight, Stored, TensorSpec
from ..output.state import OutputState
from ..sizes import format_bytes
from .jobs import BoundTensor, Job
from .passthrough import Passthrough
from .plan import OutputPlan
from .resources import Resources
from .slab_size import cut


def of_quantizers(jobs: Iterable[Job]) -> Iterable[str]:
    """Of each quantizer, on the weights it was chosen for."""
    chosen: dict[Quantizer, dict[str, Mapping[str, TensorSpec]]] = {}
    for job in jobs:
        for export in job.exports:
            if not isinstance(export.quantizer, Passthrough):
                chosen.setdefault(export.quantizer, {})[job.info.name] = {
                    name: given.spec if isinstance(given, BoundTensor) else spec_of(given)
                    for name, given in export.inputs.items()
                }
    for quantizer, weights in chosen.items():
        yield from quantizer.remarks(weights)


def without_bias(names: Sequence[str]) -> Iterable[str]:
    """Of weights whose quantizer would change the bias of their layer."""
    if names:
        yield f"{len(names)} weights have no bias that could take up their error, e.g. {names[0]}; they are left alone"


def started_anew(output: str, state: OutputState) -> Iterable[str]:
    if state.changed:
        some = ", ".join(state.changed[:3]) + (" ..." if len(state.changed) > 3 else "")
        yield f"{output}: the interrupted run there starts anew, for these changed: {some}"


def large(jobs: Iterable[Job], resources: Resources) -> Iterable[str]:
    """Weights that no cutting brings under the memory budget."""
    memory = resources.max_memory
    slab_bytes = resources.backend.slab_bytes(resources.devices[0]) if resources.devices else 0
    known: dict[object, int] = {}  # weights of the same shape are many, and cut in the same way
    sizes = {}
    for job in jobs:
        case = _cut_like(job)
        if case not in known:
            known[case] = cut(job, slab_bytes, resources.share).nbytes
        sizes[job.info.name] = known[case]
    names = [name for name, nbytes in sizes.items() if nbytes > memory]
    if names:
        most = max(sizes[name] for name in names)
        yield (
            f"{len(names)} weights take more than max_memory ({format_bytes(memory)}) at a time and run alone, up "
            f"to {format_bytes(most)}, e.g. {names[0]}"
        )


def _cut_like(job: Job) -> object:
    """The same for jobs that are cut in the same way; with LoRAs and inputs each is its own."""
    if job.terms or any(export.inputs or export.bias_terms for export in job.exports):
        return job.info.name
    sources = tuple((bound.spec, bound.row_block) for several in job.sources.values() for bound in several)
    return job.spec, sources, tuple((export.quantizer.row_block, id(export.schema)) for export in job.exports)


def of_target(target: Target, weights: Iterable[PlannedWeight]) -> Iterable[str]:
    stored = {
        weight.name: Stored(weight.format, {output.role: output.key for output in weight.outputs})
        for weight in weights
        if weight.format != UNQUANTIZED
    }
    return target.notes(stored) if stored else ()


def of_outputs(outputs: Sequence[OutputPlan]) -> Iterable[str]:
    """The notes of all; of several each with the folder of its output."""
    for output in outputs:
        yield from (f"{output.destination.name}: {note}" if len(outputs) > 1 else note for note in output.notes)
