"""Everything in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from converter_core.api import LayoutWriter, PlannedWeight, hookimpl


class SingleFile(LayoutWriter):
    """``{name}.safetensors``, no index."""

    name = "single_file"
    flag: ClassVar[str] = "--single-file"
    default = True

    def files(self, name: str, weights: Sequence[PlannedWeight]) -> Mapping[str, Sequence[PlannedWeight]]:
        return {name: weights}


@hookimpl
def converter_layouts() -> Sequence[type[LayoutWriter]]:
    return [SingleFile]
