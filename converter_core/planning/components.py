"""A root as it was downloaded converts as a whole: a recipe for each of its components."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoint.roots import Component, components_of
from ..errors import PlanError, shown, unknown
from ..plugins.attribution import attribute_errors
from ..plugins.registry import Registry, load_plugins
from ..recipe.load import OutputSection, Recipe, load_recipe
from ..storage.location import within
from .plan import Plan
from .planner import adapters_of, make_plan, missing_disk


def component_recipes(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    registry: Registry | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[Recipe, ...]:
    """The recipe itself, or one for each component of a root: those of ``source.components``, else the main ones.

    Each component goes into a folder of its own name in ``output.path``.
    """
    registry = registry or load_plugins()
    asked = load_recipe(recipe, overrides or {}, registry)
    adapters = adapters_of(asked, registry)
    root = Path(asked.source.path)
    with attribute_errors(registry):
        there = components_of(root, adapters, registry, [])
    chosen = _chosen(asked, there)
    problems = list(_lora_problems(asked, [component.name for component in chosen]))
    if problems:
        raise PlanError(*problems)
    if all(component.relative == "." for component in chosen):
        return (_moved(asked, asked.source.path, ()),)
    return tuple(_recipe(asked, component) for component in chosen)


def make_plans(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    registry: Registry | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    require_device: bool = False,
) -> tuple[Plan, ...]:
    """A plan for each of ``component_recipes``. What speaks against one of them speaks against all."""
    registry = registry or load_plugins()
    recipes = component_recipes(recipe, registry, overrides=overrides)
    with ExitStack() as stack:
        plans = [stack.enter_context(make_plan(one, registry, require_device=require_device)) for one in recipes]
        if len(plans) > 1:
            problems = tuple(missing_disk([output for plan in plans for output in plan.outputs]))
            plans = [replace(plan, problems=problems) for plan in plans]
        stack.pop_all()
    return tuple(plans)


def _chosen(recipe: Recipe, there: Sequence[Component]) -> list[Component]:
    names = recipe.source.components
    if not names:
        if recipe.source.type:
            return list(there)
        return [component for component in there if not component.adapter.auxiliary]
    known = [component.name for component in there]
    if not known:
        raise PlanError(
            f"{recipe.where('source.components')}: {shown(recipe.source.path)} is no folder with components; "
            "leave it out"
        )
    wrong = [unknown("component", name, known) for name in names if name not in known]
    if wrong:
        raise PlanError(*(f"{recipe.where('source.components')}: {reason}" for reason in wrong))
    return [component for component in there if component.name in names]


def _lora_problems(recipe: Recipe, chosen: Sequence[str]) -> Iterator[str]:
    """LoRAs that are for no component, or for nobody knows which."""
    for number, lora in enumerate(recipe.source.loras):
        where = recipe.where(f"source.loras[{number}]")
        if lora.component is not None and lora.component not in chosen:
            yield f"{where}: {unknown('component', lora.component, chosen)}"
        elif lora.component is None and len(chosen) > 1:
            yield f"{where}: say which of {' and '.join(chosen)} it is for: component: {chosen[0]}"


def _recipe(recipe: Recipe, component: Component) -> Recipe:
    made = _moved(recipe, str(component.path), (component.name,))
    loras = [lora for lora in recipe.source.loras if lora.component in (None, component.name)]
    source = replace(made.source, loras=tuple(replace(lora, component=None) for lora in loras))
    made = _accepted(replace(made, source=source), recipe)
    if component.adapter.auxiliary and not recipe.source.type:
        made = _accepted(replace(made, source=replace(made.source, type=component.adapter.name)), recipe)
    return made


def _moved(recipe: Recipe, source: str, below: Sequence[str]) -> Recipe:
    """With another source, and every output in a folder below its own."""

    def moved(output: OutputSection) -> OutputSection:
        return replace(output, path=within(output.path, *below)) if below else output

    return _accepted(
        replace(
            recipe,
            source=replace(recipe.source, path=source, components=()),
            output=recipe.output if recipe.outputs else moved(recipe.output),
            outputs=tuple(replace(one, output=moved(one.output)) for one in recipe.outputs),
        ),
        recipe,
    )


def _accepted(made: Recipe, recipe: Recipe) -> Recipe:
    object.__setattr__(made, "accepted_by", recipe.accepted_by)
    return made
