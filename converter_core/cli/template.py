"""Recipes that teach: every key, what it means, and the options as the plugins declare them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import Field
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from ..declared import hints
from ..fitness import default_of, options_of
from .describe import in_yaml, remarks, summary

if TYPE_CHECKING:
    from ..interfaces import Quantizer

EXAMPLES: Mapping[str, str] = {"activation_absmax": "calib.pt"}
"""What an option without a default may look like."""

RUNS_ON: Mapping[str, str] = {
    "int8": "LightX2V runs it on NVIDIA, on Hygon DCU and on most other accelerators.",
    "fp8": "LightX2V runs it on NVIDIA from RTX 40 and H100 on, and on AMD, Moore Threads and Intel.",
    "mxfp4": "LightX2V runs it on NVIDIA sm_120 (RTX 50); converting needs no such card.",
    "nvfp4": (
        "LightX2V runs it on NVIDIA sm_120 (RTX 50); converting needs no such card. It needs statistics of the "
        "activations too: give activation_absmax below, or put LightX2V's calib.pt beside the file."
    ),
}

ON: Mapping[str, str] = {
    "hygon_dcu": (
        "This recipe converts on a Hygon DCU, with the torch of its DTK. LightX2V runs int8 there and nothing else: "
        '"dit_quant_scheme": "int8-vllm-hygon-dcu", "lazy_load": false.'
    ),
}

_WIDTH = 110


def recipe(
    cls: type[Quantizer],
    *,
    device: str = "auto",
    source: str = "/path/to/Wan2.1-I2V-14B-480P",
    output: str | None = None,
    file: str = "recipe.yaml",
) -> str:
    """The text of a commented YAML file for a scheme; ``file`` is what its own command lines call it."""
    format, other = ("lightx2v", "plain") if cls.name in RUNS_ON else ("plain", "lightx2v")
    said = f"{cls.name}: {summary(cls)} {RUNS_ON.get(cls.name, '')} {ON.get(device.partition(':')[0], '')}"
    return f"""\
{_comment(said, 0)}
#
#   model-converter plan --config {file}     what would be done; reads only headers
#   model-converter --config {file}          do it; the same command again resumes
#
# Keys behind a # are optional and show their default or an example. On the command line --set key.path=value wins
# over what stands here: --set target.layout=by_block

source:
  # A folder (with or without an index), one .safetensors, or a .pth. Original or diffusers naming, fp32, bf16 or fp16.
  path: {_scalar(source)}
  type: wan_dit                # the model; without it, recognised by the tensors
  # format: safetensors        # or pytorch; without it, recognised by the files

quantization:
  method: {cls.name}
  options:
    # Which linear weights of the blocks. LightX2V takes all of them in one scheme, or none.
    target_modules: [self_attn, cross_attn, ffn]
    # Options of the scheme itself, with what each means:
{chr(10).join(_options(cls))}
  # Exceptions: the first rule that matches a weight's name decides; * matches dots too. LightX2V takes no mix of
  # schemes; with target.format: plain any is possible.
  # rules:
  #   - match: "blocks.0.*"
  #     method: none           # as it is; or another method with options of its own

output:
  path: {_scalar(output or f"/path/to/output_{cls.name}")}
  # name: wan_dit_{cls.name}{" " * max(1, 13 - len(cls.name))}# what the files are called; default: model_method
  # copy_metadata: false       # true: copy config.json, tokenizers and other files that are not weights
  # overwrite: false           # true: replace an earlier conversion of the same name

target:
  format: {format}{" " * (21 - len(format))}# or {other}. plain: nothing swizzled, the schemes stand in the metadata
  precision: {cls.name}{" " * max(1, 18 - len(cls.name))}# a label; must agree with quantization.method
  layout: single_file          # by_block: a file for each block (LightX2V's lazy_load); chunked: files of one size
  # chunk_size: 4GiB           # for chunked; or a number of tensors
  # dtype: keep                # of what is not quantized: bfloat16, float16, float32, or keep

performance:
  device: {device}{" " * max(1, 21 - len(device))}# auto, cpu, cuda (all cards), cuda:0, hygon_dcu, hygon_dcu:0
  # parallel: true             # false: one worker
  # num_workers: 4             # default: the cores, at most 8
  # max_memory: 1GiB           # for tensor data in flight, on the host and on the device each
"""


def _options(cls: type[Quantizer]) -> Iterator[str]:
    said = remarks(cls)
    for option in options_of(cls):
        if option.init:
            yield f"    # {option.name}: {_example(option, hints(cls).get(option.name, Any))}"
            if said.get(option.name):
                yield _comment(said[option.name], 4, hang="    ")


def _example(option: Field[Any], hint: Any) -> str:
    value = default_of(option)
    if value is not None:
        return in_yaml(value)
    choices = [choice for part in get_args(hint) if get_origin(part) is Literal for choice in get_args(part)]
    return str(choices[0]) if choices else EXAMPLES.get(option.name, "...")


def _comment(text: str, indent: int, hang: str = "") -> str:
    prefix = f"{' ' * indent}# {hang}"
    return textwrap.fill(" ".join(text.split()), _WIDTH, initial_indent=prefix, subsequent_indent=prefix)


def _scalar(text: str) -> str:
    """A path as YAML: bare where that is unmistakable."""
    import json

    bare = text.isascii() and all(character.isalnum() or character in "/._-+~" for character in text)
    return text if bare and text[:1] in "/." and len(text) > 1 else json.dumps(text)
