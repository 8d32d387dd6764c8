"""Loops over elements in C: one pass over memory each, and without the interpreter's lock.

They are compiled on installation where there is a C compiler (``[[tool.setuptools.ext-modules]]``, ``optional``) and
called through ctypes. Without a compiler, on other devices than a CPU, and with ``CONVERTER_PURE_TORCH=1``, torch must
do the same in several passes.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

VARIABLE = "CONVERTER_PURE_TORCH"

KERNEL_DTYPES: Mapping[torch.dtype, int] = MappingProxyType({torch.bfloat16: 0, torch.float16: 1, torch.float32: 2})
"""The number by which ``compiled.h`` knows a dtype."""


ABI = 3
"""``converter_abi`` of ``compiled.h``. Both change with the arguments or the meaning of any kernel."""


def load_kernels(beside: str, name: str, **functions: Sequence[Any]) -> ctypes.CDLL | None:
    """The library ``name`` in the folder of the file ``beside``, None if there is none; function -> argument types.

    A library that cannot be used is None as well, with one warning: torch then does its work.
    """
    if os.environ.get(VARIABLE, "") not in ("", "0") or sys.byteorder != "little":
        return None
    path = Path(beside).with_name(name + EXTENSION_SUFFIXES[-1])
    if not path.is_file():
        return None
    try:
        return _opened(path, functions)
    except (OSError, ValueError, AttributeError) as error:
        text = f"{path}: cannot be used ({error}); torch does its work, more slowly. Reinstall model-converter."
        warnings.warn(text, RuntimeWarning, stacklevel=2)
        return None


def _opened(path: Path, functions: Mapping[str, Sequence[Any]]) -> ctypes.CDLL:
    _check_length(path)
    library = ctypes.CDLL(str(path))
    found = ctypes.c_int.in_dll(library, "converter_abi").value
    if found != ABI:
        raise ValueError(f"it was compiled for another version: its ABI is {found}, expected {ABI}")
    for function, arguments in functions.items():
        called = getattr(library, function)
        called.argtypes, called.restype = arguments, None
    return library


def _check_length(path: Path) -> None:
    """Refuse a cut ELF file: mapping it would end in SIGBUS. The section table is the last thing in the file."""
    with path.open("rb") as file:
        head = file.read(64)
    if head[:6] == b"\x7fELF\x02\x01" and len(head) == 64:
        (start,) = struct.unpack_from("<Q", head, 0x28)
        size, count = struct.unpack_from("<HH", head, 0x3A)
        if path.stat().st_size < start + size * count:
            raise ValueError("the file is cut short")


def kernels_suit(library: ctypes.CDLL | None, tensor: Tensor) -> bool:
    """Whether a library is there for a tensor."""
    return library is not None and tensor.device.type == "cpu"
