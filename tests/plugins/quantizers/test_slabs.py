"""What every scheme promises whatever the slab, the memory layout and the stand-in."""

import pytest
import torch

from converter_core.api.quantizers import Quantizer
from converter_core.errors import Refused
from converter_plugins.quantizers import fp8, gguf_blocks, int8, mxfp4, mxfp6, mxfp8, nvfp4

EVERY = [
    int8.Int8(),
    int8.Int8(per_channel=False),
    int8.Int8(symmetric=False),
    int8.Int8(symmetric=False, per_channel=False),
    int8.Int8(symmetric=False, scale_rule="mse"),
    int8.Int8(scale_rule="mse"),
    int8.Int8(numerics="lightx2v"),
    fp8.Fp8(),
    fp8.Fp8(per_channel=False),
    fp8.Fp8(scale_rule="absmax"),
    fp8.Fp8(numerics="lightx2v"),
    mxfp4.Mxfp4(),
    mxfp4.Mxfp4(scale_rule="rceil"),
    mxfp4.Mxfp4(scale_rule="floor"),
    mxfp4.Mxfp4(scale_rule="mse"),
    mxfp4.Mxfp4(numerics="lightx2v"),
    mxfp6.Mxfp6(),
    mxfp8.Mxfp8(),
    mxfp8.Mxfp8(numerics="lightx2v"),
    nvfp4.Nvfp4(),
    nvfp4.Nvfp4(scale_rule="absmax"),
    nvfp4.Nvfp4(scale_rule="four_over_six"),
    nvfp4.Nvfp4(numerics="lightx2v"),
    gguf_blocks.Q8_0(),
    gguf_blocks.Q5_1(),
    gguf_blocks.Q4_0(),
]


@pytest.fixture(params=EVERY, ids=str)
def quantizer(request: pytest.FixtureRequest) -> Quantizer:
    return request.param


def whole(quantizer, weight):
    return quantizer.quantize(weight, **quantizer.observe(weight))


def same_bytes(parts, other):
    assert parts.keys() == other.keys()
    for role in parts:
        assert parts[role].dtype == other[role].dtype
        assert parts[role].shape == other[role].shape
        assert parts[role].is_contiguous()
        size = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[parts[role].element_size()]
        assert torch.equal(parts[role].view(size), other[role].contiguous().view(size)), role


def weight_of(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * columns)
    weight = torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator).square()
    weight[1, ::3] = 0
    weight[rows // 2] *= 1e-6
    weight[0, 5] = 17.0
    return weight.to(dtype)


def test_slabs_join_to_the_whole(quantizer, dtype):
    weight = weight_of(13, 160, dtype)
    expected = whole(quantizer, weight)
    for height in (1, 4, 7):
        slabs = weight.split(height)
        statistic: dict[str, torch.Tensor] = {}
        for slab in slabs:
            for name, value in quantizer.observe(slab).items():
                statistic[name] = torch.maximum(value, statistic.get(name, value))
        parts = [quantizer.quantize(slab, **statistic) for slab in slabs]
        same_bytes(
            {
                role: torch.cat([p[role] for p in parts]) if expected[role].dim() else parts[0][role]
                for role in expected
            },
            expected,
        )
        assert all(torch.equal(p["global_scale"], expected["global_scale"]) for p in parts if "global_scale" in p)


def test_memory_layout_does_not_show(quantizer, dtype):
    weight = weight_of(9, 96, dtype)
    before = weight.clone()
    expected = whole(quantizer, weight)
    wide = torch.full((11, 200), torch.nan, dtype=dtype)
    wide[1:10, 3:195:2] = weight
    for view in (weight.t().contiguous().t(), wide[1:10, 3:195:2]):
        assert not view.is_contiguous()
        same_bytes(whole(quantizer, view), expected)
    assert torch.equal(weight, before)


def test_float64_counts_as_float32(quantizer):
    weight = weight_of(5, 64, torch.float32)
    same_bytes(whole(quantizer, weight.double()), whole(quantizer, weight))


def test_meta_shows_shapes_and_dtypes(quantizer, dtype):
    weight = weight_of(6, 64, dtype)
    expected = whole(quantizer, weight)
    parts = whole(quantizer, weight.to("meta"))
    assert {role: (part.dtype, part.shape) for role, part in parts.items()} == {
        role: (part.dtype, part.shape) for role, part in expected.items()
    }


def test_the_error_is_within_the_steps(quantizer, dtype):
    weight = weight_of(12, 128, dtype)
    parts = whole(quantizer, weight)
    kept = {role: part.clone() for role, part in parts.items()}
    restored, steps = quantizer.dequantize(parts), quantizer.quantization_step(parts)
    assert restored.dtype is steps.dtype is torch.float32
    assert restored.shape == steps.shape == weight.shape
    error = (restored.double() - weight.double()).square().sum().sqrt()
    assert error <= 0.6 * steps.double().square().sum().sqrt()
    assert error > 0
    same_bytes(parts, kept)


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (torch.ones(4, 4, 32), "has 3 dimensions; needs 2"),
        (torch.ones(64), "has 1 dimensions; needs 2"),
        (torch.ones(2, 32, dtype=torch.int8), "is int8; needs bfloat16, float16, float32, float64 or float8"),
        (torch.ones(2, 32, dtype=torch.bool), "is bool; needs"),
        (torch.ones(0, 32), "has no elements"),
    ],
)
def test_what_no_scheme_takes(quantizer, weight, words):
    given = {"amax": torch.ones(())} if isinstance(quantizer, nvfp4.Nvfp4) else {}
    with pytest.raises(Refused, match=words):
        quantizer.quantize(weight, **given)


def test_each_module_offers_its_scheme():
    offered = [module.converter_quantizers() for module in (int8, fp8, mxfp4, nvfp4)]
    assert [cls.name for classes in offered for cls in classes] == ["int8", "fp8", "mxfp4", "nvfp4"]
    assert [cls().row_block for classes in offered for cls in classes] == [1, 1, 1, 1]
    assert len({hash(quantizer) for quantizer in EVERY}) > 15
