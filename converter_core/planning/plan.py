"""What a conversion will do, as a value: jobs, files to the byte, and what a user should know of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..api.containers import Container
from ..api.contexts import ModelFacts
from ..api.layouts import LayoutWriter
from ..api.models import ModelAdapter
from ..api.targets import Target
from ..api.values import Extras, FileLayout, Parts, PlannedWeight
from ..checkpoint.checkpoint import Checkpoint
from ..errors import PlanError
from ..output import surroundings
from ..output.destination import Destination
from ..output.fingerprint import Fingerprint
from ..output.manifest import manifest_name
from ..output.state import OutputState, output_state
from ..recipe.load import Recipe
from .assignment import RuleUse
from .jobs import Job
from .loras import NO_LORAS, Loras
from .passthrough import Passthrough
from .resources import Resources
from .stores import Stores

BYTES_OF_TEXT = 500
"""On the disk, for each tensor: what manifest and journal say of it."""


@dataclass(frozen=True)
class Group:
    """Weights that are treated alike, for people to read."""

    method: str
    kind: str
    module: str
    count: int
    bytes_before: int
    bytes_after: int


def groups_of(jobs: Iterable[Job], output: int) -> tuple[Group, ...]:
    """The jobs of one output summed up by method, kind and module; what is quantized first."""
    sums: dict[tuple[str, str, str], list[int]] = {}
    for job in jobs:
        for export in job.exports:
            if export.output == output:
                total = sums.setdefault((export.quantizer.name, job.info.kind, job.info.module), [0, 0, 0])
                total[0] += 1
                total[1] += job.stored_nbytes
                total[2] += export.nbytes
    listed = [Group(*key, *total) for key, total in sums.items()]
    return tuple(sorted(listed, key=lambda group: group.method == Passthrough.name))


@dataclass(frozen=True)
class OutputPlan:
    """One output of a plan.

    number: of the output in its plan. recipe: with this output alone. destination: where it goes. constants: tensors
    that the target adds, by key. weight_map: key -> file. file_layouts: file -> its header and offsets. side: files
    that are written beside the weights, copies: files that are copied there. pending: bytes of the weights that lie on
    the disk at a time, at most, where they are sent elsewhere; None: all of them.
    """

    number: int
    recipe: Recipe
    destination: Destination
    name: str
    target: Target
    container: Container
    layout: LayoutWriter
    weights: tuple[PlannedWeight, ...]
    constants: Parts
    extras: Extras
    file_layouts: Mapping[str, FileLayout]
    weight_map: Mapping[str, str]
    side: Mapping[str, bytes]
    copies: Mapping[str, Path]
    pending: int | None
    groups: tuple[Group, ...]
    rules: tuple[RuleUse, ...]
    fingerprint: Fingerprint
    distributions: Mapping[str, str]
    state: OutputState
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The folder of this machine that is written to: the output, or the state of one that lies elsewhere."""
        return self.destination.folder

    @property
    def files(self) -> dict[str, int]:
        return {file: placed.size for file, placed in self.file_layouts.items()}

    @property
    def published(self) -> tuple[str, ...]:
        """Every file that will stand in the output."""
        return (*self.file_layouts, *self.side, *self.copies, manifest_name(self.name))

    @property
    def side_sizes(self) -> dict[str, int]:
        sizes = {name: len(content) for name, content in self.side.items()}
        return {**sizes, **{name: path.stat().st_size for name, path in self.copies.items()}}

    @property
    def bytes_before(self) -> int:
        return sum(group.bytes_before for group in self.groups)

    @property
    def bytes_after(self) -> int:
        return sum(group.bytes_after for group in self.groups)

    @property
    def tensor_sizes(self) -> dict[str, int]:
        """Bytes of every tensor, by key."""
        return {tensor.key: tensor.spec.nbytes for weight in self.weights for tensor in weight.outputs}

    @property
    def needed_disk(self) -> int:
        """Bytes still to be reserved; replaced files are deleted only after publishing."""
        finished, sizes = self.state.finished, {**self.files, **self.side_sizes}
        if finished is not None:
            sizes = {name: size for name, size in sizes.items() if name in finished.damaged}
        if not sizes:
            return 0
        # manifest and journal: a line for each tensor, and one for each weight
        texts = BYTES_OF_TEXT * (1 + sum(len(layout.offsets) for layout in self.file_layouts.values()))
        weights = sum(size for name, size in sizes.items() if name in self.files)
        held = weights if self.pending is None else min(weights, self.pending)
        return max(0, held + sum(sizes.values()) - weights + texts - self.state.staged)

    def current_state(self, other_source: bool = False) -> OutputState:
        """Of the output folder now, once it is locked: what was planned with may have changed. PlanError.

        other_source: what is published there was made of other source files, though their headers are the same.
        """
        layouts, overwrite = self.file_layouts, self.recipe.output.overwrite
        found = output_state(
            self.destination, self.name, layouts, self.published, self.fingerprint, overwrite, other_source
        )
        if found.problems:
            raise PlanError(*found.problems)
        return found

    @property
    def status(self) -> str:
        if self.state.done:
            return "done"
        if self.state.finished is not None:
            return "check"
        return "resume" if self.state.resumes else "new"

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "name": self.name,
            "status": self.status,
            "method": self.recipe.quantization.method,
            "target": self.target.name,
            "runs_on": self.target.runs_on.get(self.recipe.quantization.method, ""),
            "layout": self.layout.name,
            "output": str(self.destination),
            **({"state_folder": str(self.path)} if self.destination.location is not None else {}),
            "groups": [vars(group) for group in self.groups],
            "rules": [vars(rule) for rule in self.rules],
            "files": self.files,
            "side_files": {name: len(content) for name, content in self.side.items()},
            "copies": list(self.copies),
            "replaces": list(self.state.replaces),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "free_disk": surroundings.free_disk(self.path),
            "needed_disk": self.needed_disk,
            "fingerprint": self.fingerprint.value,
        }


