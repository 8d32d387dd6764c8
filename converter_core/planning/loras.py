"""LoRAs of a recipe: which weights each changes, and everything that speaks against it, before anything is merged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..api.models import ModelAdapter
from ..api.values import BASE, WeightInfo
from ..lora.names import Names
from ..output.fingerprint import content_hash
from ..plugins.registry import Registry
from ..recipe.check import EXACT
from ..recipe.load import LoraSection, Recipe
from .jobs import Term
from .lora_file import LoraFile
from .stores import Stores
from .transcode import Quantized


@dataclass(frozen=True)
class MergedLora:
    """One file and what becomes of it. modules: module, or kind of what is in none -> weights that it changes.

    unmatched: keys that mean no weight and are left out, where the recipe allows that.
    """

    section: LoraSection
    size: int
    sha256: str
    modules: Mapping[str, int]
    unmatched: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "file": Path(self.section.path).name,
            "size": self.size,
            "sha256": self.sha256,
            "strength": self.section.strength,
            "alpha": self.section.alpha,
            "weights": sum(self.modules.values()),
            "modules": dict(self.modules),
            "unmatched": list(self.unmatched),
        }


@dataclass(frozen=True)
class Loras:
    """terms: what is added to each weight, in the order of the recipe."""

    files: tuple[MergedLora, ...] = ()
    terms: Mapping[str, tuple[Term, ...]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def contents(self) -> dict[str, str]:
        return {lora.section.path: lora.sha256 for lora in self.files}

    def metadata(self) -> dict[str, str]:
        """For the headers of the output: files do not show what was merged into them."""
        if not self.files:
            return {}
        told = (f"{Path(lora.section.path).name} ({lora.section.strength:g}, {lora.sha256})" for lora in self.files)
        return {"merged_loras": ", ".join(told)}


NO_LORAS = Loras()


def plan_loras(
    recipe: Recipe,
    adapter: ModelAdapter,
    infos: Sequence[WeightInfo],
    stores: Stores,
    quantized: Quantized | None,
    registry: Registry,
) -> Loras:
    """What all LoRAs of a recipe do; what is wrong with them stands in ``problems``. CheckpointError: not readable."""
    sections = recipe.source.loras
    if not sections:
        return NO_LORAS
    if quantized is not None:
        where = recipe.where("source.loras")
        return Loras(
            problems=(
                f"{where}: the source is quantized already ({quantized}), and a LoRA is merged before that; give the "
                "original checkpoint, or write source.dequantize: true",
            )
        )
    weights = {info.name: info for info in infos}
    names = Names({info.name: _aliases(info, adapter) for info in infos})
    numerics = recipe.source.lora_numerics
    target = None if numerics == EXACT else registry.targets[numerics]()
    files = []
    terms: dict[str, list[Term]] = {}
    problems: list[str] = []
    warnings: list[str] = []
    for section in sections:
        reading = LoraFile(section, stores, adapter, weights, names, target)
        reading.run()
        relaxed = recipe.source.on_unmatched == "warn" and reading.terms
        (warnings if relaxed else problems).extend(reading.unmatched_told(bool(relaxed)))
        problems += reading.problems
        for name, several in reading.terms.items():
            terms.setdefault(name, []).extend(several)
        size, sha256 = reading.file.files[0].size, content_hash(section.path)
        files.append(MergedLora(section, size, sha256, reading.modules(), tuple(reading.unmatched)))
    ordered = {name: tuple(several) for name, several in terms.items()}
    return Loras(tuple(files), ordered, tuple(problems), tuple(warnings))


def _aliases(info: WeightInfo, adapter: ModelAdapter) -> Iterator[str]:
    yield from adapter.lora_names(info.name)
    if len(info.refs) == 1 and info.refs[0].store == BASE and info.refs[0].rows is None:
        yield info.refs[0].key
