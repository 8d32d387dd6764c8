"""The end of a conversion: everything staged gets its final name, and the manifest says what it is."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from ..api.values import TensorSpec
from ..output import publication
from ..output.finished import VERSION
from ..output.journal import Journal
from ..output.manifest import crc, dump, manifest_name
from ..output.staging import Staging
from ..planning.dequantize import DEQUANTIZED
from ..planning.plan import OutputPlan, Plan


def publish(
    plan: Plan,
    output: OutputPlan,
    staging: Staging,
    journal: Journal,
    crc32: Mapping[str, int],
    sources: Mapping[str, str],
    standing: frozenset[str],
) -> None:
    """Side files, then every file to its final name, the manifest last. crc32: of every tensor, by key.

    sources: checksums of what was read of the source, by weight. standing: files that are right under their final names
    and stay.
    """
    side, stay = stage_side_files(output, staging, standing)
    manifest = manifest_name(output.name)
    staging.put(manifest, dump(content(plan, output, crc32, sources, side)))
    names = [*output.file_layouts, *side, manifest]
    publication.publish(staging, journal, names, stay, output.state.replaces)


def stage_side_files(
    output: OutputPlan, staging: Staging, standing: frozenset[str]
) -> tuple[dict[str, int], frozenset[str]]:
    """The checksums of all files that are no weights, and which files of the output stay."""
    side = {name: zlib.crc32(content) for name, content in output.side.items()}
    before = output.state.finished.sides if output.state.finished is not None else {}
    stay = standing & {*output.file_layouts, *output.copies, *(name for name in side if before.get(name) == side[name])}
    for name, written in output.side.items():
        if name not in stay:
            staging.put(name, written)
    for name, path in output.copies.items():
        side[name] = before[name] if name in stay else staging.copy(name, path)
    return side, stay


def content(
    plan: Plan,
    output: OutputPlan,
    crc32: Mapping[str, int],
    sources: Mapping[str, str],
    side: Mapping[str, int],
    versions: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What the manifest says: what was asked for, what it was made of, and every file and tensor with its checksum.

    versions: of files that do not lie on a disk.
    """
    recipe = output.recipe.as_dict()
    recipe.pop("performance", None)
    for own in ("overwrite", "state_folder"):
        recipe["output"].pop(own, None)
    return {
        "fingerprint": output.fingerprint.value,
        "recipe": recipe,
        "versions": dict(output.distributions),
        "model": {"adapter": plan.adapter.name, "variant": plan.model.variant},
        "target": output.target.name,
        "container": output.container.name,
        "layout": output.layout.name,
        "source": {
            "files": {
                file.name: [file.size, file.version, file.header_hash] for file in plan.stores.files_of(plan.adapter)
            },
            "checksums": dict(sorted(sources.items())),
            "tensors": len(plan.checkpoint.tensors),
            **({DEQUANTIZED: plan.checkpoint.decoded_from} if plan.checkpoint.decoded else {}),
            **({"loras": [lora.as_dict() for lora in plan.loras.files]} if plan.loras.files else {}),
        },
        "files": _files(output, side, versions or {}),
        "formats": {weight.format.name: weight.format.facts() for weight in output.weights},
        "weights": {
            weight.name: {
                "format": weight.format.name,
                # what it was made of; what the target added was made of nothing
                **({"source": _listed(weight.spec)} if weight.info.sources else {}),
                "parts": {tensor.role: tensor.key for tensor in weight.outputs},
            }
            for weight in output.weights
        },
        "tensors": {
            tensor.key: {
                "file": output.weight_map[tensor.key],
                **_listed(tensor.spec),
                "crc32": f"{crc32[tensor.key]:08x}",
            }
            for weight in output.weights
            for tensor in weight.outputs
        },
    }


def _files(output: OutputPlan, side: Mapping[str, int], versions: Mapping[str, str]) -> dict[str, Any]:
    sizes = output.side_sizes
    files: dict[str, dict[str, Any]] = {
        name: {"size": placed.size, "header_size": len(placed.header), "header_crc32": crc(placed.header)}
        for name, placed in output.file_layouts.items()
    }
    files |= {name: {"size": sizes[name], "crc32": f"{sums:08x}"} for name, sums in side.items()}
    return {name: {**entry, **({VERSION: versions[name]} if name in versions else {})} for name, entry in files.items()}


def _listed(spec: TensorSpec) -> dict[str, Any]:
    return {"dtype": spec.dtype, "shape": list(spec.shape), **({"block": list(spec.block)} if spec.block else {})}
