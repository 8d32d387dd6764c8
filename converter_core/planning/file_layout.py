"""From weights to files: which file each goes to, and what the headers and the index say."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from ..api.containers import Container
from ..api.hookspecs import DISTRIBUTION
from ..api.layouts import LayoutWriter
from ..api.targets import Target
from ..api.values import PlannedWeight, TensorSpec
from ..errors import PluginError, shown
from ..output.fingerprint import listing_hash
from ..plugins.registry import Registry
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
    suffix = container.suffixes[0]
    for stem in files:
        if stem.endswith(suffix):
            raise PluginError(f"layout {layout.name}: {stem!r} has the suffix already; files are named without it")
        if not stem or "/" in stem or "\0" in stem or stem.startswith("."):
            raise PluginError(f"layout {layout.name}: {stem!r} is no file name")
    return {stem + suffix: group for stem, group in files.items()}


def header_metadata(
    used: Sequence[Rule], input_files: Collection[str], tensors: Mapping[str, TensorSpec]
) -> dict[str, str]:
    """A function of the source's tensors and of what shapes the output: no path, time, device or worker count."""
    return {
        DISTRIBUTION: version(DISTRIBUTION),
        provenance.KEY: provenance.dump(used, input_files),
        "source_sha256": listing_hash(tensors),
    }


def container_of(target: Target, registry: Registry) -> Container:
    return registry.containers[target.container or registry.containers.default()]()


def unstorable(container: Container, weights: Sequence[PlannedWeight]) -> Iterator[str]:
    """Why tensors cannot be stored in a container: one line for each dtype that it does not know."""
    found: dict[tuple[str, tuple[int, int] | None], list[str]] = {}
    for weight in weights:
        for output in weight.outputs:
            spec = output.spec
            known = spec.dtype in container.dtypes if spec.block is None else container.blocks.get(spec.dtype)
            if known not in (True, spec.block):
                found.setdefault((spec.dtype, spec.block), []).append(output.key)
    for (dtype, block), keys in found.items():
        more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
        blocks = f" (blocks of {block[0]} elements in {block[1]} bytes)" if block else ""
        yield (
            f"container {container.name} cannot hold {dtype}{blocks}: {shown(keys[0])}{more}; choose another "
            "target.dtype, method or target"
        )


def index_name(container: Container, target: Target) -> str:
    """Empty where files of that format have no index."""
    return f"{target.index_stem}{container.index_suffixes[0]}" if container.index_suffixes else ""


def index(weights: Sequence[PlannedWeight], weight_map: Mapping[str, str], more: Mapping[str, Any]) -> bytes:
    """In the Hugging Face form; ``total_size`` counts tensor bytes. more: what the target adds to its metadata."""
    total = sum(weight.nbytes for weight in weights)
    content = {"metadata": {"total_size": total, **more}, "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
