"""One file for each block, one for the rest: what a runtime that loads block by block wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from converter_core.api import LayoutWriter, PlannedWeight, hookimpl


class ByBlock(LayoutWriter):
    """``block_{i}.safetensors`` for each block, ``non_block.safetensors`` for the rest, and an index."""

    # LightX2V's lazy_load asks for exactly these names (common/ops/utils.py, networks/base_model.py)
    name = "by_block"
    flag: ClassVar[str] = "--save-by-block"
    indexed = True

    def files(self, name: str, weights: Sequence[PlannedWeight]) -> Mapping[str, Sequence[PlannedWeight]]:
        blocks: dict[str, list[PlannedWeight]] = {}
        for weight in weights:
            blocks.setdefault(weight.info.block, []).append(weight)
        rest = blocks.pop("", [])
        # by number, whatever the order of the source: a shorter number is a smaller one
        files = {f"block_{block}": blocks[block] for block in sorted(blocks, key=lambda block: (len(block), block))}
        return {**files, "non_block": rest} if rest else files


@hookimpl
def converter_layouts() -> Sequence[type[LayoutWriter]]:
    return [ByBlock]
