"""The joints of a finished plan: what one plugin returns is checked where it meets what others return.

Every part may be right by itself and still a name collide, an offset overlap or a tensor vanish. Nothing that is
found here is a user's mistake: it is a fault of a plugin, told with the plugin's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from ..api.values import FileLayout, PlannedWeight, TensorSpec, WeightInfo
from ..errors import shown
from ..output.manifest import manifest_name
from .jobs import Job
from .plan import OutputPlan

SHOWN = 3


def validate(output: OutputPlan, jobs: Iterable[Job]) -> Iterator[str]:
    """What is wrong with an output of a plan; nothing for one that can be trusted."""
    yield from file_names(output)
    yield from keys(output, jobs)
    yield from layouts(output)


def file_names(output: OutputPlan) -> Iterator[str]:
    """Plain, relative, and each for one file alone, also where a file system does not tell cases apart."""
    owners: dict[str, str] = {}
    kinds = {
        "a weight file": output.file_layouts,
        "a side file": output.side,
        "a copied file": output.copies,
        "the manifest": (manifest_name(output.name),),
    }
    for kind, names in kinds.items():
        for name in names:
            if reason := _unfit_name(name):
                yield f"target {output.target.name}: {kind} is called {shown(name)!r}, which {reason}"
                continue
            folded = name.casefold()
            if folded in owners:
                yield (
                    f"target {output.target.name}, layout {output.layout.name}: {shown(name)} would be both "
                    f"{owners[folded]} and {kind}; rename one (output.name, or the target's side files)"
                )
            owners[folded] = kind
    for name in owners:
        for parent in PurePosixPath(name).parents:
            if str(parent) in owners:
                yield f"target {output.target.name}: {shown(name)} lies in {shown(parent)}, which is a file itself"


def _unfit_name(name: object) -> str:
    if not isinstance(name, str) or not name:
        return "is no text"
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name or "\\" in name:
        return "is not a plain relative path"
    if any(not char.isprintable() for char in name):
        return "holds control characters"
    if any(part.startswith(".") and part.endswith(".partial") for part in path.parts):
        return "is reserved for unfinished files"
    return ""


def keys(output: OutputPlan, jobs: Iterable[Job]) -> Iterator[str]:
    """Every key belongs to one tensor of one weight; every job writes something, and nothing else is written."""
    owners: dict[str, str] = {}
    for weight in output.weights:
        if not weight.outputs:
            yield f"target {output.target.name}: nothing of {shown(weight.name)} would be stored"
        for tensor in weight.outputs:
            if not isinstance(tensor.key, str) or not tensor.key or "\0" in tensor.key:
                yield f"target {output.target.name}: {tensor.key!r} of {shown(weight.name)} is no key"
            owners[tensor.key] = weight.name
    made = {
        tensor.key
        for job in jobs
        for export in job.exports
        if export.output == output.number
        for tensor in export.tensors
    }
    made |= output.constants.keys()
    for key in _some(sorted(owners.keys() - made)):
        yield f"{key} is planned, but no job makes it"
    for key in _some(sorted(made - owners.keys())):
        yield f"{key} is made, but belongs to no weight"


def unique_keys(weights: Iterable[PlannedWeight]) -> Iterator[str]:
    """Keys that two tensors would be written under."""
    owners: dict[str, str] = {}
    for weight in weights:
        for tensor in weight.outputs:
            if tensor.key in owners:
                yield (
                    f"{shown(tensor.key)}: {shown(owners[tensor.key])} and {shown(weight.name)} would both be written "
                    "under it"
                )
            owners[tensor.key] = weight.name


def layouts(output: OutputPlan) -> Iterator[str]:
    """Each tensor lies in one file, after the header, inside the file, and over no other."""
    specs = {tensor.key: tensor.spec for weight in output.weights for tensor in weight.outputs}
    placed = Counter(key for layout in output.file_layouts.values() for key in layout.offsets)
    if wrong := sorted(key for key in specs.keys() | placed.keys() if placed[key] != 1 or key not in specs):
        yield f"target {output.target.name}: its container places {', '.join(_some(wrong))} not at all or twice"
        return
    for name, layout in output.file_layouts.items():
        yield from (f"{shown(name)}: {problem}" for problem in spans(layout, specs))


def spans(layout: FileLayout, specs: Mapping[str, TensorSpec]) -> Iterator[str]:
    if not isinstance(layout.header, bytes):
        yield f"its header is {type(layout.header).__name__}, not bytes"
        return
    end, before = len(layout.header), "the header"
    for key, start in sorted(layout.offsets.items(), key=lambda item: (item[1], specs[item[0]].nbytes)):
        if start < end:
            yield f"{shown(key)} starts at byte {start}, inside {before}, which ends at {end}"
        end, before = max(end, start + specs[key].nbytes), shown(key)
    if end > layout.size:
        yield f"{before} ends at byte {end}, beyond the file's {layout.size} bytes"


def names(infos: Sequence[WeightInfo], renamed: Mapping[str, str], adapter: str) -> Iterator[str]:
    """No two weights of a model may get one name in the target's key format. renamed: name -> name there."""
    several: dict[str, list[str]] = {}
    for info in infos:
        several.setdefault(renamed[info.name], []).append(info.name)
    for name, originals in several.items():
        if len(originals) > 1:
            yield f"model {adapter}: rename gives {' and '.join(_some(originals))} the same name, {shown(name)}"


def coverage(infos: Iterable[WeightInfo], tensors: Mapping[str, TensorSpec], adapter: str) -> Iterator[str]:
    """Where parts of a fused tensor become weights, every row of it must be in one."""
    rows: dict[str, list[tuple[int, int]]] = {}
    for info in infos:
        for ref in info.refs:
            if ref.rows is not None and ref.key in tensors:
                rows.setdefault(ref.key, []).append(ref.rows)
    for key, runs in rows.items():
        height = tensors[key].shape[0] if tensors[key].shape else 0
        end = 0
        for start, stop in sorted(runs):
            if start > end or not 0 <= start < stop <= height:
                break
            end = max(end, stop)
        if end != height:
            parts = ", ".join(f"{start}-{stop}" for start, stop in sorted(runs))
            yield f"model {adapter}: {shown(key)} has {height} rows, and its parts ({parts}) do not cover them"


def outputs_apart(outputs: Sequence[OutputPlan]) -> Iterator[str]:
    """Two outputs of one plan must not lie in one folder, nor one inside the other."""
    for number, one in enumerate(outputs):
        for other in outputs[:number]:
            first, second = one.destination, other.destination
            if first.is_within(second) or second.is_within(first):
                yield f"{shown(first)} and {shown(second)}: two outputs must not share a folder"


def _some(names: Sequence[str]) -> list[str]:
    more = [f"{len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return [shown(name) for name in names[:SHOWN]] + more
