"""From a recipe and headers to a plan: everything that can be refused is refused here, in one message.

A plan needs no tensor data and no device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from . import devices, faults, fingerprint, output_folder, packing, relayout, remarks, schemes, side_files
from .checkpoint import Checkpoint, open_checkpoint
from .devices import Means
from .errors import CheckpointError, PlanError, PluginError
from .hookspecs import DISTRIBUTION
from .interfaces import LayoutWriter, ModelAdapter, Quantizer
from .inventory import inventory
from .keep import Keep
from .manifest import manifest_name
from .plan import Plan
from .recipe import Recipe, load_recipe, make_quantizer
from .registry import Registry, load_plugins, options_of
from .selection import Choice, select
from .specs import FLOATING, Extras, OutputTensor, PlannedWeight, Stored, TensorSpec, WeightInfo
from .tensors import spec_of
from .weighing import Weigher, groups

_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "keep": None}


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
    means = devices.choose(asked, registry)
    if require_device and means.absence:
        raise PlanError(f"{asked.where('performance.device')}: {means.absence}")
    path = Path(asked.source.path)
    adapters = _adapters(asked, registry)
    left_out: list[str] = []
    checkpoint = open_checkpoint(path, format=asked.source.format, knows=faults.knowing(adapters, left_out))
    try:
        with faults.of_plugins(registry):
            return _Planner(asked, registry, means, checkpoint, adapters, left_out).plan()
    except BaseException:
        checkpoint.close()
        raise


def _adapters(recipe: Recipe, registry: Registry) -> list[ModelAdapter]:
    names = [recipe.source.type] if recipe.source.type else list(registry.models)
    return [registry.models[name]() for name in names]


class _Planner:
    def __init__(
        self,
        recipe: Recipe,
        registry: Registry,
        means: Means,
        checkpoint: Checkpoint,
        adapters: Sequence[ModelAdapter],
        left_out: list[str],
    ) -> None:
        """left_out: what is to be said of plugins that fail when they are asked whether they know this."""
        self.recipe = recipe
        self.registry = registry
        self.means = means
        self.checkpoint = checkpoint
        self.tensors = checkpoint.tensors
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.left_out = left_out
        self.adapter, self.variant = self._recognise(adapters)
        self.target = registry.targets[recipe.target.format or registry.targets.default()]()
        self.layout = self._layout()
        self.name = recipe.output.name or f"{self.adapter.name}_{recipe.quantization.method}"

    def plan(self) -> Plan:
        recipe, output = self.recipe, Path(self.recipe.output.path)
        self.problems += output_folder.check_apart(
            output, self.checkpoint.path, (Path(file.path) for file in self.checkpoint.files)
        )
        self.problems += self.adapter.problems(self.tensors)
        described = self.checkpoint.metadata
        quantized = relayout.recognise(self.tensors, described, self.registry, self.target, self.left_out)
        dtype = self._dtype()
        stored = self._relaid(quantized) if quantized else {}
        parts = {key for weight in stored.values() for role, key in weight.keys.items() if role != "weight"}
        infos = inventory(self.adapter, self.tensors, parts)
        names = {self.adapter.rename(info.name, self.target.dialect): info for info in infos}
        selection = select(recipe, self.registry, self.adapter, names, dtype) if not quantized else None
        if selection is not None:
            self.problems += selection.problems
            choices: Sequence[Choice] = selection.choices
        else:
            choices = [Choice(info, Keep(dtype), "none") for info in infos]
        self.notes += remarks.unmatched_names(choices)
        self.problems += self._quantized_without_scales(choices)
        weigher = Weigher(self.adapter, self.target, self.tensors)
        weights, jobs = weigher.weigh(choices, stored)
        self.problems += weigher.problems
        if self.problems:
            raise PlanError(*self.problems)
        self.problems += self.target.refuse(weights)
        if self.problems:
            raise PlanError(*self.problems)

        extras = self.target.extras(weights)
        everything = (*weights, *(_marker(key, spec_of(tensor)) for key, tensor in extras.tensors.items()))
        container = self.target.container
        files = packing.spread(self.layout, container, self.name, everything)
        used = {choice.quantizer for choice in choices}
        inputs = sorted({path for quantizer in used for path in quantizer.input_files()})
        before = schemes.load(described) if stored else ()
        told = before or schemes.schemes_of(recipe.quantization)
        metadata = {**packing.header_metadata(told, inputs, self.tensors), **extras.metadata}
        placed = {file: container.place(group, metadata) for file, group in files.items()}
        home = {output.key: file for file, group in files.items() for weight in group for output in weight.outputs}
        side, copies = self._side(extras, everything, home)

        distributions = self._distributions(used)
        sources = [(file.name, file.size, file.mtime_ns, file.header_hash) for file in self.checkpoint.files]
        for name, path in copies.items():
            stat = path.stat()
            sources.append((name, stat.st_size, stat.st_mtime_ns, ""))
        mark = fingerprint.fingerprint(recipe.as_dict(), sources, inputs, distributions)
        planned = (*placed, *side, *copies, manifest_name(self.name))
        survey = output_folder.survey(output, self.name, planned, mark, recipe.output.overwrite)
        self.problems += survey.problems
        plan = Plan(
            recipe=recipe,
            name=self.name,
            adapter=self.adapter,
            variant=self.variant,
            facts=self.adapter.describe(self.tensors),
            target=self.target,
            layout=self.layout,
            checkpoint=self.checkpoint,
            weights=everything,
            jobs=jobs,
            extras=extras,
            placed=placed,
            home=home,
            side=side,
            copies=copies,
            groups=groups(jobs),
            rules=selection.rules if selection else (),
            means=self.means,
            fingerprint=mark,
            distributions=distributions,
            survey=survey,
            notes=(*self.notes, *remarks.large(jobs, self.means), *remarks.of_target(self.target, weights)),
            warnings=(
                *remarks.started_anew(recipe.output.path, survey),
                *survey.warnings,
                *([self.means.absence] if self.means.absence else []),
                *self.left_out,
            ),
        )
        free = output_folder.free_disk(output)
        if plan.needed_disk > free:
            missing = plan.needed_disk - free
            self.problems.append(
                f"{output}: needs {plan.needed_disk} bytes of disk and {free} are free; make room for {missing} more"
            )
        if self.problems:
            raise PlanError(*self.problems)
        return plan

    def _recognise(self, adapters: Sequence[ModelAdapter]) -> tuple[ModelAdapter, str]:
        for adapter, variant in faults.asked(adapters, lambda adapter: adapter.recognise(self.tensors), self.left_out):
            if variant is not None:
                return adapter, variant
        known = ", ".join(adapter.name for adapter in adapters)
        some = ", ".join(repr(key) for key in list(self.tensors)[:3])
        raise PlanError(
            f"{self.checkpoint.path}: no model adapter recognises it (tried {known}); its tensors: {some} ...",
            *self.left_out,
        )

    def _layout(self) -> LayoutWriter:
        section = self.recipe.target
        cls = self.registry.layouts[section.layout or self.registry.layouts.default()]
        if section.chunk_size is None:
            return cls()
        if "chunk_size" not in {option.name for option in options_of(cls)}:
            raise PlanError(f"{self.recipe.where('target.chunk_size')}: layout {cls.name} has no chunk size")
        return cls(chunk_size=section.chunk_size)  # type: ignore[call-arg]

    def _dtype(self) -> str | None:
        asked: str | None = self.recipe.target.dtype
        section = self.recipe.quantization
        if asked is None and section.method != Keep.name:
            own = {key: value for key, value in section.options.items() if key != "target_modules"}
            asked = make_quantizer(self.registry.quantizers[section.method], own).passthrough_dtype
        return _DTYPES[asked] if asked else None

    def _relaid(self, quantized: relayout.Quantized) -> Mapping[str, Stored]:
        section = self.recipe.quantization
        if section.method == Keep.name and not section.rules and quantized.target == self.target.name:
            self.notes.append(f"the source is quantized already ({quantized}); only the layout changes")
            return quantized.weights
        self.problems.append(
            f"{self.checkpoint.path}: is quantized already ({quantized}); give the original checkpoint, or use "
            f"method: none and target.format: {quantized.target} to change the layout only"
        )
        return {}

    def _quantized_without_scales(self, choices: Iterable[Choice]) -> Iterable[str]:
        """Linear weights in a dtype that only makes sense with scales that no target finds here."""
        found = [
            source.key
            for choice in choices
            if choice.quantizer.name != Keep.name
            for source in choice.info.sources.values()
            if self.tensors[source.key].dtype not in FLOATING
        ]
        if found:
            dtype = self.tensors[found[0]].dtype
            yield (
                f"{self.checkpoint.path}: {len(found)} weights are {dtype} already, e.g. {found[0]}, in no format that "
                "is known here; give the original checkpoint"
            )

    def _side(
        self, extras: Extras, weights: Sequence[PlannedWeight], home: Mapping[str, str]
    ) -> tuple[dict[str, bytes], dict[str, Path]]:
        side: dict[str, bytes] = {}
        copies: dict[str, Path] = {}
        if self.recipe.output.copy_metadata:
            if self.checkpoint.path.is_dir():
                try:
                    found = side_files.side_files(self.checkpoint.root, self.adapter, self.target.dialect)
                except CheckpointError as error:
                    self.problems += error.problems
                else:
                    side, copies = found.written, found.copies
            else:
                self.notes.append(
                    "copy_metadata copies from a source folder; the source is a single file, so nothing is"
                )
        if self.layout.indexed:
            side[packing.index_name(self.target.container)] = packing.index(weights, home)
        for name, content in extras.side_files.items():
            if not isinstance(content, bytes):
                kind = type(content).__name__
                raise PluginError(f"target {self.target.name}: side file {name} must be bytes, not {kind}")
        side.update(extras.side_files)
        return side, {name: path for name, path in copies.items() if name not in side}

    def _distributions(self, quantizers: Iterable[Quantizer]) -> dict[str, str]:
        """Of the plugins this plan uses, and of the core: a new version may write other bytes."""
        origins = [
            self.registry.models.origins[self.adapter.name],
            self.registry.targets.origins[self.target.name],
            self.registry.layouts.origins[self.layout.name],
            *(
                self.registry.quantizers.origins[q.name]
                for q in quantizers
                if q.name in self.registry.quantizers.origins
            ),
        ]
        found = {origin.distribution: origin.version for origin in origins if origin.distribution}
        return dict(sorted({**found, DISTRIBUTION: version(DISTRIBUTION)}.items()))


def _marker(key: str, spec: TensorSpec) -> PlannedWeight:
    """A tensor that the target adds of its own."""
    return PlannedWeight(WeightInfo(key, {}, "extra"), key, spec, Keep.name, (OutputTensor(key, "weight", spec),))
