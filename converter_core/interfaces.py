"""What a plugin implements: one abstract class per kind.

One idea carries all of them: a slab is a weight with fewer rows. Neither quantizer nor target can tell the difference;
each only says by ``row_tile`` at which multiples of rows a weight may be cut. The core does the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from .safetensors_file import SAFETENSORS
from .specs import Extras, Placed, PlannedWeight, Sample, Stored, TensorSpec, WeightInfo

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .specs import Parts


class Quantizer(ABC):
    """A quantization scheme: a frozen, hashable dataclass whose fields are its options.

    The signature of ``quantize`` declares what it needs beside the weight: what ``statistic`` and ``inputs`` return
    arrives there as keywords of the same names. The core learns roles, shapes and dtypes of the parts by running the
    code on stand-ins (zeros), so ``quantize`` must not branch on values; it raises ``Refused`` for a weight it cannot
    take, and that becomes an error of the plan.
    """

    name: ClassVar[str]
    """What ``quantization.method`` calls it."""

    row_tile: ClassVar[int | None] = None
    """``quantize`` gives the same bytes for any run of rows that starts at a multiple of this. None: whole weights."""

    @property
    def format(self) -> str:
        """Name of the storage its parts form. Targets know formats, not quantizers."""
        return self.name

    @property
    def only_target(self) -> str | None:
        """The one target whose files these options make sense in; None: any."""
        return None

    @property
    def passthrough_dtype(self) -> str | None:
        """What ``target.dtype`` defaults to when this is the recipe's method, e.g. ``float32``; None: ``keep``."""
        return None

    @abstractmethod
    def quantize(self, weight: Tensor, /, *args: Any, **given: Any) -> Parts:
        """The parts of a weight (or of a slab of its rows), by role.

        Pure; any device, and ``meta``; does not modify its input. Canonical storage is plain: 4-bit codes ``uint8``,
        two to a byte, even column in the low nibble, row-major; E8M0 as ``uint8``; nothing swizzled.
        """

    @abstractmethod
    def dequantize(self, parts: Parts, /) -> Tensor:
        """The weight that the parts stand for, float32."""

    def statistic(self, rows: Tensor, /) -> Parts:
        """Numbers over the whole weight. Those of slabs are combined by elementwise maximum, which no slab size shows.

        Empty (the default): one pass over the weight is enough.
        """
        return {}

    def inputs(self, weight: WeightInfo, /) -> Parts:
        """Small host tensors for this weight from elsewhere: calibration, importance. Pure.

        Raises ``Refused`` where one is missing. Called while planning and again under way.
        """
        return {}

    def input_files(self) -> Sequence[str]:
        """Paths that ``inputs`` reads; their content counts as part of the recipe."""
        return ()

    def check_names(self, names: Sequence[str], /) -> Iterable[str]:
        """Remarks on the names of all weights it was chosen for, e.g. of statistics that fit none of them."""
        return ()

    def step(self, parts: Parts, /) -> Tensor | None:
        """The distance between neighbouring representable values around each element: float32, the weight's shape.

        ``verify`` fails a weight whose error (Frobenius) is larger than its steps (Frobenius); rounding alone stays
        below half of that. None (the default): no such check.
        """
        return None


class Container(Protocol):
    """A file format that can be laid out from specs alone."""

    suffix: str

    def place(self, weights: Sequence[PlannedWeight], metadata: Mapping[str, str]) -> Placed: ...

    def read(self, path: str) -> tuple[Mapping[str, tuple[TensorSpec, int]], Mapping[str, str]]:
        """(key -> spec and offset from the beginning of the file, metadata)."""
        ...


class Target(ABC):
    """What a runtime reads: names, bytes, file format, and what stands beside the weights."""

    name: ClassVar[str]
    """What ``target.format`` calls it."""

    default: ClassVar[bool] = False
    """Taken when a recipe names none."""

    dialect: ClassVar[str] = "original"
    """The naming that model adapters are asked for."""

    row_tile: ClassVar[int | None] = None
    """As ``Quantizer.row_tile``, for ``encode`` and ``decode``."""

    container: ClassVar[Container] = SAFETENSORS

    @abstractmethod
    def key(self, name: str, role: str) -> str:
        """The key of one part of a weight. The only place that knows names."""

    @abstractmethod
    def encode(self, format: str, parts: Parts, /) -> Parts:
        """Canonical parts -> what is stored, by role. Any device, and ``meta``. ``Refused`` for what cannot be stored.

        Of a quantized weight one part is called ``weight`` here too; ``key`` may give it any name in the file.
        ``format`` is ``none`` for weights that are copied or cast.
        """

    @abstractmethod
    def decode(self, format: str, stored: Parts, /) -> Parts:
        """The inverse of ``encode``. Shapes come from the parts themselves."""

    def stored_dtype(self, format: str, role: str, dtype: str) -> str:
        """The header dtype of a stored part, where it is not the tensor's own: ``U8`` bytes that are ``F8_E8M0``."""
        return dtype

    def as_loaded(self, stored: Parts, /) -> Parts:
        """What the runtime's loader makes of the stored tensors before it uses them, e.g. casts."""
        return stored

    def refuse(self, weights: Sequence[PlannedWeight], /) -> Iterable[str]:
        """Reasons why this collection as a whole cannot be read, e.g. a mix of schemes."""
        return ()

    def extras(self, weights: Sequence[PlannedWeight], /) -> Extras:
        return Extras()

    def notes(self, weights: Mapping[str, Stored], /) -> Iterable[str]:
        """What a user of these files should know, e.g. a file that the runtime needs beside them."""
        return ()

    def scan(self, tensors: Mapping[str, TensorSpec], metadata: Mapping[str, str], /) -> Mapping[str, Stored]:
        """This target's quantized weights in a checkpoint, by name. Empty: none, or not this target's."""
        return {}

    def runtime_config(self, weights: Mapping[str, Stored], path: str, /) -> Mapping[str, Any]:
        """What to put into the runtime's configuration so that it reads these weights at ``path``. JSON values."""
        return {}


