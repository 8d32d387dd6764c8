"""Tensors in a ``.pth`` or ``.pt`` file, mapped into memory and never unpickled as anything but tensors."""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from converter_core.api import (
    ByteSource,
    CheckpointError,
    Container,
    FileContents,
    hookimpl,
    shown,
    spec_of,
)

from ._torch_records import Records, StoredTensor, read_records

WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "params",
    "generator",
    "generator_ema",
    "ema",
)
"""Under which names training code wraps the tensors."""

PLAIN = (bool, int, float, str, type(None))
"""What stands beside tensors now and then, a step or a version, and is no weight."""

MAX_DEPTH = 4
"""Wrappers in wrappers that are opened: a pickle can hold a mapping that contains itself."""


class TorchZip(Container):
    """Files of ``torch.save``; read, never written."""

    name = "pytorch"
    suffixes = (".pth", ".pt", ".bin", ".ckpt")
    index_suffixes = (".bin.index.json",)
    magic = b"PK\x03\x04"

    def read(self, source: ByteSource, /) -> FileContents:
        path = source.path
        if path is None:
            raise CheckpointError(
                f"{shown(source.name)}: a file of torch.save can only be read from a disk of this machine; download it"
            )
        records = _check_archive(path)
        content = _unwrap(_load(path), path)
        tensors = _tensors({key: value for key, value in content.items() if not _is_plain(key, value)}, path)
        specs = {key: spec_of(tensor) for key, tensor in tensors.items()}
        return FileContents(
            specs,
            _offsets(records, tensors, path),
            reader=_Mapped(tensors, source),
            notes=_skipped(content, path),
        )


def _offsets(records: Records, tensors: Mapping[str, Tensor], path: str) -> dict[str, int]:
    """Where in the file tensors begin, as far as that is known: those are read as any file is."""
    if records.content is None:
        return {}
    stored = _unwrap(records.content, path, StoredTensor)
    places = {key: records.place(stored.get(key), tensor) for key, tensor in tensors.items()}
    return {key: place for key, place in places.items() if place is not None}


class _Mapped:
    """Tensors that are mapped into memory: those whose rows lie scattered in the file."""

    def __init__(self, tensors: dict[str, Tensor], source: ByteSource) -> None:
        self._tensors = tensors
        self._source = source

    def read(self, key: str, start: int, into: memoryview) -> None:
        tensor = self._tensors[key]
        if not len(into):
            return
        # the process would be killed for a page that the file no longer has
        self._source.read(self._source.size - 1, memoryview(bytearray(1)))
        stop = start + len(into)
        if not tensor.is_contiguous():
            row = tensor.numel() * tensor.element_size() // tensor.shape[0]
            first, last = start // row, -(-stop // row)
            tensor = tensor[first:last].contiguous()
            start, stop = start - first * row, stop - first * row
        source = tensor.reshape(-1).view(torch.uint8)[start:stop]
        torch.frombuffer(into, dtype=torch.uint8).copy_(source)
        _forget(source)

    def close(self) -> None:
        self._tensors = {}


def _check_archive(path: str) -> Records:
    """That this is a zip of plainly stored records, so that nothing can be larger in memory than in the file."""
    name = shown(path)
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic != b"PK\x03\x04":
        if magic[:1] == b"\x80" or b"ustar" in magic:
            raise CheckpointError(
                f"{name}: written in the format of torch before 1.6, which cannot be read piece by piece; write it "
                "anew: python -c \"import sys, torch; torch.save(torch.load(sys.argv[1], map_location='cpu', "
                'weights_only=True), sys.argv[2])" OLD.pth NEW.pth'
            )
        raise CheckpointError(
            f"{name}: this is no file of torch.save; is it a .safetensors or an archive by its content?"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            plain = all(record.compress_type == zipfile.ZIP_STORED for record in records)
            found = read_records(path, archive) if plain else Records()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise CheckpointError(f"{name}: the archive is damaged or cut short ({error}); download it again") from None
    if not plain:
        raise CheckpointError(
            f"{name}: its records are compressed, which torch.save never does; save it again by torch"
        )
    if sum(record.file_size for record in records) > Path(path).stat().st_size:
        raise CheckpointError(f"{name}: its records claim more bytes than the file has; it is damaged")
    return found


def _load(path: str) -> Any:
    name = shown(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of TorchScript archives and old storages; we say it ourselves
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{name}: holds Python objects other than tensors, which could run code when loaded, and is not opened "
            f"({_reason(error)}); get the weights as .safetensors from a source you trust"
        ) from None
    except Exception as error:  # a damaged pickle makes torch raise nearly anything
        raise CheckpointError(f"{name}: torch cannot load it ({type(error).__name__}: {_reason(error)})") from None


def _reason(error: Exception) -> str:
    """What torch found, without its advice to load the file unsafely."""
    lines = str(error.__context__ or error).split(". ")[0].splitlines()
    return shown(lines[0][:200]) if lines else "no reason given"


def _unwrap(content: Any, path: str, leaf: type = Tensor) -> Mapping[Any, Any]:
    for _ in range(MAX_DEPTH):
        if not isinstance(content, dict):
            raise CheckpointError(f"{shown(path)}: holds a {type(content).__name__}, not a mapping of names to tensors")
        inner = [name for name in WRAPPERS if isinstance(content.get(name), dict)]
        if not inner or any(isinstance(value, leaf) for value in content.values()):
            return content
        if len(inner) > 1:
            raise CheckpointError(
                f"{shown(path)}: holds {' and '.join(map(repr, inner))}; save the one that is meant by itself"
            )
        content = content[inner[0]]
    raise CheckpointError(f"{shown(path)}: its tensors are wrapped more than {MAX_DEPTH} mappings deep")


def _tensors(content: Mapping[Any, Any], path: str) -> dict[str, Tensor]:
    problems = []
    found: dict[str, Tensor] = {}
    for key, value in content.items():
        reason = _unfit(key, value)
        if reason:
            problems.append(f"{shown(path)}: {key!r} {reason}")
        else:
            found[key] = value.detach()
    if problems:
        raise CheckpointError(*problems)
    return found


def _is_plain(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, PLAIN)


def _skipped(content: Mapping[Any, Any], path: str) -> list[str]:
    """What is said of values that are no tensors."""
    keys = [shown(key) for key, value in content.items() if _is_plain(key, value)]
    if not keys:
        return []
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return [f"{shown(path)}: skipping {', '.join(keys[:3])}{more}, which are no tensors but numbers or text"]


def _unfit(key: Any, value: Any) -> str:
    if not isinstance(key, str):
        return "is not a name"
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}, not a tensor; save the tensors alone"
    if value.is_meta:
        return "has no values (it is on the meta device); save it with them"
    if value.layout is not torch.strided or value.is_nested or value.is_quantized or value.is_conj() or value.is_neg():
        return "is not a plain dense tensor; convert it before saving"
    try:
        spec_of(value)
        key.encode()
    except KeyError:
        return f"has dtype {value.dtype}, which is not known here"
    except UnicodeEncodeError:
        return "is not Unicode text"
    return ""


def _forget(source: Tensor) -> None:
    """Give the pages of a mapped tensor back: they count as this process's memory as long as they are mapped.

    They are private and unmodified, so touching them again reads the file again.
    """
    begin = -(-source.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (source.data_ptr() + source.numel()) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > begin and _madvise is not None:
        _madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)


_madvise = getattr(ctypes.CDLL(None), "madvise", None) if os.name == "posix" else None


@hookimpl
def converter_containers() -> list[type[Container]]:
    return [TorchZip]
