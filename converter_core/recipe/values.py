"""What the user asked for, as values. One dataclass per section of the YAML file, one field per key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

from ..errors import RecipeError
from .fields import finite, folder, glob, memory, stem, workers
from .schema import Problem, read


@dataclass(frozen=True)
class Rule:
    """``method`` for the weights whose name matches a glob. The first rule that matches decides.

    match: a glob on the weight's name in the target's naming without ``.weight``; ``*`` crosses dots.
    options: the method's own; nothing is inherited from the section.
    """

    match: str = field(metadata={"read": glob})
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoraSection:
    """A LoRA that is merged into the weights: ``W + strength * alpha / rank * B A``.

    alpha: for pairs whose file has none; None: their rank. component: of a folder with several models, which one.
    """

    path: str = field(metadata={"read": folder})
    strength: float = field(default=1.0, metadata={"read": finite})
    alpha: float | None = field(default=None, metadata={"read": finite})
    component: str | None = None


@dataclass(frozen=True)
class SourceSection:
    """Where the checkpoint is. None: detected.

    path: a directory (with or without an index), an index, or one file of weights.
    type: the model adapter's name. components: of a folder with several models, by name; empty: the main ones.
    format: the container of the files.
    options: the model adapter's own dataclass fields; they need ``type``.
    calibration: a file of activation statistics, for the schemes whose options ask for it.
    loras: merged in this order. lora_numerics: ``exact``, or a target whose runtime's own tool is followed.
    on_unmatched: what a LoRA's key that matches no weight is.
    dequantize: decode a source that is quantized already, and go on with its values.
    """

    path: str = field(metadata={"read": folder})
    type: str | None = None
    components: tuple[str, ...] = ()
    format: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    calibration: str | None = field(default=None, metadata={"read": folder})
    loras: tuple[LoraSection, ...] = ()
    lora_numerics: str = "exact"
    on_unmatched: Literal["error", "warn"] = "error"
    dequantize: bool = False


@dataclass(frozen=True)
class QuantizationSection:
    """Which scheme for which weights. ``method`` ``none``: nothing is quantized, only the layout changes.

    options: ``target_modules``, and the quantizer's own dataclass fields. ``per_channel: true`` and
    ``symmetric: true`` are taken by every method.
    """

    method: str = "none"
    options: Mapping[str, Any] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True)
class OutputSection:
    """Where the result goes. ``path`` is a folder, or the URL of one; ``name`` None: ``{model}_{method}``.

    state_folder: on this machine, for what of an output on a URL is not sent yet; None: of the user.
    """

    path: str = field(metadata={"read": folder})
    name: str | None = field(default=None, metadata={"read": stem})
    copy_metadata: bool = False
    overwrite: bool = False
    state_folder: str | None = field(default=None, metadata={"read": folder})


@dataclass(frozen=True)
class TargetSection:
    """What is written. None: the default of the registered targets and layouts.

    precision: a label that must agree with ``quantization.method``.
    chunk_size: for layouts with such an option; a size with a unit, or a number of tensors.
    dtype: of floating tensors that are not quantized; ``keep``: as they are.
    options: the target's own dataclass fields.
    """

    format: str | None = None
    precision: str | None = None
    layout: str | None = None
    chunk_size: int | str | None = None
    dtype: Literal["bfloat16", "float16", "float32", "keep"] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PerformanceSection:
    """How it is done; changes no byte of the output.

    parallel: False: one worker. num_workers None: the cores, at most 8. Of two that contradict each other an override
    wins over the file; two of one place are refused.
    max_memory: bytes of tensor data in flight, on the host and on the device each; None: chosen and stated.
    executor: who runs the jobs.
    """

    parallel: bool = True
    device: str = "auto"
    num_workers: int | None = field(default=None, metadata={"read": workers})
    max_memory: int | None = field(default=None, metadata={"read": memory})
    executor: str = "threads"


@dataclass(frozen=True, kw_only=True)
class ExportSection:
    """One of several ``outputs``: the sections that a recipe with one output has at its top."""

    quantization: QuantizationSection = field(default_factory=QuantizationSection)
    output: OutputSection
    target: TargetSection = field(default_factory=TargetSection)


OWN = tuple(f.name for f in fields(ExportSection))
"""The sections that each output has for itself."""

NOWHERE = OutputSection("")
"""Stands for ``Recipe.output`` where ``outputs`` says where to."""

_INTERNAL = {"internal": True}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to convert, how, and where to: one output, or several ``outputs``. Whoever carries it out takes ``exports``.

    places: for each key the line or flag that it came from. within: the key of the output that an export was made of.
    accepted_by: the registry whose plugins accepted it.
    """

    source: SourceSection
    quantization: QuantizationSection = field(default_factory=QuantizationSection)
    output: OutputSection = NOWHERE
    target: TargetSection = field(default_factory=TargetSection)
    outputs: tuple[ExportSection, ...] = ()
    performance: PerformanceSection = field(default_factory=PerformanceSection)
    places: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False, metadata=_INTERNAL)
    within: str = field(default="", compare=False, repr=False, metadata=_INTERNAL)
    # not an argument: dataclasses.replace makes another recipe, which nobody has accepted
    accepted_by: object = field(default=None, init=False, compare=False, repr=False, metadata=_INTERNAL)

    @classmethod
    def from_dict(cls, recipe: Mapping[str, Any]) -> Recipe:
        """From the schema of the YAML file, without a look at the plugins. RecipeError with all that is wrong."""
        problems: list[Problem] = []
        value = read_recipe(recipe, problems)
        if problems:
            raise RecipeError(*(f"{problem.path}: {problem.reason}" for problem in problems))
        return value

    def as_dict(self) -> dict[str, Any]:
        """In the schema of the YAML file, without what was omitted: ``Recipe.from_dict(r.as_dict()) == r``."""
        skipped = OWN if self.outputs else ("outputs",)
        keys = (f.name for f in fields(self) if not f.metadata.get("internal"))
        return {key: _plain(getattr(self, key)) for key in keys if key not in skipped}

    @property
    def exports(self) -> tuple[Recipe, ...]:
        """A recipe of one output for each output; of one output: itself."""
        if not self.outputs:
            return (self,)
        made = []
        for number, one in enumerate(self.outputs):
            sections = {name: getattr(one, name) for name in OWN}
            made.append(replace(self, outputs=(), within=f"outputs[{number}]", **sections))
            object.__setattr__(made[-1], "accepted_by", self.accepted_by)
        return tuple(made)

    def key(self, path: str) -> str:
        """A key as the recipe's file has it: of an export ``target.layout`` is ``outputs[1].target.layout``."""
        return f"{self.within}.{path}" if self.within and path.partition(".")[0] in OWN else path

    def where(self, path: str) -> str:
        """``wan.yaml:12: quantization.options.foo`` if it is known where that key stands, else the key alone."""
        return located(self.key(path), self.places)


