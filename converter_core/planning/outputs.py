"""Plan one output: who quantizes what, what each file holds, what stands beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..api.containers import Container
from ..api.contexts import ModelFacts, SourceTensors
from ..api.formats import UNQUANTIZED
from ..api.hookspecs import DISTRIBUTION
from ..api.layouts import LayoutWriter
from ..api.models import ModelAdapter
from ..api.quantizers import Quantizer
from ..api.targets import Target
from ..api.tensors import spec_of
from ..api.values import FLOATING, Extras, FileLayout, OutputTensor, Parts, PlannedWeight, TensorSpec, WeightInfo
from ..checkpoint.checkpoint import SourceFile
from ..checkpoint.files import weight_suffixes
from ..errors import CheckpointError, PlanError, PluginError, Refused
from ..output import fingerprint, side_files
from ..output import state as output_folder
from ..output.manifest import manifest_name
from ..plugins.registry import Registry, options_of
from ..recipe.load import Recipe, make_plugin
from . import file_layout, notes, provenance, validate
from .assignment import Assignment, Assignments, assign, quantizer_of
from .dequantize import DEQUANTIZED
from .fallbacks import with_fallbacks
from .jobs import Job, JobBuilder, source_spec
from .loras import NO_LORAS, Loras
from .passthrough import Passthrough
from .plain_dtypes import with_decoded, with_plain_dtypes
from .plan import OutputPlan, groups_of
from .shape_inference import ShapeInference
from .stores import Stores
from .transcode import Quantized

_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "keep": None}


@dataclass(frozen=True)
class SourcePlan:
    """What all outputs of a plan share: the source, as its model adapter sees it.

    tensors: with quantized weights in their own shapes. infos: every weight. quantized: weights that are quantized
    already, if there are any. device: the name of the one it is computed on. loras: what is merged into them.
    """

    registry: Registry
    adapter: ModelAdapter
    model: ModelFacts
    stores: Stores
    tensors: SourceTensors
    infos: Sequence[WeightInfo]
    quantized: Quantized | None
    inference: ShapeInference
    device: str
    loras: Loras = NO_LORAS


@dataclass
class Draft:
    """An output before its files are laid out. problems: all that speaks against it so far."""

    number: int
    recipe: Recipe
    target: Target
    container: Container
    layout: LayoutWriter
    name: str
    assignments: Assignments
    weights: tuple[PlannedWeight, ...] = ()
    jobs: tuple[Job, ...] = ()
    markers: Parts = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def target_of(recipe: Recipe, registry: Registry) -> Target:
    cls = registry.targets[recipe.target.format or registry.targets.default()]
    return make_plugin(cls, recipe.target.options)


def draft(number: int, recipe: Recipe, target: Target, source: SourcePlan) -> Draft:
    """Assign quantizers and build jobs. What is refused stands in ``problems``."""
    registry, section = source.registry, recipe.quantization
    main = quantizer_of(registry, section.method, section.options, target)
    passthrough = Passthrough(_passthrough_dtype(recipe, main))
    key_format = target.key_format_for(source.adapter.key_formats)
    renamed = {info.name: source.adapter.rename(info.name, key_format) for info in source.infos}
    clashes = list(validate.names(source.infos, renamed, source.adapter.name))
    if clashes:
        raise PluginError(*clashes)

    def spec_of(info: WeightInfo) -> TensorSpec:
        return source_spec(info, source.stores, source.adapter)

    told: list[str] = []
    if source.quantized is not None:
        unassigned = tuple(Assignment(info, passthrough, Passthrough.name) for info in source.infos)
        found = Assignments(unassigned, (), ())
    else:
        asked = assign(recipe, registry, source.adapter, source.infos, target, passthrough, main)
        found, told = with_fallbacks(asked, spec_of)
    found = with_decoded(found, source.stores.base.decoded)
    found = with_plain_dtypes(found, target, source.model, renamed.__getitem__, spec_of)
    name = recipe.output.name or target.file_name or source.adapter.output_name(section.method)
    container = file_layout.container_of(target, registry)
    layout = _layout(recipe, registry)
    made = Draft(number, recipe, target, container, layout, name, found, problems=list(found.problems))
    if target.file_name and name != target.file_name:
        made.problems.append(
            f"{recipe.where('output.name')}: target {target.name} looks for {target.file_name} and not for {name}; "
            "leave output.name out"
        )
    made.notes += told
    refused = list(_transcode_problems(recipe, target, source, made.notes))
    made.problems += refused
    made.problems += _quantized_without_scales(found.all, source)
    if refused:
        return made
    made.notes += notes.unmatched_names(found.all)
    builder = JobBuilder(
        number,
        source.adapter,
        source.model,
        target,
        source.stores,
        source.inference,
        passthrough,
        source.loras.terms,
        registry.targets[source.quantized.target]() if source.quantized else None,
    )
    before = source.quantized
    stored = {} if before is None else {info.name: before.of(info) for info in source.infos}
    quantized = {name: one for name, one in stored.items() if one is not None}
    made.weights, made.jobs = builder.build(found.all, quantized)
    made.markers = builder.markers
    made.notes += notes.without_bias(builder.without_bias)
    made.problems += builder.problems(dict(registry.targets.items()))
    if not made.problems:
        made.problems += target.refuse(source.model, made.weights)
    return made


def finish(made: Draft, source: SourcePlan) -> tuple[OutputPlan, list[str]]:
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
    files = file_layout.spread(made.layout, container, made.name, weights)
    if target.one_file and len(files) > 1:
        problems.append(
            f"{recipe.where('target.layout')}: target {target.name} reads one file, and layout {made.layout.name} "
            f"makes {len(files)}; leave the layout out, or choose one that makes a single file"
        )
    quantizers = {assignment.quantizer for assignment in made.assignments.all}
    inputs = sorted({*_input_files(quantizers, recipe.source.calibration), *source.adapter.input_files()})
    loras = source.loras.metadata()
    decoded = {DEQUANTIZED: source.stores.base.decoded_from} if source.stores.base.decoded else {}
    metadata = {**container.metadata, **_metadata(made, source, inputs), **loras, **decoded, **extras.metadata}
    layouts = _placed(made, files, metadata)
    weight_map = {tensor.key: file for file, group in files.items() for weight in group for tensor in weight.outputs}
    side, copies = _side(made, source, extras, weights, weight_map, problems)
    distributions = _distributions(made, source, quantizers)
    contents = {**{path: fingerprint.content_hash(path) for path in inputs}, **source.loras.contents()}
    paths = {file.name: file.path for file in _read_files(source)}
    mark = fingerprint.fingerprint(recipe.as_dict(), _source_files(source, copies), contents, distributions, paths)
    planned = (*layouts, *side, *copies, manifest_name(made.name))
    path = Path(recipe.output.path)
    state = output_folder.output_state(path, made.name, layouts, planned, mark, recipe.output.overwrite)
    plan = OutputPlan(
        number=made.number,
        recipe=recipe,
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


def _passthrough_dtype(recipe: Recipe, main: Quantizer | None) -> str | None:
    asked: str | None = recipe.target.dtype or (main.passthrough_dtype if main is not None else None)
    return _DTYPES[asked] if asked else None


def _layout(recipe: Recipe, registry: Registry) -> LayoutWriter:
    section = recipe.target
    cls = registry.layouts[section.layout or registry.layouts.default()]
    if section.chunk_size is None:
        return cls()
    if "chunk_size" not in {option.name for option in options_of(cls)}:
        raise PlanError(f"{recipe.where('target.chunk_size')}: layout {cls.name} has no chunk size")
    return make_plugin(cls, {"chunk_size": section.chunk_size})


def _transcode_problems(recipe: Recipe, target: Target, source: SourcePlan, said: list[str]) -> Iterable[str]:
    section, quantized = recipe.quantization, source.quantized
    if quantized is None:
        return
    if section.method == Passthrough.name and not section.rules:
        how = "only the layout changes" if quantized.target == target.name else f"{target.name} gets the same codes"
        said.append(f"the source is quantized already ({quantized}); {how}, and nothing is rounded anew")
        return
    yield (
        f"{source.stores.base.location}: is quantized already ({quantized}); give the original checkpoint, or use "
        "method: none, which keeps codes and scales, to change the layout or the target only, or write "
        "source.dequantize: true, which decodes it first; what it has lost does not come back"
    )


def _quantized_without_scales(assignments: Iterable[Assignment], source: SourcePlan) -> Iterable[str]:
    """Linear weights in a dtype that only makes sense with scales that no target finds here."""
    found = [
        ref.key
        for assignment in assignments
        if assignment.quantizer.name != Passthrough.name
        for ref in assignment.info.refs
        if ref.key in source.tensors and source.tensors[ref.key].dtype not in FLOATING
    ]
    if found:
        dtype = source.tensors[found[0]].dtype
        yield (
            f"{source.stores.base.location}: {len(found)} weights are {dtype} already, e.g. {found[0]}, in no format "
            "that is known here; give the original checkpoint"
        )


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


def _read_files(source: SourcePlan) -> list[SourceFile]:
    files = [*source.stores.base.files]
    for path in source.adapter.stores().values():
        files += source.stores.file(path).files
    return files


def _source_files(source: SourcePlan, copies: Mapping[str, Path]) -> list[tuple[str, int, int | str, str]]:
    """(name, size, mtime, header hash) of every file that the output is made of."""
    found: list[tuple[str, int, int | str, str]] = [
        (file.name, file.size, file.version, file.header_hash) for file in _read_files(source)
    ]
    for name, copied in copies.items():
        stat = copied.stat()
        found.append((name, stat.st_size, stat.st_mtime_ns, ""))
    return found


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