class ModelAdapter(ABC):
    """A model family: which weights a checkpoint holds and what they are called."""

    name: ClassVar[str]
    """What ``source.type`` calls it."""

    modules: ClassVar[Sequence[str]] = ()
    """The ``WeightInfo.module`` values of linear weights; ``target_modules`` defaults to all of them."""

    @abstractmethod
    def knows(self, key: str) -> bool:
        """Whether a key is one of this model's. Tells its files from those of other models in the same folder."""

    @abstractmethod
    def recognise(self, tensors: Mapping[str, TensorSpec]) -> str | None:
        """The variant (``I2V-14B``; ``unknown`` for one of the family), or None: not this model."""

    def describe(self, tensors: Mapping[str, TensorSpec]) -> Mapping[str, Any]:
        """Facts for ``inspect``: naming, dimensions, number of blocks. JSON values."""
        return {}

    def problems(self, tensors: Mapping[str, TensorSpec]) -> Iterable[str]:
        """What is missing or has an unexpected shape, by the model's own structure."""
        return ()

    @abstractmethod
    def weights(self, tensors: Mapping[str, TensorSpec]) -> Iterable[WeightInfo]:
        """Every weight, in the order of ``tensors``. What none of them claims is copied by the core and reported."""

    def assemble(self, sources: Parts) -> Tensor:
        """One weight (or a slab of it) from its sources. Any device, and ``meta``."""
        return sources["weight"]

    def rename(self, name: str, dialect: str) -> str:
        """A weight's name in another naming."""
        return name

    def config(self, config: Mapping[str, Any], dialect: str) -> Mapping[str, Any]:
        """The model's ``config.json`` in another naming; the very same mapping if it needs no change."""
        return config

    def sample(self) -> Sample | None:
        """A small checkpoint with real names, for ``demo`` and for tests; None: no such thing."""
        return None


class LayoutWriter(ABC):
    """A pure function from weights to files. A frozen dataclass if it has options (``chunk_size``)."""

    name: ClassVar[str]
    """What ``target.layout`` calls it."""

    default: ClassVar[bool] = False
    """Taken when a recipe names none."""

    indexed: ClassVar[bool] = False
    """Whether an index file names the file of every tensor."""

    @abstractmethod
    def files(self, name: str, weights: Sequence[PlannedWeight]) -> Mapping[str, Sequence[PlannedWeight]]:
        """File name without suffix -> its weights. Whole weights: a weight and its scale cannot be parted."""


class Lane(Protocol):
    """One worker's way to a device and back: staging memory and, where there is such a thing, a stream."""

    def buffer(self, nbytes: int) -> Tensor:
        """Host ``uint8`` to read into, pinned where that helps; valid until the next call."""
        ...

    def upload(self, host: Tensor) -> Tensor: ...

    def download(self, parts: Parts) -> Parts:
        """On the host, contiguous, and complete on return."""
        ...


class DeviceBackend(ABC):
    """A kind of device."""

    name: ClassVar[str]
    """What ``performance.device`` calls it; ``name:N`` is the N-th of ``devices()``."""

    last_resort: ClassVar[bool] = False
    """``device: auto`` takes this one only if no other kind has a device."""

    @abstractmethod
    def devices(self) -> Sequence[torch.device]:
        """What is there; empty if nothing."""

    def absence(self) -> str:
        """Why ``devices()`` is empty, in plain words."""
        return "no such device here"

    @abstractmethod
    def free_memory(self, device: torch.device) -> int:
        """Bytes."""

    @abstractmethod
    def slab_bytes(self, device: torch.device) -> int:
        """Source bytes worth taking at a time: about 1 MiB on a CPU (its cache), a whole weight on a GPU."""

    @abstractmethod
    def lane(self, device: torch.device) -> AbstractContextManager[Lane]:
        """A worker's lane, entered in that worker's thread."""
