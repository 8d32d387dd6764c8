"""Single numbers of a quantized weight that another target's dress holds only nearly, e.g. the inverse of a scale.

They stand in the header of a transcoded file, so that the way back gives the first bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..api.targets import Target

if TYPE_CHECKING:
    from ..api.values import Parts

KEY = "exact_numbers"
"""The entry of a header's metadata: JSON, numbers by the name of their weight."""


@dataclass(frozen=True)
class Numbers:
    """Of one weight. canonical: by role. target, stored: as the target that they were first written for stores them."""

    canonical: Mapping[str, float] = field(default_factory=dict)
    target: str = ""
    stored: Mapping[str, float] = field(default_factory=dict)

    def stored_for(self, target: Target) -> Mapping[str, float]:
        return self.stored if target.name == self.target else {}


NO_NUMBERS = Numbers()


def header(numbers: Mapping[str, Numbers]) -> dict[str, str]:
    told = {name: asdict(one) for name, one in sorted(numbers.items())}
    return {KEY: json.dumps(told, sort_keys=True, separators=(",", ":"))} if told else {}


def read(metadata: Mapping[str, Any]) -> dict[str, Numbers]:
    """By the name of the weight; none where a stranger's metadata of the same name says something else."""
    try:
        content = json.loads(metadata.get(KEY, "{}"))
        return {name: _numbers(one) for name, one in content.items()}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return {}


def _numbers(entry: Any) -> Numbers:
    canonical, stored = ({str(role): float(one) for role, one in entry[key].items()} for key in ("canonical", "stored"))
    return Numbers(canonical, str(entry["target"]), stored)


def exactly(parts: Parts, numbers: Mapping[str, float]) -> Parts:
    """The parts with these numbers in the place of those that are there."""
    found = {role: torch.full_like(parts[role], one) for role, one in numbers.items() if role in parts}
    return {**parts, **found} if found else parts
