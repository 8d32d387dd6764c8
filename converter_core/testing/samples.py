"""What the kits try plugins on: weights with what is rare in them, the plainest neighbours, comparison by bytes."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest.mock import patch

import torch

from ..api.contexts import SourceTensors, WeightContext
from ..api.models import ModelAdapter
from ..api.quantizers import Quantizer
from ..api.targets import Target
from ..api.tensors import in_words, same, spec_of, torch_dtype
from ..api.values import TensorRef, TensorSpec, WeightInfo
from ..planning.encoding import Encoding
from ..planning.output_schema import OutputSchema, SourceSpec
from ..planning.shape_inference import ShapeInference

if TYPE_CHECKING:
    from torch import Tensor

    from ..api.values import Parts

CASES = ("ordinary", "one outlier", "zero rows", "one sign", "zeros")
"""What weights are made for tests: gaussian rows of different scale, and that with something rare in it."""

SOURCE_DTYPES = ("BF16", "F16", "F32")


def sample_weight(shape: Sequence[int], dtype: str = "BF16", case: str = "ordinary") -> Tensor:
    """The same values in every run. Beside ``CASES`` there is ``mixed``: an outlier, and every fourth row zero."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{tuple(shape)}".encode()))
    weight = torch.randn(tuple(shape), generator=generator)
    if len(shape) > 1:
        weight *= torch.rand(shape[0], *(1 for _ in shape[1:]), generator=generator) + 0.5
    if case in ("one outlier", "mixed") and weight.numel():
        weight.view(-1)[weight.numel() // 2] = 1000.0
    if case in ("zero rows", "mixed") and weight.dim():
        weight[:: 2 if case == "zero rows" else 4] = 0
    elif case == "one sign":
        weight.abs_()
    elif case == "zeros":
        weight.zero_()
    return weight.to(torch_dtype(dtype))


def slabs(weight: Tensor, height: int) -> list[Tensor]:
    return [weight[at : at + height] for at in range(0, weight.shape[0], height)]


def context_of(quantizer: Quantizer, info: WeightInfo, spec: TensorSpec | None = None) -> WeightContext:
    """Of a weight that a quantizer is tried on."""
    return WeightContext(info, info.name, spec, quantizer.format)


def inputs_of(quantizer: Quantizer, info: WeightInfo) -> dict[str, Tensor]:
    """What it takes beside the rows; tensors of a store are not read here, give the quantizer under test without."""
    found = quantizer.inputs(context_of(quantizer, info), {})
    return {name: one for name, one in found.items() if not isinstance(one, TensorRef)}


def given(quantizer: Quantizer, weight: Tensor, info: WeightInfo) -> dict[str, Tensor]:
    """What arrives at ``quantize`` beside the weight."""
    inputs = {name: tensor.to(weight.device) for name, tensor in inputs_of(quantizer, info).items()}
    return {**inputs, **quantizer.observe(weight)}


def schema_of(quantizer: Quantizer, target: Target, info: WeightInfo, spec: TensorSpec) -> OutputSchema:
    """The dry run of a quantizer and a target on one weight."""
    inputs = {name: SourceSpec(spec_of(one), False) for name, one in inputs_of(quantizer, info).items()}
    encoding = Encoding(target, context_of(quantizer, info, spec))
    return ShapeInference(BareModel()).run(quantizer, encoding, {"weight": SourceSpec(spec, True)}, inputs)


def copies(parts: Parts) -> dict[str, Tensor]:
    return {role: part.detach().clone() for role, part in parts.items()}


def difference(one: Parts, other: Parts) -> str:
    """The first role in which two results differ, in words; empty if there is none."""
    if set(one) != set(other):
        return f"roles {sorted(one)} against {sorted(other)}"
    for role in one:
        if not same(one[role], other[role]):
            if one[role].shape != other[role].shape or one[role].dtype != other[role].dtype:
                return f"{role}: {in_words(one[role])} against {in_words(other[role])}"
            return f"{role}: same dtype and shape, other bytes"
    return ""


def finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor.float()).all())


@contextmanager
def later() -> Iterator[None]:
    """An hour on, for what asks the module ``time``."""
    now = {name: getattr(time, name) for name in ("time", "time_ns", "localtime", "gmtime")}
    with (
        patch.object(time, "time", lambda: now["time"]() + 3600),
        patch.object(time, "time_ns", lambda: now["time_ns"]() + 3600 * 10**9),
        patch.object(time, "localtime", lambda at=None: now["localtime"](now["time"]() + 3600 if at is None else at)),
        patch.object(time, "gmtime", lambda at=None: now["gmtime"](now["time"]() + 3600 if at is None else at)),
    ):
        yield


def norm(tensor: Tensor) -> float:
    return math.sqrt(float(tensor.double().square().sum()))


class OneThread:
    """What every kit derives from: torch computes in one thread, as it does in the engine's workers."""

    _before = 1

    def setup_method(self) -> None:
        self._before = torch.get_num_threads()
        torch.set_num_threads(1)

    def teardown_method(self) -> None:
        torch.set_num_threads(self._before)


class BareModel(ModelAdapter):
    """A model of one linear weight, so that quantizers and targets can be tried without any."""

    name = "bare"

    def owns_key(self, key: str) -> bool:
        return key.endswith("weight")

    def recognise(self, tensors: SourceTensors) -> str | None:
        return "bare"

    def weights(self, tensors: SourceTensors) -> Iterable[WeightInfo]:
        return [WeightInfo(key, {"weight": TensorRef(key)}, "linear", "", "0") for key in tensors]


class BareTarget(Target):
    """Stores everything as it is."""

    name = "bare"
    row_block = 1

    def key(self, context: WeightContext, role: str, /) -> str:
        return f"{context.name}/{role}"

    def encode(self, context: WeightContext, parts: Parts, /) -> Parts:
        return parts

    def decode(self, context: WeightContext, stored: Parts, /) -> Parts:
        return stored
