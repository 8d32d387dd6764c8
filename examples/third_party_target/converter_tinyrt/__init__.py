"""Target tinyrt: 8-bit codes counted from zero, names of its own, and a table of all tensors beside the weights.

TinyRT does not exist. It stands for a runtime that model-converter has never heard of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch

from converter_core.api import (
    UNQUANTIZED,
    Extras,
    ModelFacts,
    Parts,
    PlannedWeight,
    QuantFormat,
    Refused,
    SourceTensors,
    Stored,
    Target,
    WeightContext,
    hookimpl,
)

PARTS = {"weight": "q", "scale": "s"}
"""Role -> what TinyRT calls it."""

TABLE = "tinyrt_tensors.json"

ROWS_OF_INT8 = QuantFormat("int8", "int8", 8, "row", scale_dtype="F32")


class TinyRT(Target):
    """``a.b`` becomes ``tinyrt/a/b#q`` (uint8, 128 is zero) and ``#s``; what is not quantized ``tinyrt/a/b#raw``."""

    name = "tinyrt"
    row_block = 1

    def key(self, context: WeightContext, role: str, /) -> str:
        path = context.name.replace(".", "/")
        return f"tinyrt/{path}#{PARTS.get(role, role)}"

    def encode(self, context: WeightContext, parts: Parts, /) -> Parts:
        if context.format == UNQUANTIZED:
            return {"raw": parts["weight"]}
        if context.format.element != "int8" or set(parts) != set(PARTS):
            what = f"{', '.join(parts)} of {context.format.name!r}"
            raise Refused(f"TinyRT reads symmetric int8 and unquantized weights, not {what}")
        # the same as adding 128, without leaving 8 bits
        return {**parts, "weight": parts["weight"].view(torch.uint8) ^ 0x80}

    def decode(self, context: WeightContext, stored: Parts, /) -> Parts:
        if context.format == UNQUANTIZED:
            return {"weight": stored["raw"]}
        return {**stored, "weight": (stored["weight"] ^ 0x80).view(torch.int8)}

    def extras(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Extras:
        table = {
            weight.name: {
                "format": weight.format.name,
                "tensors": {output.role: output.key for output in weight.outputs},
                "shape": list(weight.spec.shape),
            }
            for weight in weights
        }
        return Extras({"runtime": "tinyrt"}, {TABLE: json.dumps(table, indent=1).encode()})

    def detect(self, tensors: SourceTensors, /) -> Mapping[str, Stored]:
        found = {}
        for key in tensors:
            name, _, part = key.removeprefix("tinyrt/").rpartition("#")
            if part == "q":
                stem = key.removesuffix("#q")
                found[name.replace("/", ".")] = Stored(
                    ROWS_OF_INT8, {role: f"{stem}#{part}" for role, part in PARTS.items()}
                )
        return found


@hookimpl
def converter_targets() -> list[type[Target]]:
    return [TinyRT]
