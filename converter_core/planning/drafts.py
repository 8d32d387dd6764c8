"""The first half of planning an output: which quantizer takes which weight, and the jobs that follow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from ..api.containers import Container
from ..api.contexts import ModelFacts, SourceTensors
from ..api.layouts import LayoutWriter
from ..api.models import ModelAdapter
from ..api.quantizers import Quantizer
from ..api.targets import Target
from ..api.values import FLOATING, Parts, PlannedWeight, TensorSpec, WeightInfo
from ..errors import PlanError, PluginError, Refused
from ..plugins.registry import Registry, options_of
from ..recipe.load import Recipe, make_plugin
from . import file_layout, notes, validate
from .assignment import Assignment, Assignments, assign, quantizer_of
from .exact_numbers import Numbers
from .fallbacks import with_fallbacks
from .job_builder import JobBuilder
from .jobs import Job, source_spec
from .loras import NO_LORAS, Loras
from .passthrough import Passthrough
from .plain_dtypes import with_decoded, with_plain_dtypes
from .shape_inference import ShapeInference
from .stores import Stores
from .transcode import Quantized, reader_of
from .transcoder import Transcoders

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
    numbers: Mapping[str, Numbers] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def target_of(recipe: Recipe, registry: Registry) -> Target:
    cls = registry.targets[recipe.target.format or registry.targets.default()]
    return make_plugin(cls, recipe.target.options)


def in_its_dress(recipe: Recipe, target: Target, source: SourcePlan) -> tuple[Recipe, Target]:
    """The same; where only the layout changes, with the options of the source's files that are left out."""
    before, section = source.quantized, recipe.quantization
    unchanged = section.method == Passthrough.name and not section.rules
    if before is None or before.target != target.name or not before.options or not unchanged:
        return recipe, target
    options = {**before.options, **recipe.target.options}
    try:
        dress = make_plugin(type(target), options)
    except Refused:  # what is typed goes with none of these
        return recipe, target
    return replace(recipe, target=replace(recipe.target, options=options)), dress


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
        if source.quantized is not None and source.quantized.of(info) is not None:
            return source.tensors[info.refs[0].key]  # named by the weight; in the file its codes may have another key
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
    before = source.quantized
    transcoders = Transcoders(before, source.stores.base, partial(reader_of, registry)) if before else None
    builder = JobBuilder(
        number,
        source.adapter,
        source.model,
        target,
        source.stores,
        source.inference,
        passthrough,
        source.loras.terms,
        transcoders,
    )
    stored = {} if before is None else {info.name: before.of(info) for info in source.infos}
    quantized = {name: one for name, one in stored.items() if one is not None}
    made.weights, made.jobs = builder.build(found.all, quantized)
    made.markers = builder.markers
    made.numbers = transcoders.numbers if transcoders else {}
    made.notes += notes.of_quantizers(made.jobs)
    made.notes += notes.without_bias(builder.without_bias)
    made.problems += builder.problems(dict(registry.targets.items()))
    if not made.problems:
        made.problems += target.refuse(source.model, made.weights)
    return made


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
