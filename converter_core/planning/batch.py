"""Jobs of a batch: which are converted together, and what each would do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConverterError
from ..plugins.registry import Registry
from ..recipe.batch import Batch, BatchJob
from ..recipe.load import ExportSection, Recipe, load_recipe
from .components import make_plans

REFUSED = "refused"


def groups_of(jobs: Sequence[BatchJob]) -> list[list[int]]:
    """Numbers of jobs whose recipes are equal beside their outputs, in the order of their first one."""
    found: dict[str, list[int]] = {}
    for number, job in enumerate(jobs):
        asked = job.recipe.as_dict()
        case = json.dumps([asked["source"], asked["performance"]], sort_keys=True, default=str)
        found.setdefault(case, []).append(number)
    return list(found.values())


def together(recipes: Sequence[Recipe], registry: Registry) -> Recipe:
    """One recipe with the outputs of several."""
    if len(recipes) == 1:
        return recipes[0]
    outputs = [
        ExportSection(quantization=one.quantization, output=one.output, target=one.target)
        for recipe in recipes
        for one in recipe.exports
    ]
    made = Recipe(source=recipes[0].source, outputs=tuple(outputs), performance=recipes[0].performance)
    return load_recipe(made, registry=registry)


@dataclass(frozen=True)
class JobPlan:
    """What a job would do. status: of its outputs, the one that is furthest from done; ``refused``: see ``problems``.

    plans: as_dict() of each of its plans. read_with: jobs that are made of the same read.
    """

    name: str
    status: str
    plans: tuple[dict[str, Any], ...] = ()
    problems: tuple[str, ...] = ()
    read_with: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "job": self.name,
            "state": self.status,
            "problems": list(self.problems),
            "plans": list(self.plans),
            "read_with": list(self.read_with),
        }


_FURTHEST = ("new", "resume", "check", "done")


def plan_jobs(batch: Batch, registry: Registry) -> Iterator[JobPlan]:
    """One after the other, in the order of the batch."""
    groups = groups_of(batch.jobs)
    for number, job in enumerate(batch.jobs):
        group = next(group for group in groups if number in group)
        others = tuple(batch.jobs[other].name for other in group if other != number)
        try:
            made = make_plans(job.recipe, registry)
        except ConverterError as error:
            yield JobPlan(job.name, REFUSED, problems=error.problems, read_with=others)
            continue
        for plan in made:
            plan.close()
        problems = tuple(dict.fromkeys(problem for plan in made for problem in plan.problems))
        found = {output.status for plan in made for output in plan.outputs}
        status = REFUSED if problems else next(one for one in _FURTHEST if one in found)
        yield JobPlan(job.name, status, tuple(plan.as_dict() for plan in made), problems, others)
