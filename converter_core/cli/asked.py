"""What a command line asks for: recipes, and the flags that override them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .also import pieces, with_outputs
from .completion import plugin_names

if TYPE_CHECKING:
    from ..plugins.registry import Registry
    from ..recipe.load import Recipe
    from .flags import Flags

_LAYOUTS = "--single-file, --save-by-block and --chunk-size exclude each other; give one of them"
_NEEDED = {"source.path": "--source", "output.path": "--output"}


@dataclass(frozen=True)
class Asked:
    """What ``load_recipe`` is given. source: a YAML file, or an empty recipe that ``overrides`` fill.

    labels: dotted key -> the flag that it comes from. layout_flag: the flag that chooses a layout; which one is
    known when the plugins are. also: further outputs, as they are typed. suffix: what --output-ext says.
    """

    source: str | Mapping[str, Any]
    overrides: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    layout_flag: str = ""
    also: tuple[str, ...] = ()
    suffix: str | None = None

    def load(self, registry: Registry) -> Recipe:
        """The recipe, validated. RecipeError."""
        from ..recipe.load import load_recipe

        overrides, labels = self.overrides, self.labels
        if self.layout_flag and "target.layout" not in overrides:
            overrides = {**overrides, "target.layout": layout_for(self.layout_flag, registry)}
            labels = {**labels, "target.layout": self.layout_flag}
        recipe = load_recipe(self.source, overrides, registry, labels=labels)
        if self.also:
            recipe = with_outputs(recipe, self.also, registry)
        if self.suffix is not None:
            _check_suffix(self.suffix, recipe, registry)
        return recipe

    def paths(self) -> tuple[str, str]:
        """Source and output as they are written, without validation; empty where they cannot be told."""
        document = self._document()
        return (
            str(self.overrides.get("source.path", _value(document, "source", "path"))),
            str(self.overrides.get("output.path", _value(document, "output", "path") or _outputs(document))),
        )

    def _document(self) -> Mapping[str, Any]:
        if not isinstance(self.source, str):
            return self.source
        from ..errors import RecipeError
        from ..recipe.yaml_file import read_yaml

        try:
            return read_yaml(Path(self.source)).data
        except RecipeError:  # load() tells it
            return {}


class Misused(ValueError):
    """Flags that say nothing together. The command line is refused, not the recipe."""


def recipes_from_flags(flags: Flags) -> list[Asked]:
    """One for each recipe file, or one that flags alone describe.

    Raises Misused, or RecipeError for a ``--set`` whose value is no YAML.
    """
    files = [*(flags.recipes or ()), *([flags.config] if flags.config is not None else [])]
    for file in flags.recipes or ():
        if not file.lower().endswith((".yaml", ".yml")):
            raise Misused(f"{file!r} is not a recipe: the name of a recipe ends in .yaml")
    if len(files) > 1:
        alone = {"--source": flags.source, "--output": flags.output, "--output-name": flags.output_name}
        given = [flag for flag, value in alone.items() if value is not None]
        if given:
            raise Misused(f"{' and '.join(given)} cannot apply to {len(files)} recipes at once; give one recipe")
    return [_asked(flags, file) for file in files] or [_asked(flags, None)]


def _asked(flags: Flags, file: str | None) -> Asked:
    given = _Overrides()
    given.add("--source", flags.source, "source.path")
    given.add("--output", flags.output, "output.path")
    given.add("--output-name", flags.output_name, "output.name")
    given.add("--state-folder", flags.state_folder, "output.state_folder")
    given.add("--model-type", flags.model_type, "source.type")
    given.add("--component", flags.component or None, "source.components")
    _check_scheme(flags, alone=file is None)
    given.add("--linear-type", flags.linear_type, "quantization.method", "target.precision")
    given.add("--scheme", flags.scheme, "quantization.method", "target.precision")
    given.add("--target", flags.target, "target.format")
    layout_flag = _layout_flag(flags, given)
    given.add("--copy-no-weight-files", flags.copy_no_weight_files or None, "output.copy_metadata")
    dtype = flags.non_linear_dtype
    given.add("--non-linear-dtype", dtype and dtype.removeprefix("torch."), "target.dtype")
    given.add("--parallel" if flags.parallel else "--no-parallel", flags.parallel, "performance.parallel")
    if flags.parallel is False:
        given.put("--no-parallel", "performance.num_workers", None)
    given.add("--device", flags.device, "performance.device")
    given.add("--executor", flags.executor, "performance.executor")
    given.add("--lora-path", _loras(flags), "source.loras")
    given.settings(flags.set or [])
    missing = [flag for key, flag in _NEEDED.items() if key not in given.values]
    if file is None and missing:
        raise Misused(f"give a recipe (--config recipe.yaml, or its name alone), or {' and '.join(missing)}")
    source: str | Mapping[str, Any] = {} if file is None else file
    return Asked(source, given.values, given.labels, layout_flag, _also(flags), flags.output_ext)


def _also(flags: Flags) -> tuple[str, ...]:
    for text in flags.also or ():
        try:
            pieces(text)
        except ValueError as error:
            raise Misused(str(error)) from None
    return tuple(flags.also or ())


def _loras(flags: Flags) -> list[dict[str, Any]] | None:
    """What ``source.loras`` is; None without a LoRA."""
    if flags.lora_key_convert not in (None, "auto", "same", "convert"):
        raise Misused(
            f"--lora-key-convert {flags.lora_key_convert}: write auto, same or convert; all mean the same here"
        )
    paths = flags.lora_path or []
    loras: list[dict[str, Any]] = [{"path": path} for path in paths]
    for flag, key, values in (
        ("--lora-strength", "strength", flags.lora_strength or []),
        ("--lora-alpha", "alpha", flags.lora_alpha or []),
    ):
        if values and (not paths or len(values) not in (1, len(paths))):
            raise Misused(
                f"{flag} has {len(values)} values for {len(paths)} LoRAs (--lora-path); give one, or one each"
            )
        for number, lora in enumerate(loras if values else []):
            lora[key] = values[number if len(values) > 1 else 0]
    return loras or None


class _Overrides:
    """Dotted key -> value, and -> the flag that it comes from."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.labels: dict[str, str] = {}

    def put(self, flag: str, key: str, value: Any) -> None:
        self.values[key] = value
        self.labels[key] = flag

    def add(self, flag: str, value: Any, *keys: str) -> None:
        """Nothing if the flag was not given."""
        if value is not None:
            for key in keys:
                self.put(flag, key, value)

    def settings(self, settings: list[str]) -> None:
        from ..errors import RecipeError
        from ..recipe.yaml_file import parse_value

        for setting in settings:
            key, equals, text = setting.partition("=")
            if not equals or not key:
                raise Misused(f"--set {setting!r}: write it as key=value, e.g. --set output.overwrite=true")
            try:
                self.put("--set", key, parse_value(text))
            except RecipeError as error:
                raise RecipeError(*(f"--set: {key}: {problem}" for problem in error.problems)) from None


