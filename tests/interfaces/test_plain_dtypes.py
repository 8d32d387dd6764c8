"""A target that has a say in the dtypes of weights that are not quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import converter_core
from converter_core import Parts, Target, WeightContext

from .conftest import tensors


class WideNorms(Target):
    """Reads norms in float32 only."""

    name = "wide_norms"
    row_block = 1

    def key(self, context: WeightContext, role: str, /) -> str:
        return context.name if role == "weight" else f"{context.name}_{role}"

    def encode(self, context: WeightContext, parts: Parts, /) -> Parts:
        return parts

    def decode(self, context: WeightContext, stored: Parts, /) -> Parts:
        return stored

    def plain_dtype(self, context: WeightContext, dtype: str, /) -> str:
        return "F32" if context.info.kind == "norm" else dtype


class Whole(WideNorms):
    name = "whole"

    def plain_dtype(self, context: WeightContext, dtype: str, /) -> str:
        return "I32"


@pytest.mark.parametrize(
    ("dtype", "others"), [("keep", torch.bfloat16), ("float16", torch.float16), ("float32", torch.float32)]
)
def test_only_the_weights_it_speaks_of_are_cast(
    load: Any, recipe: Any, source: Path, tmp_path: Path, dtype: str, others: torch.dtype
) -> None:
    registry = load(targets=[WideNorms])
    converter_core.convert(recipe("int8", "wide_norms", dtype=dtype), registry=registry)
    written = load_file(tmp_path / "out" / "tiny.safetensors")
    assert torch.equal(written["norm.weight"], tensors()["norm.weight"].float())
    assert written["layers.0.up.bias"].dtype is others
    assert written["layers.0.up.weight"].dtype is torch.int8
    report = converter_core.verify(tmp_path / "out", source, registry=registry)
    assert report.ok, report.problems


def test_a_dtype_that_is_none_is_a_fault_of_the_plugin(load: Any, recipe: Any) -> None:
    with pytest.raises(converter_core.PluginError, match=r"plain_dtype must return one of .*, not 'I32'"):
        converter_core.make_plan(recipe("int8", "whole"), load(targets=[Whole]))
