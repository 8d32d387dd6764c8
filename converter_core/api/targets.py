"""What a target implements: the files that a runtime reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from .contexts import LoraChange, ModelFacts, SourceTensors, WeightContext
from .formats import QuantFormat
from .values import Extras, PlannedWeight, Stored, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

    from .values import Parts


INDEX_STEM = "diffusion_pytorch_model"
"""What Hugging Face repositories of diffusion transformers call their weight files."""


class Target(ABC):
    """What a runtime reads: names, bytes, file format, and what stands beside the weights.

    A frozen dataclass if it has options; they are set by ``target.options``.
    """

    name: ClassVar[str]
    """What ``target.format`` calls it."""

    default: ClassVar[bool] = False
    """Taken when a recipe names none."""

    row_block: ClassVar[int | None] = None
    """As ``Quantizer.row_block``, for ``encode`` and ``decode``."""

    any_scheme: ClassVar[bool] = False
    """Takes the parts of every scheme, whatever it is."""

    container: ClassVar[str] = ""
    """The name of the container it is written in; empty: the default one."""

    index_stem: ClassVar[str] = INDEX_STEM
    """How the name of an index file begins; the rest is the container's."""

    runs_on: ClassVar[Mapping[str, str]] = {}
    """Scheme -> in a few words, the machines on which the runtime runs it; the first is what ``demo`` shows."""

    replaced_flags: ClassVar[Mapping[str, str]] = {}
    """Flags of the runtime's own converter that the command line does not have -> what to type instead."""

    flags: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """Flags that stand for keys of a recipe, e.g. ``{"--myrt-mode": {"target.format": "myrt"}}``; of one that takes a
    value each value for itself: ``{"--kind=big": ...}``.
    """

    lora_forms: ClassVar[Collection[str]] = ()
    """The forms of LoRAs (``lora``, ``diff``) that the runtime's own tool merges and ``merge_lora`` as it does."""

    @property
    def key_format(self) -> str:
        """The key format that model adapters are asked for."""
        return "original"

    def key_format_for(self, known: Collection[str]) -> str:
        """The key format that a model is asked for that knows these; another one where the runtime mixes them."""
        return self.key_format

    @property
    def config_format(self) -> str:
        """The key format that ``config.json`` is asked for in; that of the names unless a runtime mixes them."""
        return self.key_format

    @property
    def one_file(self) -> bool:
        """Whether the runtime reads one file only; layouts that make several are refused."""
        return False

    @property
    def file_name(self) -> str:
        """The one name that the runtime looks for, without suffix; empty: any (``output.name``)."""
        return ""

    @abstractmethod
    def key(self, context: WeightContext, role: str, /) -> str:
        """The key of one part of a weight. The only place that knows names."""

    @abstractmethod
    def encode(self, context: WeightContext, parts: Parts, /) -> Parts:
        """Canonical parts -> what is stored, by role; the codes first. Any device, and ``meta``.

        Depends on ``context.format``, never on the name: it is tried once for all weights of one shape. Raises
        ``Refused`` for what cannot be stored. Weights that are copied or cast have the format ``UNQUANTIZED``.
        """

    @abstractmethod
    def decode(self, context: WeightContext, stored: Parts, /) -> Parts:
        """The inverse of ``encode``. Shapes come from the parts, or from ``context.spec`` where it is known."""

    def plain_dtype(self, context: WeightContext, dtype: str, /) -> str:
        """The dtype in which a weight that is not quantized is stored, for runtimes that read some in one dtype only.

        dtype: its own, or that of ``target.dtype``; returned by default. Both are floating (``BF16``, ``F32`` ...).
        """
        return dtype

    def preferred_format(self, format: QuantFormat, /) -> QuantFormat:
        """What it takes in the place of a format that it does not, e.g. the same with one scale per tensor.

        The options of a quantizer that a recipe leaves out follow it, by ``Quantizer.options_for``.
        """
        return format

    def markers(self, context: WeightContext, /) -> Parts:
        """Small constant tensors that stand beside a weight's parts, by role, e.g. a marker that names its format."""
        return {}

    def stored_spec(self, context: WeightContext, role: str, spec: TensorSpec, /) -> TensorSpec:
        """The header's dtype and shape of a stored part where they are not the tensor's own; as many bytes.

        For example ``U8`` bytes that are ``F8_E8M0``, or rows of bytes that are blocks of a packed dtype.
        """
        return spec

    def simulate_load(self, context: WeightContext, stored: Parts, /) -> Parts:
        """What the runtime's loader makes of the stored tensors before it uses them, e.g. casts."""
        return stored

    def refuse(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Iterable[str]:
        """Reasons why this model, or this collection of weights, cannot be read, e.g. a mix of schemes."""
        return ()

    def extras(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Extras:
        """Header metadata, side files, tensors of no weight."""
        return Extras()

    def config(self, config: Mapping[str, Any], weights: Sequence[PlannedWeight], /) -> Mapping[str, Any] | None:
        """The output's ``config.json``, where the runtime wants its own; None: the source's is copied if asked for.

        config: as the model adapter tells it in ``config_format``; empty if it is not known. Raises ``Refused``.
        """
        return None

    def merge_lora(self, weight: Tensor, change: LoraChange, /) -> Tensor:
        """Rows of a weight, [rows, columns], with a LoRA, as the runtime's own tool merges it, in the same dtype.

        For ``source.lora_numerics: NAME``.
        """
        raise NotImplementedError

    def notes(self, weights: Mapping[str, Stored], /) -> Iterable[str]:
        """What a user of these files should know, e.g. a file that the runtime needs beside them."""
        return ()

    def detect(self, tensors: SourceTensors, /) -> Mapping[str, Stored]:
        """This target's quantized weights in a checkpoint, by name. Empty: none, or not this target's."""
        return {}

    def added(self, tensors: SourceTensors, /) -> Iterable[str]:
        """Keys of those tensors of a checkpoint in this target's format that belong to no weight, as of ``extras``."""
        return ()

    def options_for(self, tensors: SourceTensors, /) -> Mapping[str, Any]:
        """Options that a checkpoint in this format is written with, e.g. ``{"style": "bfl"}``; none by default.

        Its weights are read with them. Where only its layout changes, those that a recipe leaves out follow it.
        """
        return {}

    def runtime_config(self, model: ModelFacts, weights: Mapping[str, Stored], path: str, /) -> Mapping[str, Any]:
        """What to put into the runtime's configuration so that it reads these weights at ``path``. JSON values.

        model: without a name where no adapter recognises it.
        """
        return {}