@dataclass(frozen=True)
class Plan:
    """Everything that a conversion will do: one read of the source, one output or several.

    problems: what must be mended before it can be carried out, and was found too late to refuse the plan: disk space.
    """

    recipe: Recipe
    adapter: ModelAdapter
    model: ModelFacts
    stores: Stores
    jobs: tuple[Job, ...]
    outputs: tuple[OutputPlan, ...]
    resources: Resources
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    problems: tuple[str, ...] = ()
    loras: Loras = NO_LORAS

    def close(self) -> None:
        """Let go of the source's files. Also on leaving ``with plan:``."""
        self.stores.close()

    def __enter__(self) -> Plan:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def checkpoint(self) -> Checkpoint:
        return self.stores.base

    def as_dict(self) -> dict[str, Any]:
        """JSON values. Of a single output they stand beside those of the source; of several under ``outputs``."""
        source = self.checkpoint
        outputs = [output.as_dict() for output in self.outputs]
        return {
            **(outputs[0] if len(outputs) == 1 else {"outputs": outputs}),
            "model": {"adapter": self.adapter.name, "variant": self.model.variant, **self.model.facts},
            "source": {
                "path": str(source.location),
                "files": [file.name for file in source.files],
                "tensors": len(source.tensors),
                "bytes": sum(map(source.stored_nbytes, source.tensors)),
                "skipped": list(source.skipped),
                "dequantized_from": source.decoded_from,
            },
            "loras": [lora.as_dict() for lora in self.loras.files],
            "device": self.resources.name,
            "executor": self.resources.executor,
            "workers": self.resources.workers,
            "max_memory": self.resources.max_memory,
            "extra_tensors": [job.info.name for job in self.jobs if job.info.kind == "extra"],
            "notes": list(self.notes),
            "warnings": list(self.warnings),
            "problems": list(self.problems),
        }
