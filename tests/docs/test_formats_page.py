"""The page "Formats" is what its generator writes, and its formulas are what the schemes do."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from converter_core.plugins.registry import load_plugins

DOCS = Path(__file__).parents[2] / "docs"
_spec = importlib.util.spec_from_file_location("formats", DOCS / "formats.py")
assert _spec
assert _spec.loader
formats = importlib.util.module_from_spec(_spec)
sys.modules["formats"] = formats  # for its dataclass
_spec.loader.exec_module(formats)

HALF = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def e2m1(codes: Tensor) -> Tensor:
    grid = torch.tensor([*HALF, *(-value for value in HALF)])
    return torch.stack([grid[(codes & 15).long()], grid[(codes >> 4).long()]], -1).flatten(1)


def spread(scale: Tensor, to: Tensor) -> Tensor:
    return scale.float().repeat_interleave(to.shape[1] // scale.shape[1], 1)


def by_codes(codes: Tensor, scale: Tensor) -> Tensor:
    return codes.float() * spread(scale, codes)


RESTATED: Mapping[str, Callable[[Mapping[str, Tensor]], Tensor]] = {
    "w = weight * scale": lambda p: p["weight"].float() * p["scale"],
    "w = (weight - zero_point) * scale": lambda p: (p["weight"].float() - p["zero_point"].float()) * p["scale"],
    "w = weight * 2^(scale - 127)": lambda p: by_codes(p["weight"], torch.exp2(p["scale"].float() - 127)),
    "w = E2M1(weight) * 2^(scale - 127)": lambda p: by_codes(e2m1(p["weight"]), torch.exp2(p["scale"].float() - 127)),
    "w = E2M1(weight) * scale / global_scale": lambda p: by_codes(e2m1(p["weight"]), p["scale"]) / p["global_scale"],
}
"""Formula -> the same in torch, by hand."""

SCHEMES = dict(formats.ours(load_plugins()))


def test_the_page_is_what_the_generator_writes() -> None:
    assert formats.PAGE.read_text(encoding="utf-8") == formats.page(), "run python docs/formats.py"


@pytest.mark.parametrize("title", SCHEMES)
def test_the_formula_gives_what_the_scheme_reads(title: str) -> None:
    quantizer = SCHEMES[title]
    weight = torch.randn(8, 512, generator=torch.Generator().manual_seed(1)) * 0.05
    observed = quantizer.observe(weight)
    parts = quantizer.quantize(weight, **observed)
    text = formats.formula(quantizer.format, list(parts)).strip("`")
    expected = quantizer.dequantize(parts)
    if text.startswith("dequantize_row_"):
        gguf = pytest.importorskip("gguf")
        kind = getattr(
            gguf.GGMLQuantizationType, text.split(" ")[0].removeprefix("dequantize_row_").rstrip("`").upper()
        )
        made = torch.from_numpy(gguf.quants.dequantize(parts["weight"].numpy(), kind))
    else:
        assert text in RESTATED, f"say in docs/formats.py how {title} comes back, and restate it here"
        made = RESTATED[text](parts)
    torch.testing.assert_close(made, expected, rtol=2e-6, atol=0)
