"""Where in a file of ``torch.save`` each storage lies, and whether it is all there.

The file is a zip of plainly stored records: a pickle, which says how large each storage is, and the bytes of each
storage. torch believes the pickle: a record that is shorter than that is read on into its neighbours.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch
from torch import Tensor

from converter_core.api import CheckpointError, shown

LARGEST_PICKLE = 256 << 20
"""Bytes. Of a million tensors it has about half of it."""

_LOCAL_HEADER = 30


class _Inert:
    """What stands in for every class and function that the pickle names: nothing of it is run."""

    def __init__(self, *args: object, **keywords: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, item: object) -> None:
        pass

    def extend(self, items: object) -> None:
        pass

    def add(self, item: object) -> None:
        pass


@dataclass(frozen=True)
class StoredTensor:
    """What the pickle says of a tensor. storage: its key. offset, stride: in elements."""

    storage: str
    itemsize: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Storage:
    key: str
    itemsize: int


class _Storages(pickle.Unpickler):
    """Reads the same pickle as torch, for places instead of bytes. sizes: storage key -> bytes that it must have."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.sizes: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_tensor_v3"): _tensor_of,
            ("torch._utils", "_rebuild_parameter"): _parameter,
        }
        return known.get((module, name)) or type(name, (_Inert,), {"__module__": module})

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, _, numel = pid
        if kind != "storage" or not isinstance(key, str) or type(numel) is not int or numel < 0:
            raise pickle.UnpicklingError("an unknown kind of storage")
        itemsize = _itemsize(storage.__name__)
        self.sizes[key] = max(self.sizes.get(key, 0), numel * itemsize)
        return _Storage(key, itemsize)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: object) -> object:
    counts = (offset, *shape, *stride)
    if not isinstance(storage, _Storage) or not all(type(count) is int and count >= 0 for count in counts):
        return _Inert()
    return StoredTensor(storage.key, storage.itemsize, offset, tuple(shape), tuple(stride))


def _tensor_of(storage: Any, offset: Any, shape: Any, stride: Any, grad: object, hooks: object, dtype: Any) -> object:
    """Of a dtype that has no storage of its own, such as the 8-bit floats."""
    found = getattr(torch, getattr(dtype, "__name__", ""), None)
    if not isinstance(found, torch.dtype) or not isinstance(storage, _Storage):
        return _Inert()
    return _tensor(_Storage(storage.key, found.itemsize), offset, shape, stride)


def _parameter(data: object, *rest: object) -> object:
    return data


def _itemsize(storage: str) -> int:
    """Bytes of an element of ``BFloat16Storage`` and the like."""
    if storage not in _ITEMSIZE:
        raise pickle.UnpicklingError(f"an unknown kind of storage, {storage}")
    return _ITEMSIZE[storage]


_BYTES = {
    1: "Untyped Bool Byte Char QInt8 QUInt8 QUInt4x2 QUInt2x4",
    2: "Half BFloat16 Short",
    4: "Float Int QInt32",
    8: "Double Long ComplexFloat",
    16: "ComplexDouble",
}
_ITEMSIZE = {f"{name}Storage": size for size, names in _BYTES.items() for name in names.split()}
"""An untyped storage counts bytes."""


@dataclass(frozen=True)
class Records:
    """content: what the pickle holds, with a StoredTensor for each tensor; None: it could not be read so.

    begins: storage key -> where its bytes begin in the file.
    """

    content: Any = None
    begins: Mapping[str, int] = field(default_factory=dict)

    def place(self, stored: object, tensor: Tensor) -> int | None:
        """Where in the file the bytes of a contiguous tensor begin; None: that is not known."""
        if not isinstance(stored, StoredTensor) or not tensor.is_contiguous() or stored.storage not in self.begins:
            return None
        same = (stored.shape, stored.itemsize) == (tuple(tensor.shape), tensor.element_size())
        if not same or stored.offset != tensor.storage_offset():
            return None
        return self.begins[stored.storage] + stored.offset * stored.itemsize


def read_records(path: str, archive: zipfile.ZipFile) -> Records:
    """CheckpointError if a storage has no record, or one that is shorter than the pickle says."""
    name = shown(path)
    records = {record.filename: record for record in archive.infolist()}
    if len(records) != len(archive.infolist()):
        raise CheckpointError(f"{name}: two of its records have one name; it is damaged")
    root = next((record.removesuffix("/data.pkl") for record in records if record.endswith("/data.pkl")), None)
    if root is None:
        return Records()  # torch says what it thinks of that
    if records[f"{root}/data.pkl"].file_size > LARGEST_PICKLE:
        raise CheckpointError(f"{name}: its pickle has more than {LARGEST_PICKLE:,} bytes; this is no checkpoint")
    try:
        reader = _Storages(io.BytesIO(archive.read(f"{root}/data.pkl")))
        content = reader.load()
    except Exception:  # a pickle can make this raise anything
        return Records()
    begins = {}
    with open(path, "rb") as file:
        for key, nbytes in reader.sizes.items():
            record = records.get(f"{root}/data/{key}")
            has = 0 if record is None else record.file_size
            if has < nbytes:
                raise CheckpointError(
                    f"{name}: storage {shown(key)} has {has:,} bytes, and its tensors need {nbytes:,}; the file was "
                    "packed anew or is damaged: save it again by torch"
                )
            if record is not None and nbytes:
                begins[key] = _begin(file, record)
    return Records(content, begins)


def _begin(file: BinaryIO, record: zipfile.ZipInfo) -> int:
    """The local header says how long name and padding are; the directory may say something else."""
    file.seek(record.header_offset)
    header = file.read(_LOCAL_HEADER)
    return record.header_offset + _LOCAL_HEADER + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
