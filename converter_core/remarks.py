"""What a plan tells its reader beside what it will do."""

from __future__ import annotations

from collections.abc import Iterable

from .devices import Means
from .interfaces import Quantizer, Target
from .keep import Keep
from .output_folder import Survey
from .plan import Job
from .selection import Choice
from .sizes import format_bytes
from .slabs import cut
from .specs import PlannedWeight, Stored


def unmatched_names(choices: Iterable[Choice]) -> Iterable[str]:
    """Of each quantizer, on the names of the weights it was chosen for."""
    chosen: dict[Quantizer, list[str]] = {}
    for choice in choices:
        if choice.quantizer.name != Keep.name:
            chosen.setdefault(choice.quantizer, []).append(choice.info.name)
    for quantizer, names in chosen.items():
        yield from quantizer.check_names(names)


def started_anew(output: str, survey: Survey) -> Iterable[str]:
    if survey.changed:
        some = ", ".join(survey.changed[:3]) + (" ..." if len(survey.changed) > 3 else "")
        yield f"{output}: the interrupted run there starts anew, for these changed: {some}"


def large(jobs: Iterable[Job], means: Means) -> Iterable[str]:
    """Weights that no cutting brings under the memory budget."""
    memory = means.max_memory
    slab_bytes = means.backend.slab_bytes(means.devices[0]) if means.devices else 0
    sizes = {job.info.name: cut(job, slab_bytes, memory // means.workers).nbytes for job in jobs}
    names = [name for name, nbytes in sizes.items() if nbytes > memory]
    if names:
        most = max(sizes[name] for name in names)
        yield (
            f"{len(names)} weights take more than max_memory ({format_bytes(memory)}) at a time and run alone, up "
            f"to {format_bytes(most)}, e.g. {names[0]}"
        )


def of_target(target: Target, weights: Iterable[PlannedWeight]) -> Iterable[str]:
    stored = {
        weight.name: Stored(weight.format, {output.role: output.key for output in weight.outputs})
        for weight in weights
        if weight.format != Keep.name
    }
    return target.notes(stored) if stored else ()
