from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from converter_core.api.contexts import ModelFacts, SourceTensors, WeightContext
from converter_core.api.formats import UNQUANTIZED, QuantFormat
from converter_core.api.tensors import spec_of
from converter_core.api.values import OutputTensor, PlannedWeight, Stored, TensorRef, TensorSpec, WeightInfo
from converter_core.errors import Refused
from converter_core.plugins.registry import load_plugins
from converter_plugins.targets._lightx2v_formats import FORMATS
from converter_plugins.targets.lightx2v import LightX2V

FORMAT_OF = {"none": UNQUANTIZED, **{format.name: format for format in FORMATS}}
NAMES = [format.name for format in FORMATS]
TARGET = LightX2V()
Q = "blocks.0.self_attn.q.weight"
ROWS, COLUMNS = 320, 96  # 320 rows are no multiple of 128, 6 and 3 blocks none of 4


def context(format: str, name: str = "x.weight") -> WeightContext:
    return WeightContext(WeightInfo(name, {}), name, None, FORMAT_OF.get(format, QuantFormat(format, format)))


def canonical(format: str, rows: int = ROWS, columns: int = COLUMNS) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(7)

    def bytes_(*shape: int) -> torch.Tensor:
        return torch.randint(1, 120, shape, generator=draw).to(torch.uint8)

    def scales(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=draw) + 0.5

    return {
        "none": lambda: {"weight": scales(rows, columns)},
        "int8": lambda: {"weight": bytes_(rows, columns).view(torch.int8), "scale": scales(rows, 1)},
        "fp8": lambda: {"weight": bytes_(rows, columns).view(torch.float8_e4m3fn), "scale": scales(rows, 1)},
        "mxfp4": lambda: {"weight": bytes_(rows, columns // 2), "scale": bytes_(rows, columns // 32)},
        "mxfp6": lambda: {"weight": bytes_(rows, columns * 3 // 4), "scale": bytes_(rows, columns // 32)},
        "mxfp8": lambda: {
            "weight": bytes_(rows, columns).view(torch.float8_e4m3fn),
            "scale": bytes_(rows, columns // 32),
        },
        "nvfp4": lambda: {
            "weight": bytes_(rows, columns // 2),
            "scale": bytes_(rows, columns // 16).view(torch.float8_e4m3fn),
            "global_scale": torch.tensor(96.0),
        },
    }[format]()


def same_bytes(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
    def seen(tensor: torch.Tensor) -> tuple[object, ...]:
        return tensor.dtype, tensor.shape, bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())

    return {role: seen(part) for role, part in left.items()} == {role: seen(part) for role, part in right.items()}


def planned(name: str, format: str, kind: str = "linear", block: str = "0") -> PlannedWeight:
    spec = TensorSpec("BF16", (128, 128))
    info = WeightInfo(name, {"weight": TensorRef(name)}, kind, "ffn", block)
    return PlannedWeight(
        info, name, spec, FORMAT_OF.get(format, QuantFormat(format, format)), (OutputTensor(name, "weight", spec),)
    )


def stored_specs(format: str, name: str = Q, rows: int = ROWS, columns: int = COLUMNS) -> dict[str, TensorSpec]:
    """What a header says of a weight this target has written."""
    specs = {}
    for role, part in TARGET.encode(context(format), canonical(format, rows, columns)).items():
        spec = spec_of(part)
        specs[TARGET.key(context("none", name), role)] = TARGET.stored_spec(context(format), role, spec)
    return specs


def test_it_is_offered_and_the_default() -> None:
    targets = load_plugins().targets
    assert targets["lightx2v"] is LightX2V
    assert targets.default() == "lightx2v"


def test_keys() -> None:
    keys = {role: TARGET.key(context("none", Q), role) for role in ("weight", "scale", "global_scale", "input_absmax")}
    assert keys == {
        "weight": "blocks.0.self_attn.q.weight",
        "scale": "blocks.0.self_attn.q.weight_scale",
        "global_scale": "blocks.0.self_attn.q.weight_global_scale",
        "input_absmax": "blocks.0.self_attn.q.input_absmax",
    }
    for plain in ("blocks.0.self_attn.q.bias", "blocks.0.modulation"):
        assert TARGET.key(context("none", plain), "weight") == plain


@pytest.mark.parametrize("format", ["none", "int8", "fp8"])
def test_row_scales_are_stored_as_they_are(format: str) -> None:
    parts = canonical(format)
    assert same_bytes(TARGET.encode(context(format), parts), parts)
    assert same_bytes(TARGET.decode(context(format), parts), parts)


@pytest.mark.parametrize(("format", "dtype", "shape"), [("mxfp4", "F8_E8M0", (384, 4)), ("nvfp4", "F8_E4M3", (384, 8))])
def test_block_scales_are_swizzled_and_padded(format: str, dtype: str, shape: tuple[int, int]) -> None:
    parts = canonical(format)
    stored = TARGET.encode(context(format), parts)
    assert stored_specs(format)[f"{Q}_scale"] == TensorSpec(dtype, shape)
    buffer = stored["scale"].view(torch.uint8).flatten().tolist()
    scale = parts["scale"].view(torch.uint8)
    tiles = shape[1] // 4
    expected = [0] * (shape[0] * shape[1])
    for m in range(scale.shape[0]):
        for k in range(scale.shape[1]):
            at = m // 128 * tiles * 512 + k // 4 * 512 + m % 32 * 16 + m % 128 // 32 * 4 + k % 4
            expected[at] = int(scale[m, k])
    assert buffer == expected
    assert same_bytes({**stored, "scale": parts["scale"]}, parts)


@pytest.mark.parametrize("format", ["none", *NAMES])
@pytest.mark.parametrize(("rows", "columns"), [(ROWS, COLUMNS), (256, 256), (1, 32)])
def test_decode_takes_encode_back(format: str, rows: int, columns: int) -> None:
    parts = canonical(format, rows, columns)
    assert same_bytes(TARGET.decode(context(format), TARGET.encode(context(format), parts)), parts)


@pytest.mark.parametrize("format", ["mxfp4", "nvfp4"])
def test_slabs_join_and_can_be_read_by_slabs(format: str) -> None:
    parts = canonical(format)
    whole = TARGET.encode(context(format), parts)
    joined = []
    for start in range(0, ROWS, TARGET.row_block):
        slab = {role: part[start : start + 128] if part.dim() else part for role, part in parts.items()}
        stored = TARGET.encode(context(format), slab)
        assert same_bytes(TARGET.decode(context(format), stored), slab)
        joined.append(stored["scale"].view(torch.uint8))
    assert torch.equal(torch.cat(joined), whole["scale"].view(torch.uint8))


@pytest.mark.parametrize("format", ["none", *NAMES])
def test_meta_tensors_tell_the_same_shapes(format: str) -> None:
    parts = canonical(format)
    there = TARGET.encode(context(format), {role: part.to("meta") for role, part in parts.items()})
    here = TARGET.encode(context(format), parts)
    assert {role: (part.dtype, part.shape) for role, part in there.items()} == {
        role: (part.dtype, part.shape) for role, part in here.items()
    }
    assert all(part.is_meta for part in there.values())


def test_activation_statistics_have_a_place() -> None:
    parts = {**canonical("nvfp4"), "input_absmax": torch.tensor(12.5)}
    assert TARGET.encode(context("nvfp4"), parts)["input_absmax"].item() == 12.5


@pytest.mark.parametrize(
    ("format", "change", "reason"),
    [
        (
            "int4",
            {},
            r"'int4', which LightX2V does not read \(it reads int8, fp8, mxfp4, mxfp6, mxfp8, nvfp4 and none\).*plain",
        ),
        ("int8", {"zero_point": torch.zeros(ROWS, 1)}, "cannot store the zero_point of asymmetric int8; use symmetric"),
        ("int8", {"order": torch.zeros(3)}, "has no place for order of int8"),
        ("none", {"scale": torch.ones(1)}, "has no place for scale of none"),
        ("fp8", {"input_absmax": torch.tensor(1.0)}, "has no place for input_absmax of fp8"),
        ("int8", {"scale": None}, "int8 needs scale"),
        ("nvfp4", {"global_scale": None}, "nvfp4 needs global_scale"),
        ("int8", {"scale": torch.tensor(0.5)}, r"scale of int8 as .* \[320, 1\] .* not F32 \[\]"),
        ("fp8", {"scale": torch.ones(ROWS)}, r"\[320, 1\] .* not F32 \[320\]"),
        ("int8", {"scale": torch.ones(ROWS, 1, dtype=torch.uint8)}, r"F32 or BF16 or F16 .* not U8 \[320, 1\]"),
        ("int8", {"weight": torch.ones(ROWS, COLUMNS, dtype=torch.uint8)}, r"weight of int8 as I8"),
        ("int8", {"weight": torch.ones(ROWS, dtype=torch.int8)}, r"I8 \[rows, columns\], not I8 \[320\]"),
        ("mxfp4", {"scale": torch.ones(ROWS, 6, dtype=torch.uint8)}, r"F8_E8M0 \[320, 3\] .* not U8 \[320, 6\]"),
        ("nvfp4", {"scale": torch.ones(ROWS, 6, dtype=torch.uint8)}, r"F8_E4M3 \[320, 6\] .* not U8 \[320, 6\]"),
        ("nvfp4", {"global_scale": torch.ones(1)}, r"global_scale of nvfp4 as one F32 number of shape \[\]"),
        ("nvfp4", {"input_absmax": torch.ones(96)}, r"input_absmax of nvfp4 as one F32 number of shape \[\]"),
    ],
)
def test_refusals(format: str, change: Mapping[str, torch.Tensor | None], reason: str) -> None:
    parts = {**(canonical(format) if format != "int4" else canonical("int8")), **change}
    with pytest.raises(Refused, match=reason):
        TARGET.encode(context(format), {role: part for role, part in parts.items() if part is not None})


def test_scales_in_the_dtype_of_the_source_are_fine() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        parts = {**canonical("int8"), "scale": torch.full((ROWS, 1), 0.5, dtype=dtype)}
        assert same_bytes(TARGET.encode(context("int8"), parts), parts)


def test_the_loader_casts_floats_to_bfloat16() -> None:
    codes = canonical("fp8")["weight"]
    loaded = TARGET.simulate_load(
        context("int8"),
        {
            "scale": torch.tensor([[3.14159265], [1.00390625], [1.01171875], [-1e-30]]),
            "half": torch.tensor([65504.0, 0.1], dtype=torch.float16),
            "bias": torch.tensor([0.10009765625], dtype=torch.bfloat16),
            "weight": codes,
            "bytes": torch.tensor([1, 255], dtype=torch.uint8),
        },
    )
    # 1.00390625 and 1.01171875 lie halfway: to even, down and up
    assert loaded["scale"][:3].flatten().tolist() == [3.140625, 1.0, 1.015625]
    assert loaded["scale"][3].item() == pytest.approx(-1e-30, rel=2**-8)
    assert loaded["half"].tolist() == [65536.0, 0.10009765625]
    assert loaded["bias"].dtype is torch.bfloat16
    assert loaded["weight"] is codes
    assert loaded["bytes"].tolist() == [1, 255]


def test_one_scheme_or_none_is_read() -> None:
    for format in ("none", *NAMES):
        weights = [planned(f"blocks.{i}.ffn.0.weight", format, block=str(i)) for i in range(4)]
        norm = planned("blocks.0.norm3.weight", "none", kind="norm")
        head = planned("head.head.weight", "none", kind="head", block="")
        assert list(TARGET.refuse(ModelFacts(), [*weights, norm, head])) == []


def test_a_mix_is_refused() -> None:
    weights = [planned(f"blocks.{i}.ffn.0.weight", "fp8" if i else "nvfp4", block=str(i)) for i in range(3)]
    (reason,) = TARGET.refuse(ModelFacts(), weights)
    assert "one scheme for all linear weights of the blocks" in reason
    assert "fp8 to 2 (blocks.1.ffn.0.weight, blocks.2.ffn.0.weight) and nvfp4 to 1 (blocks.0.ffn.0.weight)" in reason


def test_leaving_some_out_is_refused() -> None:
    weights = [planned(f"blocks.{i}.ffn.0.weight", "none" if i < 5 else "int8", block=str(i)) for i in range(6)]
    (reason,) = TARGET.refuse(ModelFacts(), weights)
    assert "int8 to 1 (blocks.5.ffn.0.weight) and leaves out 5 (blocks.0.ffn.0.weight, " in reason
    assert "blocks.2.ffn.0.weight, …)" in reason


def test_quantized_weights_outside_the_blocks_are_refused() -> None:
    weights = [
        planned("blocks.0.ffn.0.weight", "int8"),
        planned("text_embedding.0.weight", "int8", "embedding", block=""),
    ]
    assert list(TARGET.refuse(ModelFacts(), weights)) == [
        "LightX2V reads text_embedding.0.weight unquantized only, not as int8"
    ]


@pytest.mark.parametrize("format", NAMES)
@pytest.mark.parametrize(("rows", "columns"), [(ROWS, COLUMNS), (5120, 1280), (32, 32)])
def test_what_was_written_is_recognised(format: str, rows: int, columns: int) -> None:
    if format in ("mxfp6", "mxfp8"):  # padded scales of a small weight of one can look like the other's
        columns = -(-columns // 128) * 128
    specs = stored_specs(format, rows=rows, columns=columns)
    others = {"blocks.0.self_attn.q.bias": TensorSpec("BF16", (rows,)), "blocks.0.modulation": TensorSpec("BF16", (1,))}
    found = TARGET.detect(SourceTensors({**others, **specs}, {"format": "pt"}))
    assert list(found) == [Q]
    assert found[Q].format.name == format
    assert sorted(found[Q].keys.values()) == sorted(specs)
    assert all(TARGET.key(context("none", Q), role) == key for role, key in found[Q].keys.items())


@pytest.mark.parametrize("format", ["mxfp6", "mxfp8"])
def test_of_two_formats_that_small_weights_can_be_all_weights_have_one(format: str) -> None:
    """192 bytes of codes are 6 blocks of mxfp8 or 8 of mxfp6, padded to 8 both."""
    other = "blocks.0.ffn.0.weight"
    made = {"small": 192 if format == "mxfp8" else 256, "large": 4096}
    assert stored_specs("mxfp6", columns=256)[f"{Q}_scale"] == stored_specs("mxfp8", columns=192)[f"{Q}_scale"]
    small, large = (stored_specs(format, columns=columns) for columns in made.values())
    found = TARGET.detect(SourceTensors({**small, **{key.replace(Q, other): spec for key, spec in large.items()}}, {}))
    assert {name: stored.format.name for name, stored in found.items()} == {Q: format, other: format}


def test_a_checkpoint_of_the_original_is_not_quantized() -> None:
    specs = {Q: TensorSpec("BF16", (64, 64)), "blocks.0.self_attn.q.bias": TensorSpec("BF16", (64,))}
    assert TARGET.detect(SourceTensors(specs, {})) == {}


@pytest.mark.parametrize(
    "specs",
    [
        # one scale per tensor, a scale per block of columns, and bare 8-bit weights
        {Q: TensorSpec("F8_E4M3", (256, 256)), f"{Q}_scale": TensorSpec("F32", ())},
        {Q: TensorSpec("I8", (256, 256)), f"{Q}_scale": TensorSpec("F32", (2, 2))},
        {Q: TensorSpec("F8_E4M3", (256, 256))},
        # 12 blocks of 32 in 256 bytes: neither 4 nor 6 nor 8 bits to a code
        {Q: TensorSpec("U8", (256, 256)), f"{Q}_scale": TensorSpec("F8_E8M0", (256, 12))},
        # nvfp4 of others: no global scale; not swizzled, hence not padded
        {Q: TensorSpec("U8", (256, 256)), f"{Q}_scale": TensorSpec("F8_E4M3", (256, 32))},
        {
            Q: TensorSpec("U8", (320, 48)),
            f"{Q}_scale": TensorSpec("F8_E4M3", (320, 6)),
            f"{Q}_global_scale": TensorSpec("F32", ()),
        },
        # mxfp4 with scales as plain bytes
        {Q: TensorSpec("U8", (256, 64)), f"{Q}_scale": TensorSpec("U8", (256, 4))},
    ],
)
def test_what_others_write_is_not_claimed(specs: Mapping[str, TensorSpec]) -> None:
    assert TARGET.detect(SourceTensors(specs, {})) == {}


def test_a_plain_file_is_not_claimed() -> None:
    specs = stored_specs("int8")
    assert Q in TARGET.detect(SourceTensors(specs, {}))
    assert TARGET.detect(SourceTensors(specs, {"plain.formats": "{}"})) == {}


def test_files_calibrated_by_lightx2v_are_read() -> None:
    specs = stored_specs("nvfp4")
    del specs[f"{Q}_global_scale"]
    specs["blocks.0.self_attn.q.alpha"] = specs["blocks.0.self_attn.q.input_global_scale"] = TensorSpec("F32", ())
    (stored,) = TARGET.detect(SourceTensors(specs, {})).values()
    assert stored.format.name == "nvfp4"
    assert set(stored.keys) == {"weight", "scale", "alpha", "input_global_scale"}
    assert not any("calib.pt" in note for note in TARGET.notes({Q: stored}))

    written = dict(TARGET.encode(context("nvfp4"), canonical("nvfp4")))
    del written["global_scale"]
    parts = TARGET.decode(
        context("nvfp4"), {**written, "alpha": torch.tensor([1 / 256]), "input_global_scale": torch.tensor([4.0])}
    )
    assert set(parts) == {"weight", "scale", "global_scale"}
    assert parts["global_scale"].shape == ()
    assert parts["global_scale"].item() == 64.0


def test_notes_and_configuration_come_with_the_target() -> None:
    weights = {Q: Stored(FORMAT_OF["int8"], {"weight": Q, "scale": f"{Q}_scale"})}
    assert not list(TARGET.notes(weights))
    assert TARGET.runtime_config(ModelFacts(), weights, "/models/wan")["config"]["dit_quantized_ckpt"] == "/models/wan"
