"""The flags that ``convert`` and ``plan`` share.

Most of them are spelt as existing conversion scripts spell them, so that their command lines work as they are typed.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_type_hints

import typer

from . import also
from .completion import complete_setting, values_of

SEVERAL = ("--lora-path", "--lora-strength", "--lora-alpha")
"""Flags that take all values that follow them, as those of existing scripts do."""

_RECIPE = "Recipe"
_OVER = "Over the recipe"


def _flag(
    *names: str,
    help: str,
    metavar: str | None = None,
    panel: str = _OVER,
    complete: Callable[[str], list[str]] | None = None,
) -> Any:
    return typer.Option(
        *names, help=help, metavar=metavar, rich_help_panel=panel, show_default=False, autocompletion=complete
    )


@dataclass(frozen=True)
class Flags:
    recipes: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE.yaml", help="Recipes, one after the other.", show_default=False),
    ] = None
    config: Annotated[str | None, _flag("--config", metavar="FILE", help="A recipe, as YAML.", panel=_RECIPE)] = None
    set: Annotated[
        list[str] | None,
        _flag(
            "--set",
            metavar="KEY=VALUE",
            help="Any key of the recipe; the value is YAML. Wins over all else; repeatable.",
            panel=_RECIPE,
            complete=complete_setting,
        ),
    ] = None
    source: Annotated[
        str | None, _flag("--source", "-s", metavar="PATH", help="The checkpoint: a folder or a file.")
    ] = None
    output: Annotated[
        str | None, _flag("--output", "-o", metavar="DIR", help="The folder for the result, or its URL.")
    ] = None
    output_name: Annotated[
        str | None,
        _flag("--output-name", "-o_n", metavar="NAME", help="What the files are called; default {model}_{method}."),
    ] = None
    state_folder: Annotated[
        str | None,
        _flag("--state-folder", metavar="DIR", help="For an output on a URL: where unsent parts lie meanwhile."),
    ] = None
    output_ext: Annotated[
        str | None, _flag("--output-ext", "-o_e", metavar="EXT", help="The suffix of the target's files, the only one.")
    ] = None
    model_type: Annotated[
        str | None,
        _flag(
            "--model-type",
            "-t",
            metavar="MODEL",
            help="The model adapter; detected if omitted.",
            complete=values_of("model"),
        ),
    ] = None
    component: Annotated[
        list[str] | None,
        _flag("--component", metavar="NAME", help="Of a folder with several models: which; repeatable."),
    ] = None
    scheme: Annotated[
        str | None,
        _flag(
            "--scheme",
            metavar="SCHEME",
            help="The quantization scheme; model-converter plugins lists them.",
            complete=values_of("quantizer"),
        ),
    ] = None
    target: Annotated[
        str | None,
        _flag(
            "--target",
            metavar="TARGET",
            help="What reads the output; model-converter plugins lists them.",
            complete=values_of("target"),
        ),
    ] = None
    linear_type: Annotated[
        str | None,
        _flag(
            "--linear-type",
            metavar="SCHEME",
            help="As --scheme, but needs --quantized.",
            complete=values_of("quantizer"),
        ),
    ] = None
    also: Annotated[
        list[str] | None,
        _flag(
            "--also",
            metavar=also.FORM,
            help="One more output of the same read; repeatable. Each goes into OUTPUT/TARGET_SCHEME_LAYOUT.",
            complete=values_of("quantizer"),
        ),
    ] = None
    quantized: Annotated[bool, _flag("--quantized", help="Quantize; goes with --linear-type.")] = False
    single: Annotated[bool, _flag("--single-file", help="All in one file; the default.")] = False
    save_blocks: Annotated[bool, _flag("--save-by-block", "-b", help="One file for each block.")] = False
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
    lora_path: Annotated[
        list[str] | None, _flag("--lora-path", metavar="FILE ...", help="LoRAs that are merged, in this order.")
    ] = None
    lora_strength: Annotated[
        list[float] | None,
        _flag("--lora-strength", metavar="NUMBER ...", help="Of each LoRA, or one for all; default 1."),
    ] = None
    lora_alpha: Annotated[
        list[float] | None,
        _flag(
            "--lora-alpha", metavar="NUMBER ...", help="For LoRAs without alpha: of each, or one; default: the rank."
        ),
    ] = None
    lora_key_convert: Annotated[
        str | None,
        _flag("--lora-key-convert", metavar="WORD", help="auto, same or convert: names are recognised with each."),
    ] = None
    parallel: Annotated[bool | None, _flag("--parallel/--no-parallel", help="Several workers, or one.")] = None
    device: Annotated[
        str | None,
        _flag(
            "--device",
            metavar="DEVICE",
            help="auto, or a device plugin's name, with a number for one card (NAME:0).",
            complete=values_of("device"),
        ),
    ] = None
    executor: Annotated[
        str | None,
        _flag("--executor", metavar="EXECUTOR", help="Who does the work: threads, or ray for a cluster."),
    ] = None


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
