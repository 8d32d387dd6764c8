"""Any model at all: for what no adapter knows. Nothing is checked, for nothing is known of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from converter_core.api import FLOATING, ModelAdapter, SourceTensors, TensorRef, WeightInfo, hookimpl

_NUMBER = re.compile(r"(?:^|\.)(0|[1-9][0-9]{0,5})\.")


class AnyModel(ModelAdapter):
    """A model that no adapter knows: 2-D ``.weight`` tensors as ``quantization.rules`` choose them, all else copied."""

    name: ClassVar[str] = "any"
    by_name: ClassVar[bool] = True

    def owns_key(self, key: str) -> bool:
        return True

    def recognise(self, tensors: SourceTensors) -> str | None:
        return "unknown" if tensors else None

    def describe(self, tensors: SourceTensors) -> Mapping[str, Any]:
        """``generic``: which weights are quantized is the user's choice, and no structure says whether it is right."""
        return {"generic": True}

    def weights(self, tensors: SourceTensors) -> Iterator[WeightInfo]:
        for key, spec in tensors.items():
            matrix = key.endswith(".weight") and len(spec.shape) == 2 and spec.dtype in FLOATING
            number = _NUMBER.search(key)
            yield WeightInfo(
                key, {"weight": TensorRef(key)}, "linear" if matrix else "other", block=number[1] if number else ""
            )


@hookimpl
def converter_models() -> Iterable[type[ModelAdapter]]:
    return [AnyModel]
