"""What a quantization scheme implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from .contexts import SourceTensors, WeightContext
from .formats import QuantFormat
from .values import TensorRef, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

    from .values import Parts


class Quantizer(ABC):
    """A quantization scheme: a frozen, hashable dataclass whose fields are its options.

    The signature of ``quantize`` declares what it needs beside the weight: what ``observe`` and ``inputs`` return
    arrives there as keywords of the same names. The core learns roles, shapes and dtypes of the parts by running the
    code on zeros (or on ``meta``), so ``quantize`` must not branch on values; it raises ``Refused`` for a weight it
    cannot take, and that becomes an error of the plan.
    """

    name: ClassVar[str]
    """What ``quantization.method`` calls it."""

    row_block: ClassVar[int | None] = None
    """``quantize`` gives the same bytes for any run of rows that starts at a multiple of this. None: whole weights."""

    @property
    def wants_bias(self) -> bool:
        """Whether ``quantize`` also takes the layer's bias, as ``bias``; it may then return a new one in that role."""
        return False

    @property
    def format(self) -> QuantFormat:
        """How its parts are stored. Targets decide by these facts; options that change them change the format."""
        return QuantFormat(self.name, element=self.name)

    def options_for(self, wanted: QuantFormat, /) -> Mapping[str, Any]:
        """Options with which the format is the wanted one, e.g. ``{"per_channel": False}`` for one scale per tensor.

        Those that a recipe leaves out follow the target in this way. Empty (the default): there are no such options.
        """
        return {}

    @property
    def required_target(self) -> str | None:
        """The one target whose files these options make sense in; None: any."""
        return None

    @property
    def passthrough_dtype(self) -> str | None:
        """What ``target.dtype`` defaults to when this is the recipe's method, e.g. ``float32``; None: ``keep``."""
        return None

    def fallback(self, spec: TensorSpec, /) -> Quantizer | None:
        """Another quantizer for a weight that this one cannot take, by its dtype and shape; the plan tells of it.

        None (the default): it takes the weight, or refuses it. spec: of the weight's source, all rows.
        """
        return None

    @abstractmethod
    def quantize(self, weight: Tensor, /, *args: Any, **given: Any) -> Parts:
        """The parts of a weight (or of a slab of its rows), by role; the part that holds the codes comes first.

        Pure; any device, and ``meta``; does not modify its input. Canonical storage is plain: 4-bit codes ``uint8``,
        two to a byte, even column in the low nibble, row-major; E8M0 as ``uint8``; nothing swizzled.
        """

    @abstractmethod
    def dequantize(self, parts: Parts, /) -> Tensor:
        """The weight that the parts stand for, float32."""

    def observe(self, rows: Tensor, /) -> Parts:
        """Statistics of the whole weight. Those of slabs are combined by elementwise maximum.

        Empty (the default): one pass over the weight is enough.
        """
        return {}

    def stores(self) -> Mapping[str, str]:
        """Name -> path of every file of tensors that ``inputs`` refers to, e.g. calibration; in the fingerprint too."""
        return {}

    def inputs(
        self, context: WeightContext, stores: Mapping[str, SourceTensors], /
    ) -> Mapping[str, TensorRef | Tensor]:
        """What ``quantize`` needs for this weight beside its rows: calibration, importance. Pure.

        stores: those of ``stores``, and under ``calibration`` the file of ``source.calibration`` where a recipe has
        one; ``converter_core.api.statistics`` finds what it knows of a weight.

        A ``TensorRef`` into one of ``stores`` is read by the engine, slab by slab where it is ``by_rows``, within the
        memory budget; a tensor of the plugin's own (on the host, at most 64 KiB) is handed over as it is.
        Raises ``Refused`` where one is missing. Called while planning, from headers.
        """
        return {}

    def prepare(self, inputs: Parts, /) -> Parts:
        """What ``quantize`` gets in the place of these inputs, made once for all weights that have the same ones.

        inputs: those of ``inputs`` that are read from stores as a whole. Dry runs leave out what it returns, so
        ``quantize`` gives the same roles, shapes and dtypes without.
        """
        return inputs

    def prepared_bytes(self, inputs: Mapping[str, TensorSpec], /) -> int:
        """The most that ``prepare`` and what it returns take beside these inputs; counted in the memory budget."""
        return 0

    counted: ClassVar[Sequence[str]] = ()
    """Names of numbers, int64 [], that ``quantize`` may return beside the parts; added up over all rows of a run."""

    def told(self, counts: Mapping[str, int], /) -> str:
        """What the summary of a run says of them; empty: nothing."""
        return ""

    @property
    def same_everywhere(self) -> bool:
        """Whether the bytes are the same on every device and with every version of torch.

        Where they are not, both are part of the fingerprint and stand in the manifest.
        """
        return True

    def input_files(self) -> Sequence[str]:
        """Paths of files that the plugin reads itself; their content is part of the fingerprint."""
        return ()

    def remarks(self, weights: Mapping[str, Mapping[str, TensorSpec]], /) -> Iterable[str]:
        """What a plan is to tell of the weights it was chosen for, e.g. of statistics that fit none of them.

        weights: name -> what it takes beside the weight (``inputs``), by name.
        """
        return ()

    def quantization_step(self, parts: Parts, /) -> Tensor | None:
        """The distance between neighbouring representable values around each element: float32, the weight's shape.

        ``verify`` fails a weight whose error (Frobenius) is too large for its steps (Frobenius); rounding alone stays
        below half of them. None (the default): errors are reported without a limit.
        """
        return None
