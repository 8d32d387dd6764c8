"""Recipes that teach: every key, what it means, and the options as the plugins declare them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import Field
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from ..plugins.validation import default_of, options_of
from ..recipe.schema import hints
from .describe import in_yaml, remarks, summary
from .schemes import runs_on, target_for

if TYPE_CHECKING:
    from ..api.devices import DeviceBackend
    from ..api.quantizers import Quantizer
    from ..plugins.registry import Catalogue, Registry

EXAMPLES: Mapping[str, str] = {"activation_absmax": "calib.pt"}
"""What an option without a default may look like."""

_WIDTH = 110


def recipe(
    cls: type[Quantizer],
    registry: Registry,
    *,
    device: str = "auto",
    source: str = "/path/to/checkpoint",
    output: str | None = None,
    file: str = "recipe.yaml",
) -> str:
    """The text of a commented YAML file for a scheme; ``file`` is what its own command lines call it."""
    format = target_for(cls.name, registry)
    model, adapter = min(registry.models.items(), key=lambda item: not item[1].default)
    devices = ", ".join(_beside(registry.devices, next(iter(registry.devices))))
    backend = registry.devices.get(device.partition(":")[0])
    said = f"{cls.name}: {summary(cls)} {runs_on(registry.targets[format]).get(cls.name, '')} {_note(backend)}"
    return f"""\
{_comment(said, 0)}
#
#   model-converter plan --config {file}     what would be done; reads only headers
#   model-converter --config {file}          do it; the same command again resumes
#
# Keys behind a # are optional and show their default or an example. On the command line --set key.path=value wins
# over what stands here: --set target.layout={registry.layouts.default()}

source:
  # A folder (with or without an index) or a file of weights; fp32, bf16 or fp16.
  path: {_scalar(source)}
{_key("type", model, "the model; without it, recognised by the tensors")}
{_key("# format", registry.containers.default(), "the container; without it, recognised by the files")}

quantization:
  method: {cls.name}
  options:
    # Which linear weights of the blocks; without it, all that the model names:
    target_modules: [{", ".join(adapter.modules)}]
    # Options of the scheme itself, with what each means:
{chr(10).join(_options(cls))}
  # Exceptions: the first rule that matches a weight's name decides; * matches dots too. Some runtimes take no mix of
  # schemes; the plan says so.
  # rules:
  #   - match: "blocks.0.*"
  #     method: none           # as it is; or another method with options of its own

output:
  path: {_scalar(output or f"/path/to/output_{cls.name}")}
{_key("# name", f"{model}_{cls.name}", "what the files are called; default: model_method")}
  # copy_metadata: false       # true: copy config.json, tokenizers and other files that are not weights
  # overwrite: false           # true: replace an earlier conversion of the same name

target:
{_key("format", format, "who reads it; model-converter plugins says what there is")}
{_key("precision", cls.name, "a label; must agree with quantization.method")}
{_key("layout", registry.layouts.default(), f"or {_others(registry.layouts, registry.layouts.default())}")}
  # chunk_size: 4GiB           # for layouts of bounded files; or a number of tensors
  # dtype: keep                # of what is not quantized: bfloat16, float16, float32, or keep

performance:
{_key("device", device, f"auto, {devices}; name:N is the N-th")}
  # parallel: true             # false: one worker
  # num_workers: 4             # default: the cores, at most 8
  # max_memory: 1GiB           # for tensor data in flight, on the host and on the device each
"""


def _key(key: str, value: str, said: str) -> str:
    return f"{f'  {key}: {value}':30} # {said}"


def _others(catalogue: Catalogue[Any], own: str) -> str:
    return " or ".join(name for name in _beside(catalogue, own) if name != own)


def _beside(catalogue: Catalogue[Any], own: str) -> list[str]:
    """The plugins of one distribution: what a recipe says must not depend on what else is installed."""
    distribution = catalogue.origins[own].distribution
    return [name for name in catalogue if catalogue.origins[name].distribution == distribution]


def _note(backend: type[DeviceBackend] | None) -> str:
    return backend.recipe_note if backend is not None else ""


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
