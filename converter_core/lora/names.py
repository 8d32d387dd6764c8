"""Which weight a LoRA means, whatever is written before its name and in the place of its dots."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

PREFIXES = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "model.",
    "unet.",
    "module.",
    "pipe.dit.",
    "dit.",
)
"""What trainers and tools write before a name, one of them or several in a row."""

FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_", "lora_")
"""What kohya's tools and LyCORIS write before a name with underscores for its dots."""


class Names:
    """The weights of a model by everything that a LoRA may call them."""

    def __init__(self, aliases: Mapping[str, Iterable[str]]) -> None:
        """aliases: weight -> its names."""
        self._dotted: dict[str, str] = {}
        self._flat: dict[str, set[str]] = {}
        for weight, names in aliases.items():
            for name in (weight, *names):
                self._dotted.setdefault(name, weight)
                self._flat.setdefault(_flat(name), set()).add(weight)

    def find(self, base: str, suffix: str) -> str | None:
        """The weight that ``base`` means, with the ending ``suffix`` or as it stands; None: none, or several."""
        for name in _spellings(base):
            for whole in (name + suffix, name):
                if whole in self._dotted:
                    return self._dotted[whole]
        for prefix in FLAT_PREFIXES:
            if base.startswith(prefix):
                found = self._flat.get(_flat(base.removeprefix(prefix) + suffix), set())
                return next(iter(found)) if len(found) == 1 else None
        return None


def _spellings(base: str) -> Iterator[str]:
    """Without prefixes; and as attention processors of older diffusers call it: ``attn1.processor.to_q``."""
    for name in dict.fromkeys((base, base.replace(".processor.", "."))):
        yield name
        while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), ""):
            name = name.removeprefix(prefix)
            yield name


def _flat(name: str) -> str:
    return name.replace(".", "_")
