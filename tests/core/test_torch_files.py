"""Files of torch.save are read at offsets, and no tensor from the bytes of its neighbours."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from converter_core.api.tensors import raw
from converter_core.errors import CheckpointError
from converter_plugins.containers.torch_zip import TorchZip

WHOLE = torch.arange(24.0).reshape(6, 4)
TENSORS = {
    "a": torch.randn(5, 3, generator=torch.Generator().manual_seed(1)),
    "half": torch.nn.Parameter(torch.linspace(-3, 3, 7).to(torch.bfloat16), requires_grad=False),
    "rows": WHOLE[2:5],
    "tied": WHOLE,
    "turned": WHOLE.t(),
    "empty": torch.empty(0, 3),
    "scalar": torch.tensor(7, dtype=torch.int64),
    "fp8": torch.linspace(-3, 3, 9).to(torch.float8_e4m3fn)[2:],
}


class Bytes:
    """A file as containers see it."""

    def __init__(self, path: Path) -> None:
        self.name = self.path = str(path)
        self.size, self.version = path.stat().st_size, 0

    def read(self, at: int, into: memoryview) -> None:
        data = Path(self.path).read_bytes()[at : at + len(into)]
        if len(data) < len(into):
            raise CheckpointError(f"{self.name}: was cut short while it was read")
        into[:] = data

    def will_need(self, at: int, nbytes: int) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "x.pth"
    torch.save({"state_dict": TENSORS}, path)
    return path


def test_bytes_lie_where_the_offsets_say(saved: Path) -> None:
    source = Bytes(saved)
    contents = TorchZip().read(source)
    assert set(contents.offsets) == {"a", "half", "rows", "tied", "scalar", "fp8"}
    for key, tensor in TENSORS.items():
        held = tensor.detach().contiguous()
        expected = bytes(raw(held))
        found = bytearray(len(expected))
        if key in contents.offsets:
            source.read(contents.offsets[key], memoryview(found))
        else:
            contents.reader.read(key, 0, memoryview(found))
        assert found == expected, key
    contents.reader.close()


def repacked(path: Path, record: str, content: bytes) -> None:
    with zipfile.ZipFile(path) as old:
        records = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in records.items():
            new.writestr(name, content if name.endswith(record) else data)


def test_a_storage_that_is_shorter_than_its_tensor(saved: Path) -> None:
    repacked(saved, "data/0", b"short")
    with pytest.raises(CheckpointError, match="storage 0 has 5 bytes, and its tensors need 60"):
        TorchZip().read(Bytes(saved))


@pytest.mark.parametrize("key", ["a", "turned"])
def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path, key: str) -> None:
    big = torch.zeros(1024, 1024)
    path = tmp_path / "x.pth"
    torch.save({"turned": big.t(), "a": big.clone()}, path)
    source = Bytes(path)
    contents = TorchZip().read(source)
    os.truncate(path, 100_000)
    into = memoryview(bytearray(1 << 20))
    with pytest.raises(CheckpointError, match="cut short"):
        if key in contents.offsets:
            source.read(contents.offsets[key], into)
        else:
            contents.reader.read(key, 0, into)
    contents.reader.close()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.empty(2, device="meta"), "meta device"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "dense"),
    ],
    ids=["meta", "nested"],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_without_plain_values(tmp_path: Path, make: Callable[[], torch.Tensor], said: str) -> None:
    torch.save({"x": make()}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=said):
        TorchZip().read(Bytes(tmp_path / "x.pth"))