def read_recipe(data: Mapping[str, Any], problems: list[Problem]) -> Recipe:
    """As ``schema.read``, and the sections of one output or ``outputs``, not both."""
    given = dict(data)
    several = given.get("outputs") is not None
    for name in OWN if several else ():
        if given.pop(name, None) is not None:
            problems.append(Problem(name, f"cannot stand beside outputs; move {name} into each of the outputs"))
    recipe: Recipe = read(Recipe, given, "", problems)
    if several and given["outputs"] in ([], ()):
        problems.append(Problem("outputs", "is empty; list at least one output"))
    elif not several and recipe.output is NOWHERE and not recipe.outputs:
        problems.append(Problem("output.path", "is required"))
    return recipe


def located(path: str, places: Mapping[str, str]) -> str:
    """A key with the place of it, of a key below it, or of the nearest key around it that has one."""
    if path not in places:
        below = next((key for key in places if key.startswith((f"{path}.", f"{path}["))), None)
        if below is not None:
            return f"{places[below]}: {path}"
    around = path
    while around:
        if around in places:
            return f"{places[around]}: {path}"
        around = around[: max(around.rfind("."), around.rfind("["), 0)]
    return f"{places['']}: {path}" if "" in places else path


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        pairs = {f.name: getattr(value, f.name) for f in fields(value)}
        return {key: _plain(item) for key, item in pairs.items() if item is not None and item not in ({}, ())}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
