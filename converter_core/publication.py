"""The end of a conversion: everything staged gets its final name, and the manifest says what it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .journal import Journal
from .manifest import crc, dump, manifest_name
from .plan import Plan
from .specs import TensorSpec
from .writer import Staging


def publish(plan: Plan, staging: Staging, journal: Journal, crc32: Mapping[str, int]) -> None:
    """Side files, then every file to its final name, the manifest last. crc32: of every tensor, by key."""
    side = {name: staging.put(name, content) for name, content in plan.side.items()}
    side |= {name: staging.copy(name, path) for name, path in plan.copies.items()}
    manifest = manifest_name(plan.name)
    staging.put(manifest, dump(_content(plan, crc32, side)))
    names = [*plan.placed, *plan.copies, *(name for name in plan.side if name not in plan.copies)]
    journal.publishing([*names, manifest])
    staging.publish(names, plan.survey.replaces, last=manifest)


def _content(plan: Plan, crc32: Mapping[str, int], side: Mapping[str, int]) -> dict[str, Any]:
    """What the manifest says: what was asked for, what it was made of, and every file and tensor with its checksum."""
    recipe = plan.recipe.as_dict()
    recipe.pop("performance", None)
    recipe["output"].pop("overwrite", None)
    sizes = plan.side_sizes
    return {
        "fingerprint": plan.fingerprint.value,
        "recipe": recipe,
        "versions": dict(plan.distributions),
        "model": {"adapter": plan.adapter.name, "variant": plan.variant},
        "target": plan.target.name,
        "layout": plan.layout.name,
        "source": {
            "files": {file.name: [file.size, file.mtime_ns, file.header_hash] for file in plan.checkpoint.files},
            "tensors": len(plan.checkpoint.tensors),
        },
        "files": {
            **{name: {"size": placed.size, "header_crc32": crc(placed.header)} for name, placed in plan.placed.items()},
            **{name: {"size": sizes[name], "crc32": f"{sums:08x}"} for name, sums in side.items()},
        },
        "weights": {
            weight.name: {
                "format": weight.format,
                # what it was made of; what the target added was made of nothing
                **({"source": _listed(weight.spec)} if weight.info.sources else {}),
                "parts": {output.role: output.key for output in weight.outputs},
            }
            for weight in plan.weights
        },
        "tensors": {
            output.key: {
                "file": plan.home[output.key],
                **_listed(output.spec),
                "crc32": f"{crc32[output.key]:08x}",
            }
            for weight in plan.weights
            for output in weight.outputs
        },
    }


def _listed(spec: TensorSpec) -> dict[str, Any]:
    return {"dtype": spec.dtype, "shape": list(spec.shape)}
