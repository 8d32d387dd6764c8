"""The file format: what is written is what the official library reads, what is read is what it wrote."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file

from converter_core.api.formats import UNQUANTIZED
from converter_core.api.local_file import LocalFile
from converter_core.api.tensors import dtype_name
from converter_core.api.values import ITEMSIZE, OutputTensor, PlannedWeight, TensorSpec, WeightInfo
from converter_core.containers.tensor_file import TensorFile
from converter_core.errors import CheckpointError
from converter_plugins.containers.safetensors import Safetensors


def planned(**specs):
    return [
        PlannedWeight(WeightInfo(key, {}), key, spec, UNQUANTIZED, (OutputTensor(key, "weight", spec),))
        for key, spec in specs.items()
    ]


SAFETENSORS = Safetensors()


class Bytes:
    """A file in memory."""

    name = "x.safetensors"

    def __init__(self, blob):
        self.blob, self.size = blob, len(blob)

    def read(self, at, into):
        into[:] = self.blob[at : at + len(into)]


def parse(blob):
    return SAFETENSORS.read(Bytes(blob))


def opened(path):
    return TensorFile(LocalFile(path), lambda source: SAFETENSORS)


def test_the_bytes_of_a_header():
    placed = SAFETENSORS.place(planned(b=TensorSpec("I8", (3,)), a=TensorSpec("F32", (2, 1))), {"k": "v"})
    text = (
        b'{"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},'
        b'"b":{"dtype":"I8","shape":[3],"data_offsets":[8,11]}}'
    )
    padded = text + b" " * (-len(text) % 8)
    assert placed.header == struct.pack("<Q", len(padded)) + padded
    assert placed.offsets == {"a": len(padded) + 8, "b": len(padded) + 16}
    assert placed.size == len(padded) + 8 + 11


def test_the_official_library_reads_what_is_placed():
    tensors = {
        "wide": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        'a name with "quotes", spaces and ünïcode 模型': torch.tensor(2.5, dtype=torch.bfloat16),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "five": torch.arange(4, dtype=torch.int16).reshape(1, 2, 1, 2, 1),
        "empty": torch.zeros(0, 3),
    }
    specs = {key: TensorSpec(dtype_name(tensor.dtype), tuple(tensor.shape)) for key, tensor in tensors.items()}
    placed = SAFETENSORS.place(planned(**specs), {"format": "pt"})
    blob = bytearray(placed.size)
    blob[: len(placed.header)] = placed.header
    for key, tensor in tensors.items():
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        blob[placed.offsets[key] : placed.offsets[key] + len(data)] = data
    read = load(bytes(blob))
    assert set(read) == set(tensors)
    for key, tensor in tensors.items():
        assert read[key].dtype == tensor.dtype
        assert torch.equal(read[key], tensor)


def test_placing_needs_no_order_of_the_weights():
    specs = {"z": TensorSpec("F32", (1,)), "a": TensorSpec("BF16", (5,)), "m": TensorSpec("I8", (1,))}
    turned = dict(reversed(specs.items()))
    assert SAFETENSORS.place(planned(**specs), {}) == SAFETENSORS.place(planned(**turned), {})


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(lambda key: key != "__metadata__"),
        st.tuples(st.sampled_from(sorted(ITEMSIZE)), st.lists(st.integers(0, 4), max_size=5)),
        max_size=6,
    ),
    st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), st.text(st.characters(codec="utf-8"))),
)
def test_what_is_placed_reads_back(shapes, metadata):
    specs = {key: TensorSpec(dtype, tuple(shape)) for key, (dtype, shape) in shapes.items()}
    placed = SAFETENSORS.place(planned(**specs), metadata)
    found = parse(placed.header + bytes(placed.size - len(placed.header)))
    assert found.tensors == specs
    assert found.offsets == placed.offsets
    assert found.metadata == metadata
    assert found.header == len(placed.header)


def test_the_reader_agrees_with_the_official_library(tmp_path):
    tensors = {
        "b": torch.randn(4, 3, generator=torch.Generator().manual_seed(1)),
        "a": torch.tensor(7, dtype=torch.int64),
        "half": torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(2)).half(),
        "none": torch.zeros(3, 0),
    }
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, {"who": "test"})
    reader = opened(path)
    assert reader.metadata == {"who": "test"}
    for key, tensor in tensors.items():
        data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        into = bytearray(len(data))
        reader.read(key, 0, memoryview(into))
        assert bytes(into) == data
        assert reader.tensors[key] == TensorSpec(dtype_name(tensor.dtype), tuple(tensor.shape))
    blob = path.read_bytes()
    assert reader.header_hash() == hashlib.sha256(blob[: 8 + int.from_bytes(blob[:8], "little")]).hexdigest()
    reader.close()


def test_tensors_come_in_the_order_of_their_data(tmp_path):
    path = tmp_path / "x.safetensors"
    text = json.dumps(
        {
            "last": {"dtype": "U8", "shape": [1], "data_offsets": [3, 4]},
            "first": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        }
    ).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"abcd")
    reader = opened(path)
    assert list(reader.tensors) == ["first", "last"]
    into = bytearray(1)
    reader.read("first", 2, memoryview(into))
    assert into == b"c"
    reader.read("last", 0, memoryview(into))
    assert into == b"d"
    reader.close()


def test_a_range_outside_the_tensor_is_a_bug_of_the_caller(tmp_path):
    save_file({"a": torch.ones(4)}, tmp_path / "x.safetensors")
    reader = opened(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="bytes 8 to 17 of a tensor of 16"):
        reader.read("a", 8, memoryview(bytearray(9)))
    with pytest.raises(ValueError, match="bytes -1 to 0"):
        reader.read("a", -1, memoryview(bytearray(1)))
    reader.close()


def test_a_file_cut_while_it_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(4)}, path)
    reader = opened(path)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 5)
    with pytest.raises(CheckpointError, match=r"x\.safetensors: the file ends 5 bytes too early"):
        reader.read("a", 0, memoryview(bytearray(16)))
    reader.close()


def officially(path: Path) -> bool:
    try:
        with safe_open(str(path), "pt") as file:
            file.keys()
    except SafetensorError:
        return False
    return True


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_nothing_is_taken_that_the_official_library_refuses(tmp_path_factory, data):
    """A valid file with a few bytes of its header changed: whatever we read, it reads, and we stay polite."""
    blob = bytearray(save({"a": torch.ones(2, 3), "b": torch.ones(5, dtype=torch.int8)}, {"m": "x"}))
    end = 8 + int.from_bytes(blob[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, end - 1))
        blob[at] = data.draw(st.one_of(st.integers(0, 255), st.sampled_from(b'0123456789[]{}",:-. ')))
    try:
        parse(bytes(blob))
    except CheckpointError:
        return
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(blob)
    assert officially(path)
