"""GGUF files against gguf-py, both ways, and by hand."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from converter_core.api import (
    UNQUANTIZED,
    CheckpointError,
    LocalFile,
    OutputTensor,
    PlannedWeight,
    Refused,
    TensorSpec,
    WeightInfo,
)
from converter_core.testing import ContainerConformance
from converter_plugins.containers._gguf_types import BLOCKS, NUMBERS
from converter_plugins.containers.gguf import Gguf

METADATA = {
    "general.architecture": "wan",
    "general.file_type": 7,
    "general.note": "größer als 0 und ✓",
    "negative": -5,
    "large": 2**40,
    "largest": 2**64 - 1,
    "very.negative": -(2**40),
    "half": 0.5,
    "tenth": 0.1,
    "yes": True,
    "shape": [1, -2, 3],
    "words": ["one", "two"],
    "flags": [True, False],
    "none": [],
}


class TestGguf(ContainerConformance):
    container = Gguf()
    metadata = METADATA


def planned(specs: dict[str, TensorSpec]) -> list[PlannedWeight]:
    return [
        PlannedWeight(WeightInfo(key, {}), key, spec, UNQUANTIZED, (OutputTensor(key, "weight", spec),))
        for key, spec in specs.items()
    ]


def write(path: Path, specs: dict[str, TensorSpec], metadata: dict[str, Any]) -> dict[str, bytes]:
    placed = Gguf().place(planned(specs), metadata)
    content = bytearray(placed.size)
    content[: len(placed.header)] = placed.header
    data = {}
    for seed, (key, spec) in enumerate(specs.items()):
        data[key] = np.random.default_rng(seed).integers(0, 256, spec.nbytes, np.uint8).tobytes()
        content[placed.offsets[key] : placed.offsets[key] + spec.nbytes] = data[key]
    path.write_bytes(content)
    return data


def opened(path: Path) -> Any:
    source = LocalFile(path)
    try:
        return Gguf().read(source)
    finally:
        source.close()


def test_gguf_py_reads_what_is_written(tmp_path: Path) -> None:
    specs = {
        "patch_embedding.weight": TensorSpec("F32", (6, 4, 1, 2, 2)),
        "norm.bias": TensorSpec("F16", (7,)),
        "head.modulation": TensorSpec("BF16", (1, 2, 5)),
        "up.weight": TensorSpec("Q4_0", (3, 64), (32, 18)),
        "down.weight": TensorSpec("Q6_K", (2, 512), (256, 210)),
    }
    data = write(tmp_path / "a.gguf", specs, METADATA)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    assert [tensor.name for tensor in reader.tensors] == list(specs)
    for tensor in reader.tensors:
        spec = specs[tensor.name]
        assert tensor.tensor_type.name == spec.dtype
        assert tuple(reversed(tensor.shape.tolist())) == spec.shape
        assert tensor.data.tobytes() == data[tensor.name]
        assert tensor.data_offset % 32 == 0
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert {key: field.contents() for key, field in fields.items() if key != "none"} == {
        key: value for key, value in METADATA.items() if key != "none"
    }
    kinds = {key: [kind.name for kind in field.types] for key, field in fields.items()}
    assert kinds["general.file_type"] == ["UINT32"]
    assert kinds["negative"] == ["INT32"]
    assert kinds["large"] == ["UINT64"]
    assert kinds["half"] == ["FLOAT32"]
    assert kinds["tenth"] == ["FLOAT64"]
    assert kinds["shape"] == ["ARRAY", "INT32"]
    assert Gguf().reference(str(tmp_path / "a.gguf")) == specs


def test_what_gguf_py_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "b.gguf"
    writer = gguf.GGUFWriter(path, "wan")
    writer.add_custom_alignment(64)
    writer.add_uint8("small", 200)
    writer.add_int16("short", -300)
    writer.add_array("comfy.gguf.orig_shape.x", [5120, 16, 1, 2, 2])
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).numpy()
    packed = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q5_1)
    writer.add_tensor("w", packed, raw_dtype=gguf.GGMLQuantizationType.Q5_1)
    writer.add_tensor("b", np.arange(5, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = opened(path)
    assert dict(found.tensors) == {"w": TensorSpec("Q5_1", (4, 64), (32, 24)), "b": TensorSpec("F16", (5,))}
    at = found.offsets["w"]
    assert at % 64 == 0
    assert path.read_bytes()[at : at + packed.nbytes] == packed.tobytes()
    assert found.metadata["small"] == 200
    assert found.metadata["short"] == -300
    assert found.metadata["comfy.gguf.orig_shape.x"] == [5120, 16, 1, 2, 2]


def test_bytes_by_hand() -> None:
    placed = Gguf().place(planned({"ab": TensorSpec("F16", (3, 2))}), {"k": 7})
    expected = b"GGUF" + bytes.fromhex("03000000 0100000000000000 0100000000000000")
    expected += bytes.fromhex("0100000000000000") + b"k" + bytes.fromhex("04000000 07000000")
    expected += bytes.fromhex("0200000000000000") + b"ab" + bytes.fromhex("02000000")
    expected += bytes.fromhex("0200000000000000 0300000000000000 01000000 0000000000000000")
    assert len(expected) == 83
    assert placed.header == expected + bytes(13)
    assert dict(placed.offsets) == {"ab": 96}
    assert placed.size == 128


def test_types_are_those_of_ggml() -> None:
    for kind in gguf.GGMLQuantizationType:
        assert NUMBERS[kind.name] == kind.value
        if kind.name in BLOCKS:
            assert BLOCKS[kind.name] == gguf.GGML_QUANT_SIZES[kind]


def header(version: int = 3, tensors: int = 0, values: bytes = b"", count: int = 0, lines: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, count) + values + lines


def line(name: bytes = b"w", dims: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return struct.pack("<Q", len(name)) + name + sizes + struct.pack("<IQ", kind, offset)


def text(key: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"GGUF", "no GGUF file"),
        (header(1), "GGUF version 1 is not read here"),
        (header(3 << 24), "GGUF big-endian is not read here"),
        (header(tensors=2**60), "the header asks for 8 bytes"),
        (header(count=1, values=text(b"k") + struct.pack("<I", 13)), "is of type 13"),
        (header(count=1, values=text(b"k") + struct.pack("<IB", 7, 2)), "a truth value is 2"),
        (header(count=1, values=text(b"k") + struct.pack("<IIQ", 9, 4, 2**61)), "the header asks for"),
        (header(count=1, values=text(b"k") + struct.pack("<IIQ", 9, 9, 1) * 3), "the header asks for|is of type 9"),
        (header(count=1, values=text(b"\xff") + struct.pack("<II", 4, 4)), "is not UTF-8"),
        (header(count=2, values=(text(b"k") + struct.pack("<II", 4, 4)) * 2), "'k' stands in the metadata twice"),
        (header(count=1, values=text(b"general.alignment") + struct.pack("<II", 4, 33)), "no power of two"),
        (header(tensors=1, lines=line(dims=(1,) * 9)), "has 9 dimensions"),
        (header(tensors=1, lines=line(kind=4)), "is of type 4, which is not known"),
        (header(tensors=1, lines=line(dims=(33,), kind=2)), "is not made of whole blocks of 32"),
        (header(tensors=1, lines=line(dims=(2**40, 2**40))), "overflows"),
        (header(tensors=1, lines=line(offset=8)), "starts at byte 72"),
        (header(tensors=2, lines=line() * 2), "names a tensor twice"),
        (header(tensors=2, lines=line() + line(b"v", offset=32)), "'v' starts at byte"),
        (header(tensors=1, lines=line(dims=(2**20,))), "ends at byte"),
    ],
)
def test_damaged_files_are_refused(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content + bytes(256 if len(content) > 4 else 0))
    if "asks for" in words:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"bad.gguf: .*({words})"):
        opened(path)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"k": None}, "'k' of a GGUF file must be text, numbers or truth values, not NoneType"),
        ({"k": [1, "a"]}, "not int and str"),
        ({"k": [1, True]}, "not bool and int"),
        ({"k": 2**64}, "no type of a GGUF file holds"),
        ({"k": [-1, 2**63]}, "no type of a GGUF file holds"),
        ({"k": "\ud800"}, "no text that UTF-8 can hold"),
    ],
)
def test_metadata_without_a_type_is_refused(metadata: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words):
        Gguf().place([], metadata)


def test_too_many_dimensions_are_refused() -> None:
    with pytest.raises(Refused, match="w has 9 dimensions"):
        Gguf().place(planned({"w": TensorSpec("F32", (1,) * 9)}), {})
