"""Loops over elements in C: one pass over memory each, and without the interpreter's lock.

They are compiled on installation where there is a C compiler (``[[tool.setuptools.ext-modules]]``, ``optional``) and
called through ctypes. Without a compiler, on other devices than a CPU, and with ``CONVERTER_PURE_TORCH=1``, torch must
do the same in several passes.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

VARIABLE = "CONVERTER_PURE_TORCH"

DTYPES: Mapping[torch.dtype, int] = MappingProxyType({torch.bfloat16: 0, torch.float16: 1, torch.float32: 2})
"""The number by which ``compiled.h`` knows a dtype."""


def load(beside: str, name: str, **functions: Sequence[Any]) -> ctypes.CDLL | None:
    """The library ``name`` in the folder of the file ``beside``, None if there is none; function -> argument types."""
    if os.environ.get(VARIABLE, "") not in ("", "0"):
        return None
    for suffix in EXTENSION_SUFFIXES:
        path = Path(beside).with_name(name + suffix)
        if path.is_file():
            library = ctypes.CDLL(str(path))
            for function, arguments in functions.items():
                called = getattr(library, function)
                called.argtypes, called.restype = arguments, None
            return library
    return None


def suits(library: ctypes.CDLL | None, tensor: Tensor) -> bool:
    """Whether a library is there for a tensor."""
    return library is not None and tensor.device.type == "cpu"
