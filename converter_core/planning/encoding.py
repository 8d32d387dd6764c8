"""What is stored of a slab: the target's encoding of its parts, and the bias that belongs to it.

Shape inference and the engine both ask here, so a plan and its conversion cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..api.contexts import WeightContext
from ..api.targets import Target
from ..errors import PluginError
from .exact_numbers import exactly
from .passthrough import Passthrough

if TYPE_CHECKING:
    from torch import Tensor

    from ..api.values import Parts

BIAS = "bias"
"""The role in which a quantizer takes and returns the bias of its layer."""


@dataclass(frozen=True)
class Encoding:
    """How the parts of one weight become stored tensors. bias: of the layer, if its quantizer asks for it.

    numbers: stored parts of one number each that are known better than the canonical parts tell them.
    """

    target: Target
    context: WeightContext
    bias: WeightContext | None = None
    passthrough: Passthrough = field(default_factory=Passthrough)
    numbers: Mapping[str, float] = field(default_factory=dict)

    def stored(self, parts: Parts, bias: Tensor | None = None) -> dict[str, Tensor]:
        """bias: as it was, stored where ``parts`` has no new one."""
        own = {role: part for role, part in parts.items() if role != BIAS}
        stored = dict(exactly(self.target.encode(self.context, own), self.numbers))
        if self.bias is None:
            return stored
        if BIAS in stored:
            raise PluginError(f"target {self.target.name}: encode must not store a part as {BIAS}; that is the layer's")
        given = parts.get(BIAS)
        given = bias if given is None else given
        if given is None:
            raise PluginError(f"the bias of {self.context.name} is not there")
        (stored[BIAS],) = self.target.encode(self.bias, self.passthrough.quantize(given)).values()
        return stored

    def key(self, role: str) -> str:
        if role == BIAS and self.bias is not None:
            return self.target.key(self.bias, "weight")
        return self.target.key(self.context, role)
