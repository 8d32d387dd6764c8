"""The error of a layer's outputs for tokens that its rounding has not seen: those that a calibration file holds out."""

from __future__ import annotations

import math
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from torch import Tensor

from ..api.calibration import CALIBRATION, ORIGINAL, split_tokens, statistics
from ..api.contexts import SourceTensors, WeightContext
from ..api.models import ModelAdapter
from ..api.values import TensorSpec, WeightInfo
from ..checkpoint.files import open_checkpoint
from ..errors import CheckpointError, Refused, VerificationError
from ..planning.stores import read_whole
from ..plugins.registry import Registry


class HeldOut:
    """The held-out tokens of every layer in a calibration file."""

    def __init__(self, path: str | Path, adapter: ModelAdapter, registry: Registry, stack: ExitStack) -> None:
        """stack: closes the file. VerificationError if it cannot be read."""
        try:
            self._file = stack.enter_context(open_checkpoint(path, registry=registry))
        except CheckpointError as error:
            raise VerificationError(*error.problems) from None
        self._adapter = adapter
        self._tensors = SourceTensors(self._file.tensors, self._file.metadata, read=partial(read_whole, self._file))

    def tokens(self, info: WeightInfo, spec: TensorSpec) -> Tensor | None:
        """Float32 [I, T]; None where the file holds none for this weight."""
        original = self._adapter.rename(info.name, ORIGINAL)
        try:
            found = statistics(WeightContext(info, info.name, spec, original=original), {CALIBRATION: self._tensors})
        except Refused:
            return None
        if not found or "tokens" not in found:
            return None
        tokens = read_whole(self._file, found["tokens"].key)
        return split_tokens(tokens, has_factors="factors" in found)[1].float().t().contiguous()


class OutputError:
    """Of one weight, added up over slabs of its rows. Biases and their correction are no part of it."""

    def __init__(self, tokens: Tensor) -> None:
        self._tokens = tokens
        self._error = self._size = 0.0

    def add(self, rows: Tensor, decoded: Tensor) -> None:
        exact = rows.float()
        self._error += float(((decoded - exact) @ self._tokens).double().square().sum())
        self._size += float((exact @ self._tokens).double().square().sum())

    @property
    def relative(self) -> float | None:
        """Frobenius(error of the outputs) / Frobenius(outputs); None where all outputs are zero."""
        return math.sqrt(self._error / self._size) if self._size else None
