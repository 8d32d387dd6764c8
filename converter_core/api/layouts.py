"""What a layout implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from .values import PlannedWeight


class LayoutWriter(ABC):
    """A pure function from weights to files. A frozen dataclass if it has options (``chunk_size``)."""

    name: ClassVar[str]
    """What ``target.layout`` calls it."""

    default: ClassVar[bool] = False
    """Taken when a recipe names none."""

    indexed: ClassVar[bool] = False
    """Whether an index file names the file of every tensor."""

    flag: ClassVar[str] = ""
    """The switch of the command line that chooses it, e.g. ``--single-file``; empty: ``--set target.layout=`` does."""

    @abstractmethod
    def files(self, name: str, weights: Sequence[PlannedWeight]) -> Mapping[str, Sequence[PlannedWeight]]:
        """File name without suffix -> its weights. Whole weights: a weight and its scale cannot be parted."""
