"""What a plugin imports, and all that it needs: hooks, interfaces, values, errors, the loader of compiled loops.

Names are imported when they are first asked for: what reads hooks need not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..errors import (
        CheckpointError,
        ConversionError,
        ConverterError,
        PlanError,
        PluginError,
        RecipeError,
        Refused,
        VerificationError,
        shown,
        unknown,
    )
    from ..native.loader import KERNEL_DTYPES, kernels_suit, load_kernels
    from ..sizes import parse_bytes
    from ..trusted import read_file
    from .calibration import HELD_OUT, split_tokens, statistics
    from .containers import ByteSource, Container, FileContents, HeaderReader, TensorReader
    from .contexts import LoraChange, ModelFacts, SourceTensors, WeightContext
    from .devices import DeviceBackend, DeviceStream
    from .formats import UNQUANTIZED, QuantFormat
    from .hookspecs import hookimpl
    from .json_text import load_json_object
    from .layouts import LayoutWriter
    from .local_file import LocalFile
    from .models import ModelAdapter
    from .quantizers import Quantizer
    from .roots import SourceRoot
    from .storages import Entry, RemoteFile, Storage
    from .table_contents import TableContents
    from .table_model import TableModel
    from .tables import PREFIXES, Row, Size, Table, linear, norm
    from .targets import Target
    from .tensors import spec_of
    from .values import (
        FLOATING,
        ITEMSIZE,
        Extras,
        FileLayout,
        OutputTensor,
        Parts,
        PlannedWeight,
        Stored,
        SyntheticCheckpoint,
        TensorRef,
        TensorSpec,
        WeightInfo,
    )
    from .writers import PartWriter, PendingUpload, StoredFile, StoredPart, UploadGone, Writer

__all__ = [
    "FLOATING",
    "HELD_OUT",
    "ITEMSIZE",
    "KERNEL_DTYPES",
    "PREFIXES",
    "UNQUANTIZED",
    "ByteSource",
    "CheckpointError",
    "Container",
    "ConversionError",
    "ConverterError",
    "DeviceBackend",
    "DeviceStream",
    "Entry",
    "Extras",
    "FileContents",
    "FileLayout",
    "HeaderReader",
    "LayoutWriter",
    "LocalFile",
    "LoraChange",
    "ModelAdapter",
    "ModelFacts",
    "OutputTensor",
    "PartWriter",
    "Parts",
    "PendingUpload",
    "PlanError",
    "PlannedWeight",
    "PluginError",
    "QuantFormat",
    "Quantizer",
    "RecipeError",
    "Refused",
    "RemoteFile",
    "Row",
    "Size",
    "SourceRoot",
    "SourceTensors",
    "Storage",
    "Stored",
    "StoredFile",
    "StoredPart",
    "SyntheticCheckpoint",
    "Table",
    "TableContents",
    "TableModel",
    "Target",
    "TensorReader",
    "TensorRef",
    "TensorSpec",
    "UploadGone",
    "VerificationError",
    "WeightContext",
    "WeightInfo",
    "Writer",
    "hookimpl",
    "kernels_suit",
    "linear",
    "load_json_object",
    "load_kernels",
    "norm",
    "parse_bytes",
    "read_file",
    "shown",
    "spec_of",
    "split_tokens",
    "statistics",
    "unknown",
]

_HOME = {
    "..errors": (
        "CheckpointError",
        "ConversionError",
        "ConverterError",
        "PlanError",
        "PluginError",
        "RecipeError",
        "Refused",
        "VerificationError",
        "shown",
        "unknown",
    ),
    "..native.loader": (
        "KERNEL_DTYPES",
        "load_kernels",
        "kernels_suit",
    ),
    "..sizes": ("parse_bytes",),
    "..trusted": ("read_file",),
    ".calibration": ("HELD_OUT", "split_tokens", "statistics"),
    ".containers": (
        "ByteSource",
        "Container",
        "FileContents",
        "HeaderReader",
        "TensorReader",
    ),
    ".contexts": (
        "LoraChange",
        "ModelFacts",
        "SourceTensors",
        "WeightContext",
    ),
    ".devices": (
        "DeviceBackend",
        "DeviceStream",
    ),
    ".formats": (
        "QuantFormat",
        "UNQUANTIZED",
    ),
    ".hookspecs": ("hookimpl",),
    ".json_text": ("load_json_object",),
    ".layouts": ("LayoutWriter",),
    ".local_file": ("LocalFile",),
    ".models": ("ModelAdapter",),
    ".quantizers": ("Quantizer",),
    ".roots": ("SourceRoot",),
    ".table_contents": ("TableContents",),
    ".table_model": ("TableModel",),
    ".tables": (
        "PREFIXES",
        "Row",
        "Size",
        "Table",
        "linear",
        "norm",
    ),
    ".storages": (
        "Entry",
        "RemoteFile",
        "Storage",
    ),
    ".targets": ("Target",),
    ".tensors": ("spec_of",),
    ".values": (
        "Extras",
        "FLOATING",
        "ITEMSIZE",
        "FileLayout",
        "OutputTensor",
        "Parts",
        "PlannedWeight",
        "Stored",
        "SyntheticCheckpoint",
        "TensorRef",
        "TensorSpec",
        "WeightInfo",
    ),
    ".writers": (
        "PartWriter",
        "PendingUpload",
        "StoredFile",
        "StoredPart",
        "UploadGone",
        "Writer",
    ),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
