"""``alpha / rank``: what a file says of it, in a tensor beside each pair or for all of them in its metadata."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ADAPTER_METADATA = "lora_adapter_metadata"
"""Where diffusers writes PEFT's configuration into the header: a JSON mapping, its keys with the component in front."""


@dataclass(frozen=True)
class Configured:
    """PEFT's configuration of an adapter. patterns: end of a module's name -> its own alpha. stabilised: rsLoRA."""

    alpha: float | None = None
    patterns: Mapping[str, float] = field(default_factory=dict)
    stabilised: bool = False

    def alpha_of(self, base: str) -> float | None:
        for pattern, alpha in self.patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", base):
                return alpha
        return self.alpha

    def divisor(self, rank: int) -> float:
        """``rank``; its root in rank-stabilised LoRA (D. Kalajdzievski, 2023)."""
        return math.sqrt(rank) if self.stabilised else rank


def configured(metadata: Mapping[str, Any]) -> Configured:
    """What the metadata of a file's header says. ValueError if it cannot be read."""
    text = metadata.get(ADAPTER_METADATA)
    if text is None:
        return Configured()
    try:
        found = json.loads(text)
        told = {str(key).rpartition(".")[2]: value for key, value in found.items()}
        alpha = told.get("lora_alpha")
        patterns = {str(key): float(value) for key, value in (told.get("alpha_pattern") or {}).items()}
        for pattern in patterns:
            re.compile(pattern)
        return Configured(None if alpha is None else float(alpha), patterns, bool(told.get("use_rslora")))
    except (ValueError, TypeError, AttributeError, RecursionError, re.error) as error:
        raise ValueError(f"its {ADAPTER_METADATA} cannot be read ({error})") from None
