"""The flags that ``convert`` and ``plan`` share, and the overrides of a recipe that they stand for.

Most are those of LightX2V's converter, so that its command lines work as they are typed today.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, get_type_hints

import typer

_RECIPE = "Recipe"
_LIKE_LIGHTX2V = "Over the recipe, as in LightX2V's converter"
_LAYOUTS = "--single-file, --save-by-block and --chunk-size exclude each other; give one of them"


def _flag(*names: str, help: str, metavar: str | None = None, panel: str = _LIKE_LIGHTX2V) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, show_default=False)


@dataclass(frozen=True)
class Flags:
    config: Annotated[str | None, _flag("--config", metavar="FILE", help="The recipe, as YAML.", panel=_RECIPE)] = None
    set: Annotated[
        list[str] | None,
        _flag(
            "--set",
            metavar="KEY=VALUE",
            help="Any key of the recipe, e.g. target.layout=by_block; the value is YAML. Wins over all; repeatable.",
            panel=_RECIPE,
        ),
    ] = None
    source: Annotated[
        str | None, _flag("--source", "-s", metavar="PATH", help="The checkpoint: a folder or a file.")
    ] = None
    output: Annotated[str | None, _flag("--output", "-o", metavar="DIR", help="The folder for the result.")] = None
    output_name: Annotated[
        str | None,
        _flag("--output-name", "-o_n", metavar="NAME", help="What the files are called; default {model}_{method}."),
    ] = None
    output_ext: Annotated[
        str | None, _flag("--output-ext", "-o_e", metavar="EXT", help=".safetensors, the only one.")
    ] = None
    model_type: Annotated[
        str | None, _flag("--model-type", "-t", metavar="MODEL", help="The model adapter; detected if omitted.")
    ] = None
    linear_type: Annotated[
        str | None, _flag("--linear-type", metavar="SCHEME", help="The scheme: int8, fp8, mxfp4, nvfp4 ...")
    ] = None
    quantized: Annotated[bool, _flag("--quantized", help="Quantize; goes with --linear-type.")] = False
    single_file: Annotated[bool, _flag("--single-file", help="All in one file; the default.")] = False
    save_by_block: Annotated[bool, _flag("--save-by-block", "-b", help="One file for each block.")] = False
    chunk_size: Annotated[
        str | None,
        _flag("--chunk-size", "-c", metavar="SIZE", help="Files of this size (4GiB), or of so many tensors (100)."),
    ] = None
    copy_no_weight_files: Annotated[
        bool, _flag("--copy-no-weight-files", help="Copy config.json, tokenizers and other files too.")
    ] = False
    non_linear_dtype: Annotated[
        str | None,
        _flag(
            "--non-linear-dtype",
            metavar="DTYPE",
            help="Of what is not quantized: bfloat16, float16 or float32; default: as it is.",
        ),
    ] = None
    parallel: Annotated[bool | None, _flag("--parallel/--no-parallel", help="Several workers, or one.")] = None
    device: Annotated[
        str | None, _flag("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:0, hygon_dcu ...")
    ] = None


@dataclass(frozen=True)
class Asked:
    """What ``load_recipe`` is given. source: a YAML file, or an empty recipe that ``overrides`` fill.

    labels: dotted key -> the flag that it comes from.
    """

    source: str | Mapping[str, Any]
    overrides: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)


class Misused(ValueError):
    """Flags that say nothing together. The command line is refused, not the recipe."""


def recipe_from_flags(flags: Flags) -> Asked:
    """Raises Misused, or RecipeError for a ``--set`` whose value is no YAML."""
    asked = Asked(flags.config if flags.config is not None else {})

    def override(flag: str, **values: Any) -> None:
        for name, value in values.items():
            path = name.replace("__", ".")
            asked.overrides[path] = value
            asked.labels[path] = flag

    if flags.source is not None:
        override("--source", source__path=flags.source)
    if flags.output is not None:
        override("--output", output__path=flags.output)
    if flags.output_name is not None:
        override("--output-name", output__name=flags.output_name)
    _check_suffix(flags.output_ext)
    if flags.model_type is not None:
        override("--model-type", source__type=flags.model_type)
    if flags.config is None and flags.quantized and flags.linear_type is None:
        raise Misused("--quantized needs a scheme: add --linear-type int8 (or fp8, mxfp4, nvfp4)")
    if flags.config is None and flags.linear_type is not None and not flags.quantized:
        raise Misused(f"--linear-type {flags.linear_type} quantizes only with --quantized: add --quantized")
    if flags.linear_type is not None:
        override("--linear-type", quantization__method=flags.linear_type, target__precision=flags.linear_type)
    if flags.single_file + flags.save_by_block + (flags.chunk_size is not None) > 1:
        raise Misused(_LAYOUTS)
    if flags.single_file:
        override("--single-file", target__layout="single_file", target__chunk_size=None)
    if flags.save_by_block:
        override("--save-by-block", target__layout="by_block", target__chunk_size=None)
    if flags.chunk_size is not None:
        override("--chunk-size", target__layout="chunked", target__chunk_size=_number(flags.chunk_size))
    if flags.copy_no_weight_files:
        override("--copy-no-weight-files", output__copy_metadata=True)
    if flags.non_linear_dtype is not None:
        override("--non-linear-dtype", target__dtype=flags.non_linear_dtype.removeprefix("torch."))
    if flags.parallel is not None:
        override("--parallel" if flags.parallel else "--no-parallel", performance__parallel=flags.parallel)
        if not flags.parallel:
            override("--no-parallel", performance__num_workers=None)
    if flags.device is not None:
        override("--device", performance__device=flags.device)
    _set(flags.set or [], asked)
    missing = [flag for key, flag in _NEEDED.items() if key not in asked.overrides]
    if flags.config is None and missing:
        raise Misused(f"give a recipe with --config FILE, or {' and '.join(missing)}")
    return asked


_NEEDED = {"source.path": "--source", "output.path": "--output"}


def _set(settings: list[str], asked: Asked) -> None:
    from ..recipe_yaml import parse_value

    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise Misused(f"--set {setting!r}: write it as key=value, e.g. --set target.layout=by_block")
        asked.overrides[path] = parse_value(text)
        asked.labels[path] = "--set"


def _check_suffix(suffix: str | None) -> None:
    if suffix is None or suffix.lstrip(".") == "safetensors":
        return
    if suffix.lstrip(".") in ("pth", "pt"):
        raise Misused(
            f"--output-ext {suffix}: only .safetensors is written; a {suffix} file is a pickle, which can run code "
            "when it is opened and can neither be streamed nor mapped. LightX2V reads .safetensors"
        )
    raise Misused(f"--output-ext {suffix}: only .safetensors is written")


def _number(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose first parameters are ``ctx`` and ``flags``, with every flag as a parameter of its own."""
    hints = get_type_hints(command, include_extras=True)
    declared = get_type_hints(Flags, include_extras=True)
    own = list(inspect.signature(command).parameters.values())
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        own[0].replace(annotation=hints[own[0].name], kind=keyword),
        *(inspect.Parameter(f.name, keyword, default=f.default, annotation=declared[f.name]) for f in fields(Flags)),
        *(parameter.replace(annotation=hints[parameter.name], kind=keyword) for parameter in own[2:]),
    ]

    @functools.wraps(command)
    def spread(**given: Any) -> None:
        command(flags=Flags(**{f.name: given.pop(f.name) for f in fields(Flags)}), **given)

    del spread.__wrapped__
    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return spread
