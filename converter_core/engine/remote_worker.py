"""The far end of a cluster: a process that plans what its driver has planned, and does the jobs it is told.

No plan travels: the recipe does. The process plans again from the headers that it sees itself, and works only if the
fingerprints are those of the driver, so that nobody can disagree about a single byte.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import errors
from ..errors import ConversionError, ConverterError, shown
from ..folder import Folder
from ..output.journal import Begun
from ..output.staging import StagedFile, Staging
from ..planning.jobs import Export
from ..planning.plan import Plan
from ..planning.planner import make_plan
from ..plugins.registry import load_plugins
from ..recipe.check_performance import THREADS
from .job_runner import JobRunner, Lane, MadeOf
from .memory import keep_freed_memory


@dataclass(frozen=True)
class Order:
    """What a worker is told. recipe: in the schema of the YAML file. folder: that relative paths begin at.

    marks: number of an output that is to be made -> value and ingredients of its fingerprint. versions: of the source
    files, which are no part of it: a file with the same header on another disk may hold other values.
    """

    recipe: Mapping[str, Any]
    folder: str
    marks: Mapping[int, tuple[str, Mapping[str, Any]]]
    versions: Mapping[str, Any]

    @classmethod
    def of(cls, plan: Plan, outputs: Sequence[int]) -> Order:
        recipe = plan.recipe.as_dict()
        recipe["performance"] = {
            "device": plan.resources.name,
            "max_memory": plan.resources.max_memory,
            "num_workers": 1,
            "executor": THREADS,
        }
        prints = {number: plan.outputs[number].fingerprint for number in outputs}
        marks = {number: (one.value, dict(one.made_of)) for number, one in prints.items()}
        versions = {file.name: [file.version] for file in plan.stores.files_of(plan.adapter)}
        return cls(recipe, str(Path.cwd()), marks, versions)


@dataclass(frozen=True)
class Failure:
    """A ConverterError on its way to the driver. kind: the class."""

    kind: str
    problems: tuple[str, ...]

    def error(self) -> ConverterError:
        made: ConverterError = getattr(errors, self.kind, ConversionError)(*self.problems)
        return made


class RemoteWorker:
    """One job at a time. What a user can act on is returned, not raised: exceptions do not travel well."""

    def __init__(self) -> None:
        keep_freed_memory()
        torch.set_num_threads(1)
        self._stack = ExitStack()

    def prepare(self, order: Order) -> Failure | None:
        try:
            self._prepare(order)
        except (ConverterError, OSError) as error:
            problems = error.problems if isinstance(error, ConverterError) else (_of_system(error),)
            return Failure(type(error).__name__, tuple(f"node {socket.gethostname()}: {one}" for one in problems))
        return None

    def do(self, number: int, outputs: Sequence[int]) -> MadeOf | Failure:
        """number: of the job in the plan."""
        job = self.plan.jobs[number]
        exports = [export for export in job.exports if export.output in outputs]
        try:
            return self.runner.do(self.lane, job, exports, lambda nbytes: None)
        except ConverterError as error:
            return Failure(type(error).__name__, error.problems)
        except OSError as error:
            if error.filename is None:
                raise
            return Failure("ConversionError", (_of_system(error),))

    def _prepare(self, order: Order) -> None:
        with suppress(OSError):  # absolute paths need no folder
            os.chdir(order.folder)
        self.plan = self._stack.enter_context(make_plan(order.recipe, load_plugins(), require_device=True))
        self._stagings: dict[int, Staging] = {}
        for number, (value, made_of) in order.marks.items():
            output = self.plan.outputs[number]
            if output.fingerprint.value != value:
                raise ConversionError(_other_plan(Begun(value, made_of).differences(output.fingerprint)))
            if moved := output.fingerprint.moved(order.versions, 1):
                raise ConversionError(_other_plan([f"the modification time of {name}" for name in moved]))
            self._stagings[number] = self._joined(Staging(self._folder(output.path), output.name, output.file_layouts))
        self.runner = JobRunner(self.plan, self._open, durable=True)
        self.lane: Lane = self._stack.enter_context(self.runner.lane(0))

    def _folder(self, path: Any) -> Folder:
        try:
            return self._stack.enter_context(Folder.open(path))
        except OSError as error:
            raise ConversionError(_not_shared(path)) from error

    def _joined(self, staging: Staging) -> Staging:
        try:
            staging.join()
        except OSError as error:
            raise ConversionError(_not_shared(staging.output.path)) from error
        self._stack.callback(staging.close)
        return staging

    def _open(self, export: Export) -> StagedFile:
        output = self.plan.outputs[export.output]
        return self._stagings[export.output].open(output.weight_map[export.tensors[0].key])


def _other_plan(differs: Sequence[str]) -> str:
    return (
        f"plans another conversion than the driver: {', '.join(map(shown, differs))} differ; install the same versions "
        "on every node, and let the source lie on a file system that all of them share"
    )


def _not_shared(path: object) -> str:
    return f"{shown(path)}: the driver's output is not here; output.path must lie on a file system that all nodes share"


def _of_system(error: OSError) -> str:
    return f"{shown(error.filename)}: {error.strerror or error}" if error.filename is not None else str(error)