def _check_scheme(flags: Flags, alone: bool) -> None:
    """alone: without a recipe, which may name a scheme and quantizes without a flag."""
    typed = flags.linear_type
    if typed is not None and flags.scheme is not None:
        raise Misused("--scheme and --linear-type are the same; give one of them")
    if alone and flags.quantized and typed is None and flags.scheme is None:
        raise Misused(f"--quantized needs a scheme: add --linear-type SCHEME ({', '.join(plugin_names('quantizer'))})")
    if alone and typed is not None and not flags.quantized:
        raise Misused(
            f"--linear-type {typed} quantizes only with --quantized: add --quantized, or write --scheme {typed} alone"
        )


def _layout_flag(flags: Flags, given: _Overrides) -> str:
    """The flag that chooses a layout; its chunk size goes to ``given``."""
    asked = {
        "--single-file": flags.single,
        "--save-by-block": flags.save_blocks,
        "--chunk-size": flags.chunk_size is not None,
    }
    chosen = [flag for flag, present in asked.items() if present]
    if len(chosen) > 1:
        raise Misused(_LAYOUTS)
    if chosen:
        size = flags.chunk_size
        given.put(chosen[0], "target.chunk_size", int(size) if size and size.isdecimal() else size)
    return chosen[0] if chosen else ""


def layout_for(flag: str, registry: Registry) -> str:
    """The layout that says it answers to a flag."""
    from ..errors import PluginError

    for name, cls in registry.layouts.items():
        if getattr(cls, "flag", None) == flag:
            return name
    raise PluginError(f"{flag}: no layout plugin that can be used answers to this flag; see model-converter plugins")


def _check_suffix(asked: str, recipe: Recipe, registry: Registry) -> None:
    """What is written follows from the target; RecipeError for another suffix."""
    from ..api.containers import Container
    from ..errors import RecipeError
    from ..planning.drafts import target_of
    from ..planning.file_layout import container_of

    for one in recipe.exports:
        target = target_of(one, registry)
        written = container_of(target, registry).suffixes[0]
        if asked.lstrip(".") != written.lstrip("."):
            read_only = [
                cls.name
                for cls in registry.containers.values()
                if f".{asked.lstrip('.')}" in cls.suffixes and cls.place is Container.place
            ]
            why = f"; {read_only[0]} files are only read" if read_only else ""
            raise RecipeError(f"--output-ext {asked}: target {target.name} writes {written} files{why}")


def _value(document: Any, section: str, key: str) -> str:
    found = document.get(section) if isinstance(document, Mapping) else None
    value = found.get(key) if isinstance(found, Mapping) else None
    return value if isinstance(value, str) else ""


def _outputs(document: Mapping[str, Any]) -> str:
    """The paths of several outputs."""
    found = document.get("outputs")
    paths = [_value(output, "output", "path") for output in found] if isinstance(found, list) else []
    return ", ".join(filter(None, paths))
