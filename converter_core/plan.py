"""What a conversion will do, as a value: jobs, files to the byte, and what a user should know of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import output_folder
from .checkpoint import Checkpoint
from .devices import Means
from .fingerprint import Fingerprint
from .interfaces import LayoutWriter, ModelAdapter, Quantizer, Target
from .manifest import manifest_name
from .output_folder import Survey
from .recipe import Recipe
from .selection import RuleUse
from .specs import Extras, OutputTensor, Placed, PlannedWeight, WeightInfo
from .trial import Outcome


@dataclass(frozen=True)
class Job:
    """One weight's way from its sources to its outputs."""

    info: WeightInfo
    quantizer: Quantizer
    outcome: Outcome
    outputs: tuple[OutputTensor, ...]
    source_nbytes: int


@dataclass(frozen=True)
class Group:
    """Weights that are treated alike, for people to read."""

    method: str
    kind: str
    module: str
    count: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class Plan:
    """Everything that a conversion will do. ``home``: key -> file; ``placed``: file -> its header and offsets."""

    recipe: Recipe
    name: str
    adapter: ModelAdapter
    variant: str
    facts: Mapping[str, Any]
    target: Target
    layout: LayoutWriter
    checkpoint: Checkpoint
    weights: tuple[PlannedWeight, ...]
    jobs: tuple[Job, ...]
    extras: Extras
    placed: Mapping[str, Placed]
    home: Mapping[str, str]
    side: Mapping[str, bytes]
    copies: Mapping[str, Path]
    groups: tuple[Group, ...]
    rules: tuple[RuleUse, ...]
    means: Means
    fingerprint: Fingerprint
    distributions: Mapping[str, str]
    survey: Survey
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def close(self) -> None:
        """Let go of the source's files. Also on leaving ``with plan:``."""
        self.checkpoint.close()

    def __enter__(self) -> Plan:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def output(self) -> Path:
        return Path(self.recipe.output.path)

    @property
    def files(self) -> dict[str, int]:
        return {file: placed.size for file, placed in self.placed.items()}

    @property
    def published(self) -> tuple[str, ...]:
        """Every file that will stand in the output."""
        return (*self.placed, *self.side, *self.copies, manifest_name(self.name))

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
    def needed_disk(self) -> int:
        """Bytes still to be reserved; what gives way is there until the new files stand."""
        total = sum(self.files.values()) + sum(self.side_sizes.values())
        return 0 if self.survey.done else max(0, total - self.survey.staged)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        source = self.checkpoint
        return {
            "name": self.name,
            "status": "done" if self.survey.done else "resume" if self.survey.resumes else "new",
            "model": {"adapter": self.adapter.name, "variant": self.variant, **self.facts},
            "source": {
                "path": str(source.path),
                "files": [file.name for file in source.files],
                "tensors": len(source.tensors),
                "bytes": sum(spec.nbytes for spec in source.tensors.values()),
                "left_out": list(source.left_out),
            },
            "target": self.target.name,
            "layout": self.layout.name,
            "output": str(self.output),
            "groups": [vars(group) for group in self.groups],
            "rules": [vars(rule) for rule in self.rules],
            "files": self.files,
            "side_files": {name: len(content) for name, content in self.side.items()},
            "copies": list(self.copies),
            "replaces": list(self.survey.replaces),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "free_disk": output_folder.free_disk(self.output),
            "needed_disk": self.needed_disk,
            "device": self.means.name,
            "workers": self.means.workers,
            "max_memory": self.means.max_memory,
            "extra_tensors": [job.info.name for job in self.jobs if job.info.kind == "extra"],
            "fingerprint": self.fingerprint.value,
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }
