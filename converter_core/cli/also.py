"""``--also SCHEME[:TARGET[:LAYOUT]]``: further outputs of the same read, each in a folder of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..plugins.registry import Registry
    from ..recipe.load import Recipe, TargetSection

FORM = "SCHEME[:TARGET[:LAYOUT]]"


def pieces(text: str) -> tuple[str, str, str]:
    """Scheme, target and layout; empty where they are left out. ValueError for something else."""
    found = [piece.strip() for piece in text.split(":")]
    if not found[0] or len(found) > 3:
        raise ValueError(f"--also {text!r}: write it as {FORM}; model-converter plugins lists the names")
    scheme, target, layout = (*found, "", "")[:3]
    return scheme, target, layout


def with_outputs(recipe: Recipe, also: Sequence[str], registry: Registry) -> Recipe:
    """The recipe's own output and the further ones, each in ``OUTPUT/<target>_<scheme>_<layout>``.

    A further output is the recipe's with another method, all of its options left out, and maybe with another target
    and layout. Raises RecipeError.
    """
    from ..errors import RecipeError
    from ..recipe.load import load_recipe

    if recipe.outputs:
        where = recipe.where("outputs")
        raise RecipeError(f"{where}: --also adds to a recipe of one output; add to this list instead")
    mapping = recipe.as_dict()
    main: dict[str, Any] = {name: mapping.pop(name) for name in ("quantization", "output", "target") if name in mapping}
    outputs = [_into(main, recipe.quantization.method, recipe.target, registry)]
    for text in also:
        scheme, format, layout = pieces(text)
        target = _target(recipe.target, format, layout, registry)
        output = {key: value for key, value in main["output"].items() if key != "name"}
        sections = {"quantization": {"method": scheme}, "output": output, "target": _plain(target)}
        outputs.append(_into(sections, scheme, target, registry))
    return load_recipe(mapping, {"outputs": outputs}, registry, labels={"outputs": "--also"})


def _target(main: TargetSection, format: str, layout: str, registry: Registry) -> TargetSection:
    """The main output's section with another target and another layout; what belongs to the former ones is left out."""
    target = replace(main, precision=None)
    if format and format != (main.format or registry.targets.default()):
        target = replace(target, format=format, options={})
    if layout and layout != (main.layout or registry.layouts.default()):
        target = replace(target, layout=layout, chunk_size=None)
    return target


def _into(sections: dict[str, Any], scheme: str, target: TargetSection, registry: Registry) -> dict[str, Any]:
    from ..storage.location import within

    names = (target.format or registry.targets.default(), scheme, target.layout or registry.layouts.default())
    path = within(sections["output"]["path"], "_".join(names))
    return {**sections, "output": {**sections["output"], "path": path}}


def _plain(target: TargetSection) -> dict[str, Any]:
    return {key: value for key, value in vars(target).items() if value not in (None, {})}
