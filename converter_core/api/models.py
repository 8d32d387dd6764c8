"""What a model adapter implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from .contexts import SourceTensors, WeightContext
from .roots import SourceRoot
from .values import SyntheticCheckpoint, WeightInfo

if TYPE_CHECKING:
    from torch import Tensor

    from .values import Parts


class ModelAdapter(ABC):
    """A model family: which weights a checkpoint holds and what they are called.

    A frozen dataclass if it has options; they are set by ``source.options``.
    """

    name: ClassVar[str]
    """What ``source.type`` calls it."""

    modules: ClassVar[Sequence[str]] = ()
    """The ``WeightInfo.module`` values of linear weights; ``target_modules`` defaults to all of them."""

    default: ClassVar[bool] = False
    """Shown by ``demo`` and ``init``."""

    auxiliary: ClassVar[bool] = False
    """A part of a pipeline beside the main model, e.g. a text encoder: taken where it is asked for by name, or where no
    other adapter recognises anything."""

    by_name: ClassVar[bool] = False
    """Never tried by itself: only ``source.type`` calls for it."""

    @property
    def key_formats(self) -> Sequence[str]:
        """Those that ``rename`` knows, its own first; empty: not said."""
        return ()

    def input_files(self) -> Sequence[str]:
        """Paths of files beside the tensors that the output depends on, e.g. a tokenizer; in the fingerprint too."""
        return ()

    @abstractmethod
    def owns_key(self, key: str) -> bool:
        """Whether a key is one of this model's. Tells its files from those of other models in the same folder."""

    def components(self, root: SourceRoot) -> Mapping[str, str]:
        """Name -> folder or file, below a downloaded root, of each model of this family there; ``.``: the root.

        For example the two experts of a pair, or what a pipeline's index says. Empty where there is no such thing.
        """
        return {}

    @abstractmethod
    def recognise(self, tensors: SourceTensors) -> str | None:
        """The variant (``I2V-14B``; ``unknown`` for one of the family), or None: not this model."""

    def describe(self, tensors: SourceTensors) -> Mapping[str, Any]:
        """Facts for ``inspect`` and targets: key format, dimensions, number of blocks. JSON values."""
        return {}

    def problems(self, tensors: SourceTensors) -> Iterable[str]:
        """What is missing or has an unexpected shape, by the model's own structure."""
        return ()

    def foreign(self, tensors: SourceTensors) -> Collection[str]:
        """Keys of other models in the same file (a VAE, a text encoder): skipped, and counted in a warning."""
        return ()

    def stores(self) -> Mapping[str, str]:
        """Name -> path of every other file of tensors that weights are made of, e.g. a LoRA; in the fingerprint too."""
        return {}

    @abstractmethod
    def weights(self, tensors: SourceTensors) -> Iterable[WeightInfo]:
        """Every weight, in the order of ``tensors``. What none of them claims is copied by the core and reported."""

    def assemble(self, context: WeightContext, sources: Parts) -> Tensor:
        """One weight (or a slab of it) from its sources, by role. Any device, and ``meta``.

        It has as many rows as each of its ``by_rows`` sources.
        """
        return sources["weight"]

    def rename(self, name: str, key_format: str) -> str:
        """A weight's name in another key format; no two weights may get the same."""
        return name

    def lora_names(self, name: str) -> Iterable[str]:
        """What else a LoRA may call a weight: its names in other key formats, with their endings (``.weight``).

        Prefixes (``diffusion_model.``), underscores in the place of dots and the endings of LoRA files are the core's.
        """
        return ()

    def config(self, tensors: SourceTensors, key_format: str) -> Mapping[str, Any]:
        """The model's ``config.json`` for a key format, from the source's (``tensors.config``) and from the tensors.

        ``tensors.config`` itself where it needs no change. Raises ``Refused`` where the model cannot be told in it.
        """
        return tensors.config

    def output_name(self, method: str) -> str:
        """What the output is called where the recipe does not say."""
        return f"{self.name}_{method}"

    def synthetic(self) -> SyntheticCheckpoint | None:
        """A small checkpoint with real names, for ``demo`` and for tests; None: no such thing."""
        return None
