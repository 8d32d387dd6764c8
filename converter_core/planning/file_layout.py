"""From weights to files: which file each goes to, and what the headers and the index say."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from ..api.containers import Container
from ..api.hookspecs import DISTRIBUTION
from ..api.layouts import LayoutWriter
from ..api.targets import Target
from ..api.values import PlannedWeight, TensorSpec
from ..containers.safetensors import SAFETENSORS
from ..errors import PluginError
from ..output.fingerprint import listing_hash
from ..recipe.load import Rule
from . import provenance


def spread(
    layout: LayoutWriter, container: Container, name: str, weights: Sequence[PlannedWeight]
) -> dict[str, Sequence[PlannedWeight]]:
    """File -> its weights; PluginError for a layout that loses or doubles one, or that makes up a path."""
    files = layout.files(name, weights)
    if not isinstance(files, Mapping) or not all(isinstance(group, Sequence) for group in files.values()):
        raise PluginError(f"layout {layout.name}: files must return a mapping of file names to lists of weights")
    found = sorted(weight.name for group in files.values() for weight in group)
    asked = sorted(weight.name for weight in weights)
    if found != asked:
        lost, more = Counter(asked) - Counter(found), Counter(found) - Counter(asked)
        what = f"loses {next(iter(lost))}" if lost else f"has {next(iter(more))} too often"
        raise PluginError(f"layout {layout.name}: {what}; every weight belongs into exactly one file")
    for stem in files:
        if not container.suffix.startswith("."):
            raise PluginError(f"the suffix of a container must begin with a dot, not {container.suffix!r}")
        if stem.endswith(container.suffix):
            raise PluginError(f"layout {layout.name}: {stem!r} has the suffix already; files are named without it")
        if not stem or "/" in stem or "\0" in stem or stem.startswith("."):
            raise PluginError(f"layout {layout.name}: {stem!r} is no file name")
    return {stem + container.suffix: group for stem, group in files.items()}


def header_metadata(
    used: Sequence[Rule], input_files: Collection[str], tensors: Mapping[str, TensorSpec]
) -> dict[str, str]:
    """A function of the source's tensors and of what shapes the output: no path, time, device or worker count."""
    return {
        "format": "pt",
        DISTRIBUTION: version(DISTRIBUTION),
        provenance.KEY: provenance.dump(used, input_files),
        "source_sha256": listing_hash(tensors),
    }


def container_of(target: Target) -> Container:
    return target.container or SAFETENSORS


def index_name(container: Container) -> str:
    return f"diffusion_pytorch_model{container.suffix}.index.json"


def index(weights: Sequence[PlannedWeight], weight_map: Mapping[str, str], more: Mapping[str, Any]) -> bytes:
    """In the Hugging Face form; ``total_size`` counts tensor bytes. more: what the target adds to its metadata."""
    total = sum(weight.nbytes for weight in weights)
    content = {"metadata": {"total_size": total, **more}, "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
