"""A batch: a list of recipes, a matrix of them, or both; its jobs are checked together before any of them begins."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..plugins.registry import Registry, load_plugins
from .fields import workers
from .load import Recipe, accept
from .matrix import Matrix, cells, read_matrix
from .schema import Problem, join, read, show
from .values import PerformanceSection, located
from .yaml_file import Document, read_yaml

NAME = "name"
"""The key of a job beside those of a recipe."""


@dataclass(frozen=True)
class BatchJob:
    """One recipe of a batch. name: what messages and tables call it."""

    name: str
    recipe: Recipe


@dataclass(frozen=True)
class Batch:
    """at_once: conversions that run side by side."""

    jobs: tuple[BatchJob, ...]
    at_once: int = 1


@dataclass(frozen=True)
class _File:
    """The keys of a batch file. performance: of the jobs that have no such section of their own."""

    jobs: tuple[Any, ...] = ()
    matrix: Mapping[str, Any] | None = None
    performance: PerformanceSection = field(default_factory=PerformanceSection)
    at_once: int = field(default=1, metadata={"read": workers})


@dataclass(frozen=True)
class _Draft:
    """A job before the plugins have seen it."""

    name: str
    document: Document


def load_batch(
    source: Mapping[str, Any] | Sequence[Any] | str | os.PathLike[str],
    overrides: Mapping[str, Any] | None = None,
    registry: Registry | None = None,
    *,
    labels: Mapping[str, str] | None = None,
) -> Batch:
    """RecipeError with all that is wrong with any of the jobs, each with its place and key.

    source: the path of a batch file, a mapping in its schema, or a list of jobs. overrides: dotted key -> value, of
    every job. labels: dotted key -> what to call the place an override came from.
    """
    registry = registry or load_plugins()
    document = _document(source)
    if "source" in document.data and not {"jobs", "matrix"} & set(document.data):
        place = document.places.get("", "batch")
        raise RecipeError(f"{place}: is a recipe, not a batch; convert it by itself, or list it under jobs")
    problems: list[Problem] = []
    file: _File = read(_File, document.data, "", problems)
    told = list(document.problems)
    drafts = [
        *_listed(document, file, told),
        *_of_matrix(document, problems),
    ]
    told += [f"{located(problem.path, document.places)}: {problem.reason}" for problem in problems]
    jobs = []
    for draft in drafts:
        try:
            recipe = accept(_with_defaults(draft.document, document), registry, overrides, labels)
        except RecipeError as error:
            told += error.problems
        else:
            jobs.append(BatchJob(draft.name or _name(recipe), recipe))
    if not drafts and not told:
        told.append(f"{document.places.get('', 'batch')}: holds no job; list recipes under jobs, or write a matrix")
    told += _meeting(jobs)
    if told:
        raise RecipeError(*dict.fromkeys(told))
    return Batch(tuple(jobs), file.at_once)


def _document(source: Mapping[str, Any] | Sequence[Any] | str | os.PathLike[str]) -> Document:
    if isinstance(source, Mapping):
        return Document(copy.deepcopy(dict(source)))
    if isinstance(source, (str, os.PathLike)):
        return read_yaml(Path(source))
    return Document({"jobs": copy.deepcopy(list(source))})


def _listed(document: Document, file: _File, told: list[str]) -> Iterator[_Draft]:
    """The jobs under ``jobs``: each the path of a recipe, or a recipe."""
    for number, job in enumerate(file.jobs or ()):
        place = f"jobs[{number}]"
        if isinstance(job, (str, os.PathLike)):
            try:
                yield _Draft(str(job), read_yaml(Path(job)))
            except RecipeError as error:
                told += [f"{located(place, document.places)}: {problem}" for problem in error.problems]
        elif isinstance(job, Mapping):
            data = dict(job)
            name = data.pop(NAME, "")
            if not isinstance(name, str):
                told.append(f"{located(join(place, NAME), document.places)}: must be text, not {show(name)}")
                name = ""
            yield _Draft(name, Document(data, below(document.places, place)))
        else:
            told.append(f"{located(place, document.places)}: must be the path of a recipe, or a recipe")


def below(places: Mapping[str, str], key: str) -> dict[str, str]:
    """The places of what stands below a key, by the keys within it; without any, the key itself is the place."""
    found = {
        at.removeprefix(key).removeprefix("."): place
        for at, place in places.items()
        if at == key or at.startswith((f"{key}.", f"{key}["))
    }
    return found or {"": key}


def _of_matrix(document: Document, problems: list[Problem]) -> Iterator[_Draft]:
    data = document.data.get("matrix")
    if not isinstance(data, Mapping):
        return
    before = len(problems)
    matrix: Matrix = read_matrix(data, "matrix", problems)
    if len(problems) > before:
        return
    for cell in cells(matrix, "matrix", problems):
        places = {"": document.places.get("matrix", "matrix")}
        for section, key in cell.origins.items():
            places |= {join(section, inner).rstrip("."): at for inner, at in below(document.places, key).items()}
        yield _Draft(cell.name, Document(copy.deepcopy(cell.recipe), places))


def _with_defaults(job: Document, batch: Document) -> Document:
    """A job that says nothing of performance takes the section of the batch."""
    section = batch.data.get("performance")
    if section is None or job.data.get("performance") is not None:
        return job
    places = {join("performance", key).rstrip("."): at for key, at in below(batch.places, "performance").items()}
    return Document({**job.data, "performance": copy.deepcopy(section)}, {**job.places, **places}, list(job.problems))


def _name(recipe: Recipe) -> str:
    """The last folders of its outputs."""
    return ", ".join(Path(one.output.path).name or one.output.path for one in recipe.exports)


def _meeting(jobs: Sequence[BatchJob]) -> Iterable[str]:
    """Outputs of two jobs that lie in one folder, or one inside the other's."""
    folders: dict[Path, tuple[BatchJob, Recipe]] = {}
    every = [(job, export, Path(os.path.realpath(export.output.path))) for job in jobs for export in job.recipe.exports]
    for job, export, folder in every:
        first = folders.setdefault(folder, (job, export))
        if first[1] is not export and first[0] is not job:
            yield (
                f"{export.where('output.path')}: {export.output.path} of {job.name} is the folder of {first[0].name} "
                "too; give each output a folder of its own"
            )
    for job, export, folder in every:
        for around in folder.parents:
            if around in folders and folders[around][0] is not job:
                yield (
                    f"{export.where('output.path')}: {export.output.path} of {job.name} lies inside the output of "
                    f"{folders[around][0].name}; give each output a folder of its own"
                )
