"""Plan one output: who quantizes what, what each file holds, what stands beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..api.formats import UNQUANTIZED
from ..api.hookspecs import DISTRIBUTION
from ..api.quantizers import Quantizer
from ..api.targets import Target
from ..api.tensors import spec_of
from ..api.values import Extras, FileLayout, OutputTensor, PlannedWeight, TensorSpec, WeightInfo
from ..api.writers import PartWriter
from ..checkpoint.files import weight_suffixes
from ..errors import CheckpointError, PlanError, PluginError, Refused
from ..output import fingerprint, side_files
from ..output.destination import Destination
from ..output.manifest import manifest_name
from ..output.state import output_state
from ..system import can_punch
from . import exact_numbers, file_layout, notes, provenance, validate
from .dequantize import DEQUANTIZED
from .drafts import Draft, SourcePlan
from .passthrough import Passthrough
from .pending import most_pending
from .plan import OutputPlan, groups_of


def finish(made: Draft, source: SourcePlan, destination: Destination) -> tuple[OutputPlan, list[str]]:
    """Lay out the files of an output that nothing speaks against; the plan, and what speaks against it now."""
    recipe, target = made.recipe, made.target
    extras = target.extras(source.model, made.weights)
    constants = {**made.markers, **extras.tensors}
    twice = sorted(made.markers.keys() & extras.tensors.keys())
    if twice:
        raise PluginError(f"target {target.name}: {twice[0]} is both a marker of a weight and an extra tensor")
    added = (_added(key, spec_of(tensor)) for key, tensor in extras.tensors.items())
    weights = (*made.weights, *added)
    problems = list(validate.unique_keys(weights))
    if problems:
        raise PluginError(*(f"target {target.name}: {problem}" for problem in problems))

    container = made.container
    problems += file_layout.unstorable(container, weights)
    if problems:
        raise PlanError(*problems)
    placed = file_layout.spread(made.layout, container, made.name, weights)
    if target.one_file and len(placed) > 1:
        problems.append(
            f"{recipe.where('target.layout')}: target {target.name} reads one file, and layout {made.layout.name} "
            f"makes {len(placed)}; leave the layout out, or choose one that makes a single file"
        )
    quantizers = {assignment.quantizer for assignment in made.assignments.all}
    inputs = sorted({*_input_files(quantizers, recipe.source.calibration), *source.adapter.input_files()})
    loras = source.loras.metadata()
    decoded = {DEQUANTIZED: source.stores.base.decoded_from} if source.stores.base.decoded else {}
    numbers = exact_numbers.header(made.numbers)
    metadata = {
        **container.metadata,
        **_metadata(made, source, inputs),
        **loras,
        **decoded,
        **numbers,
        **extras.metadata,
    }
    layouts = _placed(made, placed, metadata)
    weight_map = {tensor.key: file for file, group in placed.items() for weight in group for tensor in weight.outputs}
    side, copies = _side(made, source, extras, weights, weight_map, problems)
    distributions = _distributions(made, source, quantizers)
    contents = {**{path: fingerprint.content_hash(path) for path in inputs}, **source.loras.contents()}
    files = source.stores.files_of(source.adapter)
    beside = {name: fingerprint.content_hash(str(path)) for name, path in copies.items()}
    mark = fingerprint.fingerprint(recipe.as_dict(), files, contents, distributions, beside)
    planned = (*layouts, *side, *copies, manifest_name(made.name))
    state = output_state(destination, made.name, layouts, planned, mark, recipe.output.overwrite)
    pending = None
    if isinstance(destination.writer, PartWriter) and can_punch():
        sizes = {tensor.key: tensor.spec.nbytes for weight in weights for tensor in weight.outputs}
        number = made.number
        pending = most_pending(made.jobs, number, layouts, sizes, weight_map, constants, destination.writer)
    plan = OutputPlan(
        number=made.number,
        recipe=recipe,
        destination=destination,
        name=made.name,
        target=target,
        container=container,
        layout=made.layout,
        weights=weights,
        constants=constants,
        extras=extras,
        file_layouts=layouts,
        weight_map=weight_map,
        side=side,
        copies=copies,
        pending=pending,
        groups=groups_of(made.jobs, made.number),
        rules=made.assignments.rules,
        fingerprint=mark,
        distributions=distributions,
        state=state,
        notes=(*made.notes, *notes.of_target(target, made.weights)),
        warnings=(*notes.started_anew(recipe.output.path, state), *state.warnings),
    )
    if faults := list(validate.validate(plan, made.jobs)):
        raise PluginError(*faults)
    return plan, [*problems, *state.problems]


def _added(key: str, spec: TensorSpec) -> PlannedWeight:
    """A tensor that the target adds of its own."""
    return PlannedWeight(WeightInfo(key, {}, "extra"), key, spec, UNQUANTIZED, (OutputTensor(key, "weight", spec),))


def _input_files(quantizers: Iterable[Quantizer], calibration: str | None) -> list[str]:
    """Of what the quantizers are given beside the weights."""
    at_work = [one for one in quantizers if one.name != Passthrough.name]
    own = {path for one in at_work for path in (*one.input_files(), *one.stores().values())}
    return sorted(own | {calibration}) if calibration is not None and at_work else sorted(own)


def _metadata(made: Draft, source: SourcePlan, inputs: Sequence[str]) -> dict[str, Any]:
    before = provenance.load(source.tensors.metadata) if source.quantized else ()
    told = before or provenance.schemes_of(made.recipe.quantization)
    return file_layout.header_metadata(told, inputs, source.stores.base.tensors)


def _placed(
    made: Draft, files: Mapping[str, Sequence[PlannedWeight]], metadata: Mapping[str, Any]
) -> dict[str, FileLayout]:
    try:
        return {file: made.container.place(group, metadata) for file, group in files.items()}
    except Refused as refusal:
        raise PlanError(*(f"target {made.target.name}: {problem}" for problem in refusal.problems)) from None


def _side(
    made: Draft,
    source: SourcePlan,
    extras: Extras,
    weights: Sequence[PlannedWeight],
    weight_map: Mapping[str, str],
    problems: list[str],
) -> tuple[dict[str, bytes], dict[str, Path]]:
    """Files that are written beside the weights, and files of the source that are copied there."""
    target, checkpoint = made.target, source.stores.base
    side: dict[str, bytes] = {}
    copies: dict[str, Path] = {}
    if made.recipe.output.copy_metadata:
        folder = checkpoint.location.path
        if folder is not None and folder.is_dir():
            try:
                found = side_files.side_files(
                    folder,
                    source.adapter,
                    source.tensors,
                    target.config_format,
                    weight_suffixes(source.registry.containers),
                )
            except CheckpointError as error:
                problems += error.problems
            else:
                side, copies = found.written, found.copies
                if checkpoint.decoded and copies.pop(side_files.CONFIG, None) is not None:
                    side[side_files.CONFIG] = (json.dumps(source.tensors.config, indent=2) + "\n").encode()
        else:
            made.notes.append(
                "copy_metadata copies from a source folder on this machine; the source is a single file or lies "
                "elsewhere, so nothing is"
            )
    try:
        config = _config(target, source, weights)
    except Refused as refusal:
        problems.append(f"target {target.name}: {refusal}")
        config = None
    if config is not None:
        side[side_files.CONFIG] = (json.dumps(config, indent=2) + "\n").encode()
    own: dict[str, bytes] = {}
    index_name = file_layout.index_name(made.container, target)
    if made.layout.indexed and index_name:
        own[index_name] = file_layout.index(weights, weight_map, extras.index)
    for name, content in extras.side_files.items():
        if not isinstance(content, bytes):
            raise PluginError(f"target {target.name}: side file {name} must be bytes, not {type(content).__name__}")
        if name in own:
            raise PluginError(f"target {target.name}: side file {name} would replace the index")
        own[name] = content
    side.update(own)
    return side, {name: path for name, path in copies.items() if name not in side}


def _config(target: Target, source: SourcePlan, weights: Sequence[PlannedWeight]) -> Mapping[str, Any] | None:
    """None where the target has no wish."""
    if type(target).config is Target.config:
        return None
    return target.config(source.adapter.config(source.tensors, target.config_format), weights)


def _distributions(made: Draft, source: SourcePlan, quantizers: Iterable[Quantizer]) -> dict[str, str]:
    """Of the plugins this output uses, and of the core: a new version may write other bytes.

    And of torch, with the device, where those decide some of them.
    """
    quantizers = list(quantizers)
    registry = source.registry
    numerics = made.recipe.source.lora_numerics
    origins = [
        *([registry.targets.origins[numerics]] if numerics in registry.targets else []),
        registry.models.origins[source.adapter.name],
        registry.targets.origins[made.target.name],
        registry.layouts.origins[made.layout.name],
        registry.containers.origins[made.container.name],
        *(registry.quantizers.origins[q.name] for q in quantizers if q.name in registry.quantizers.origins),
    ]
    found = {origin.distribution: origin.version for origin in origins if origin.distribution}
    if not all(one.same_everywhere for one in quantizers):
        found["torch"] = f"{version('torch')} on {source.device}"
    return dict(sorted({**found, DISTRIBUTION: version(DISTRIBUTION)}.items()))
