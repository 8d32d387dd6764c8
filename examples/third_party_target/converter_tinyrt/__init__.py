"""Target tinyrt: 8-bit codes counted from zero, names of its own, and a table of all tensors beside the weights.

TinyRT does not exist. It stands for a runtime that model-converter has never heard of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch

from converter_core import Extras, Parts, PlannedWeight, Refused, Stored, Target, TensorSpec, hookimpl

PARTS = {"weight": "q", "scale": "s"}
"""Role -> what TinyRT calls it."""

TABLE = "tinyrt_tensors.json"


class TinyRT(Target):
    """``a.b`` becomes ``tinyrt/a/b#q`` (uint8, 128 is zero) and ``#s``; what is not quantized ``tinyrt/a/b#raw``."""

    name = "tinyrt"
    row_tile = 1

    def key(self, name: str, role: str) -> str:
        path = name.replace(".", "/")
        return f"tinyrt/{path}#{PARTS.get(role, role)}"

    def encode(self, format: str, parts: Parts, /) -> Parts:
        if format == "none":
            return {"raw": parts["weight"]}
        if format != "int8" or set(parts) != set(PARTS):
            raise Refused(f"TinyRT reads symmetric int8 and unquantized weights, not {', '.join(parts)} of {format!r}")
        # the same as adding 128, without leaving 8 bits
        return {**parts, "weight": parts["weight"].view(torch.uint8) ^ 0x80}

    def decode(self, format: str, stored: Parts, /) -> Parts:
        if format == "none":
            return {"weight": stored["raw"]}
        return {**stored, "weight": (stored["weight"] ^ 0x80).view(torch.int8)}

    def extras(self, weights: Sequence[PlannedWeight], /) -> Extras:
        table = {
            weight.name: {
                "format": weight.format,
                "tensors": {output.role: output.key for output in weight.outputs},
                "shape": list(weight.spec.shape),
            }
            for weight in weights
        }
        return Extras({"runtime": "tinyrt"}, {TABLE: json.dumps(table, indent=1).encode()})

    def scan(self, tensors: Mapping[str, TensorSpec], metadata: Mapping[str, str], /) -> Mapping[str, Stored]:
        found = {}
        for key in tensors:
            name, _, part = key.removeprefix("tinyrt/").rpartition("#")
            if part == "q":
                stem = key.removesuffix("#q")
                found[name.replace("/", ".")] = Stored("int8", {role: f"{stem}#{part}" for role, part in PARTS.items()})
        return found


@hookimpl
def converter_targets() -> list[type[Target]]:
    return [TinyRT]
