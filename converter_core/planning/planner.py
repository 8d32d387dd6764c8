"""From a recipe and headers to a plan: everything that can be refused is refused here, in one message.

A plan needs no tensor data and no device.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..api.contexts import ModelFacts, SourceTensors
from ..api.models import ModelAdapter
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.files import open_checkpoint
from ..checkpoint.inventory import inventory, skipped_tensors
from ..checkpoint.recognition import open_source, recognisers
from ..errors import CheckpointError, PlanError, shown
from ..lora.keys import is_lora
from ..output import surroundings
from ..output.destination import destination
from ..output.side_files import CONFIG
from ..plugins import attribution
from ..plugins.registry import Registry, load_plugins
from ..recipe.load import Recipe, load_recipe, make_plugin
from ..sizes import format_bytes
from ..storage.location import Location
from ..trusted import CONFIG as CONFIG_BYTES
from . import notes, resources, transcode, validate
from .dequantize import Dequantized
from .drafts import SourcePlan, in_its_dress, target_of
from .drafts import draft as draft_of
from .jobs import merged
from .loras import plan_loras
from .outputs import finish
from .plan import OutputPlan, Plan
from .prequantized import plain_casts, unread_scales
from .resources import Resources
from .shape_inference import ShapeInference
from .stores import Stores, read_whole


def make_plan(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    registry: Registry | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    require_device: bool = False,
) -> Plan:
    """What a recipe would do. Raises a ConverterError with all that speaks against it.

    require_device: an absent device is an error, not a warning.
    """
    registry = registry or load_plugins()
    asked = load_recipe(recipe, overrides or {}, registry)
    found = resources.choose(asked, registry)
    if require_device and found.absence:
        raise PlanError(f"{asked.where(found.absent)}: {found.absence}")
    adapters = adapters_of(asked, registry)
    skipped: list[str] = []
    checkpoint = open_source(asked.source.path, adapters, skipped, format=asked.source.format, registry=registry)
    stores = Stores(checkpoint, partial(open_checkpoint, registry=registry), asked.source.calibration)
    try:
        with attribution.attribute_errors(registry):
            return _plan(asked, registry, found, stores, adapters, skipped)
    except BaseException:
        stores.close()
        raise


def adapters_of(recipe: Recipe, registry: Registry) -> list[ModelAdapter]:
    """The one that the recipe names, or all that are tried."""
    if recipe.source.type:
        return [make_plugin(registry.models[recipe.source.type], recipe.source.options)]
    return [cls() for cls in registry.models.values() if not cls.by_name]


def _plan(
    recipe: Recipe,
    registry: Registry,
    found: Resources,
    stores: Stores,
    adapters: Sequence[ModelAdapter],
    skipped: list[str],
) -> Plan:
    """skipped: what is to be said of plugins that fail when they are asked whether they know this."""
    recipes = recipe.exports
    targets = [target_of(one, registry) for one in recipes]
    tensors = source_tensors(stores.base)
    quantized = transcode.recognise(tensors, registry, targets[0], skipped)
    if quantized is not None:
        quantized = transcode.with_shapes(quantized, tensors, registry)
        tensors = transcode.unpacked(tensors, quantized)
    adapter, variant = _recognise(adapters, tensors, stores.base.location, skipped)
    own = transcode.without(quantized, adapter.foreign(tensors))
    if own is not quantized:
        quantized, whole = own, source_tensors(stores.base)
        tensors = transcode.unpacked(whole, own) if own is not None else whole
    if recipe.source.dequantize and quantized is not None:
        stores.decode(Dequantized(stores.base, quantized, registry))
        skipped.append(
            f"the source was quantized ({quantized}) and is dequantized: what it lost then does not come back; prefer "
            "the original checkpoint"
        )
        tensors, quantized = source_tensors(stores.base), None
    elif recipe.source.dequantize:
        skipped.append(f"{recipe.where('source.dequantize')}: nothing in the source is quantized")
    tensors = source_tensors(stores.base, tensors, stores.of(adapter))
    model = ModelFacts(adapter.name, variant, adapter.describe(tensors), tensors.config)
    told: list[str] = []
    problems = [*adapter.problems(tensors)]
    if quantized is None:
        models = tensors.without(set(adapter.foreign(tensors)))
        problems += unread_scales(models, stores.base.location)
        told += plain_casts(models)
    infos = inventory(adapter, tensors)
    problems += validate.coverage(infos, stores.base.tensors, adapter.name)
    loras = plan_loras(recipe, adapter, infos, stores, quantized, registry)
    problems += loras.problems
    inference = ShapeInference(adapter)
    source = SourcePlan(registry, adapter, model, stores, tensors, infos, quantized, inference, found.name, loras)
    destinations = [destination(one.output, registry.storages) for one in recipes]
    for to in destinations:
        files = (Path(file.path) for file in stores.base.files)
        if to.location is not None:
            problems += surroundings.check_urls_apart(str(to), str(stores.base.location))
        elif stores.base.location.path is not None:
            problems += surroundings.check_apart(to.folder, stores.base.location.path, files)
    dressed = [in_its_dress(*pair, source) for pair in zip(recipes, targets, strict=True)]
    drafts = [draft_of(number, *pair, source) for number, pair in enumerate(dressed)]
    problems += dict.fromkeys(problem for draft in drafts for problem in draft.problems)
    if problems:
        raise PlanError(*problems)

    planned: list[OutputPlan] = []
    for draft, to in zip(drafts, destinations, strict=True):
        output, against = finish(draft, source, to)
        planned.append(output)
        problems += against
    problems += validate.outputs_apart(planned)
    if problems:
        raise PlanError(*problems)
    jobs = merged(draft.jobs for draft in drafts)
    return Plan(
        recipe=recipe,
        adapter=adapter,
        model=model,
        stores=stores,
        jobs=jobs,
        outputs=tuple(planned),
        resources=found,
        notes=tuple(dict.fromkeys([*told, *notes.of_outputs(planned), *notes.large(jobs, found)])),
        warnings=(
            *(warning for output in planned for warning in output.warnings),
            *([found.absence] if found.absence else []),
            *skipped,
            *stores.base.notes,
            *skipped_tensors(adapter, tensors),
            *loras.warnings,
        ),
        problems=tuple(missing_disk(planned)),
        loras=loras,
    )


def source_tensors(
    checkpoint: Checkpoint,
    tensors: Mapping[str, Any] | None = None,
    stores: Mapping[str, Mapping[str, Any]] | None = None,
) -> SourceTensors:
    """The tensors of a checkpoint as plugins see them, with its metadata and its config."""
    found = checkpoint.tensors if tensors is None else tensors
    config = config_beside(checkpoint.root)
    if checkpoint.decoded:
        config = {key: value for key, value in config.items() if key != "quantization_config"}
    return SourceTensors(found, checkpoint.metadata, config, stores, partial(read_whole, checkpoint))


def config_beside(root: Location) -> Mapping[str, Any]:
    """The ``config.json`` beside the weights; empty if there is none that can be read."""
    try:
        config = json.loads((root / CONFIG).content(CONFIG_BYTES))
    except (CheckpointError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _recognise(
    adapters: Sequence[ModelAdapter], tensors: SourceTensors, path: Location, skipped: list[str]
) -> tuple[ModelAdapter, str]:
    known = recognisers(adapters, tensors, skipped)
    if len(known) > 1:
        named = " and ".join(adapter.name for adapter, _ in known)
        raise PlanError(f"{path}: {named} both recognise it; say which with source.type (--model-type)")
    if known:
        return known[0]
    if is_lora(tensors):
        raise PlanError(
            f"{path}: is a LoRA, which changes a model and is none; give the model as the source, and this file by "
            "source.loras (--lora-path)"
        )
    tried = ", ".join(adapter.name for adapter in adapters)
    some = ", ".join(repr(key) for key in list(tensors)[:3])
    raise PlanError(
        f"{path}: no model adapter recognises it (tried {tried}); its tensors: {some} ...; for what it may be: "
        f"model-converter inspect {shown(path)}",
        *skipped,
    )


def missing_disk(planned: Sequence[OutputPlan]) -> list[str]:
    """Outputs on one disk need the room for all of them."""
    found = []
    needed: dict[int, int] = {}
    for output in planned:
        device = surroundings.disk_of(output.path)
        needed[device] = needed.get(device, 0) + output.needed_disk
        free = surroundings.free_disk(output.path)
        if needed[device] > free:
            found.append(
                f"{output.path}: needs {format_bytes(needed[device])} of disk and {format_bytes(free)} are free; make "
                f"room for {format_bytes(needed[device] - free)} more"
                + (", or choose another output.state_folder" if output.destination.location is not None else "")
            )
    return found
