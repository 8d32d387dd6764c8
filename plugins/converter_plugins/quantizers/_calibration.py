"""Activation statistics of a calibration run: name of a weight -> largest magnitude of what it multiplies."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from safetensors.torch import load
from torch import Tensor

from converter_core.api import (
    Refused,
    SourceTensors,
    TensorRef,
    TensorSpec,
    WeightContext,
    load_json_object,
    read_file,
    statistics,
)

from ._statistics import Calibrated

LARGEST = 256 << 20
"""Bytes. A number for each weight of the largest model takes a thousandth of it."""

MAKE_IT = "LightX2V writes calib.pt when it runs the unquantized model with do_mm_calib: true"


class ActivationScaled(Calibrated):
    """The part of a quantizer that follows from its option ``activation_absmax``."""

    activation_absmax: str | None

    absmax_of_store: ClassVar[bool] = False
    """Whether the magnitude is taken from source.calibration where the option is left out."""

    def inputs(
        self, context: WeightContext, stores: Mapping[str, SourceTensors], /
    ) -> Mapping[str, TensorRef | Tensor]:
        given = super().inputs(context, stores)
        if self.activation_absmax is not None:
            return {**given, "input_absmax": activation_absmax(self.activation_absmax, context.info.name)}
        absmax = absmax_of(context, stores) if self.absmax_of_store else None
        return given if absmax is None else {**given, "input_absmax": absmax}

    def input_files(self) -> Sequence[str]:
        return () if self.activation_absmax is None else (self.activation_absmax,)

    def remarks(self, weights: Mapping[str, Mapping[str, TensorSpec]], /) -> Iterable[str]:
        yield from super().remarks(weights)
        if self.activation_absmax is None:
            return
        if idle := sorted(names(self.activation_absmax) - weights.keys()):
            yield f"{self.activation_absmax}: these names match no quantized weight: {', '.join(idle)}"


def activation_absmax(path: str, name: str) -> Tensor:
    """The statistic of one weight, 0-d float32, rounded to what bf16 can hold.

    path: LightX2V's ``calib.pt``, ``{"absmax": {name: tensor}}``, or the same mapping (or the inner one alone) in a
        JSON or safetensors file.
    """
    table = _table(path)
    if name not in table:
        raise Refused(f"has no activation statistic in {path}; {MAKE_IT}")
    return _checked(table[name], path)


def absmax_of(context: WeightContext, stores: Mapping[str, SourceTensors]) -> Tensor | None:
    """The same from source.calibration; None if there is no such file, or it does not hold this statistic."""
    found = statistics(context, stores)
    if not found or "absmax" not in found:
        return None
    ref = found["absmax"]
    return _checked(stores[ref.store].read(ref.key), "the calibration file")


def _checked(found: Any, path: str) -> Tensor:
    try:
        value = torch.as_tensor(found, dtype=torch.float32).cpu().to_dense()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise Refused(f"has an activation statistic in {path} that is no number: {found!r}") from None
    if value.numel() != 1:
        raise Refused(f"has an activation statistic of shape {list(value.shape)} in {path}; needs one number")
    value = value.reshape(()).to(torch.bfloat16).float()
    if not 0 < value.item() < torch.inf:
        raise Refused(f"has the activation statistic {float(found):g} in {path}; needs a positive finite number")
    return value


def names(path: str) -> frozenset[str]:
    """The weights that the file knows."""
    return frozenset(_table(path))


def _table(path: str) -> Mapping[str, Any]:
    try:
        stat = Path(path).stat()
        return _read(path, stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        raise Refused(f"activation_absmax: cannot read {path}: {error.strerror or error}") from None


@lru_cache(maxsize=4)
def _read(path: str, mtime_ns: int, size: int) -> Mapping[str, Any]:
    """Read once for all weights, and again when the file has changed."""
    content: Any
    try:
        data = read_file(path, LARGEST)
        if path.endswith(".json"):
            content = load_json_object(data, "it", "a calibration file holds a mapping")
        elif path.endswith(".safetensors"):
            content = load(data)
        else:
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle makes torch raise nearly anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Refused(f"activation_absmax: {path} is not a calibration file: {reason}") from None
    table = content.get("absmax", content) if isinstance(content, dict) else None
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table):
        raise Refused(f'activation_absmax: {path} holds no mapping {{"absmax": {{weight name: number}}}}')
    return MappingProxyType(table)
