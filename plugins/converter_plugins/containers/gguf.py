"""The GGUF file format, version 3: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

``GGUF``, version, counts, typed metadata, a line for each tensor (name, dimensions with the columns first, type, offset
into the data), zeros up to a multiple of the alignment, then each tensor, zeros after it up to the next such multiple.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from converter_core.api import (
    ByteSource,
    CheckpointError,
    Container,
    FileContents,
    FileLayout,
    HeaderReader,
    PlannedWeight,
    Refused,
    TensorSpec,
    hookimpl,
    shown,
)

from ._gguf_types import BLOCKS, DTYPES, NUMBERS
from ._gguf_values import DamagedValue, packed_text, packed_value, read_text, read_value

ALIGNMENT = 32
MOST_DIMENSIONS = 8
"""ggml has 4; Wan's patch embedding has 5, and every reader of Wan takes them."""

ALIGNMENT_KEY = "general.alignment"


class Gguf(Container):
    """The file format of ggml: typed metadata, packed blocks, one file for a model."""

    name = "gguf"
    suffixes = (".gguf",)
    magic = b"GGUF"
    dtypes = frozenset(DTYPES)
    blocks = BLOCKS
    metadata: ClassVar[Mapping[str, Any]] = {}

    def read(self, source: ByteSource, /) -> FileContents:
        """Version 2 and 3, little endian. Everything the header claims is checked against the file's size."""
        name, reader = shown(source.name), HeaderReader(source)
        if source.size < 24 or reader.take(4) != self.magic:
            raise CheckpointError(f"{name}: this is no GGUF file; was the download cut short?")
        version, tensors, values = struct.unpack("<IQQ", reader.take(20))
        if version not in (2, 3):
            kind = "big-endian" if version >> 24 else f"version {version}"
            raise CheckpointError(f"{name}: GGUF {kind} is not read here, version 2 and 3 in little endian are")
        try:
            metadata: dict[str, Any] = {}
            for _ in range(values):
                key = read_text(reader)
                if key in metadata:
                    raise DamagedValue(f"{key!r} stands in the metadata twice")
                metadata[key] = read_value(reader)
            alignment = metadata.get(ALIGNMENT_KEY, ALIGNMENT)
            if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
                raise DamagedValue(f"{ALIGNMENT_KEY} is {alignment!r}, no power of two from 8 on")
            found = [_read_tensor(reader) for _ in range(tensors)]
            start = _aligned(reader.at, alignment)
            offsets = {key: start + offset for key, _, offset in found}
            specs = {key: spec for key, spec, _ in found}
            if len(specs) != len(found):
                raise DamagedValue("it names a tensor twice")
            _check_places(specs, offsets, alignment, start, source.size)
        except DamagedValue as error:
            raise CheckpointError(f"{name}: {error}; the file is damaged or cut short, download it again") from None
        return FileContents(specs, offsets, metadata, reader.at)

    def place(self, weights: Sequence[PlannedWeight], metadata: Mapping[str, Any], /) -> FileLayout:
        """Tensors in the order of the weights. Metadata: text, numbers, truth values, and lists of one kind of them.

        Whole numbers are stored as UINT32 where that holds them, else as INT32, UINT64 or INT64; others as FLOAT32
        where that is exact, else as FLOAT64.
        """
        outputs = [output for weight in weights for output in weight.outputs]
        entries = [packed_text(key) + packed_value(key, value) for key, value in metadata.items()]
        lines, places, end = [], {}, 0
        for output in outputs:
            lines.append(_tensor_line(output.key, output.spec, end))
            places[output.key], end = end, _aligned(end + output.spec.nbytes, ALIGNMENT)
        header = self.magic + struct.pack("<IQQ", 3, len(outputs), len(entries)) + b"".join((*entries, *lines))
        header += bytes(-len(header) % ALIGNMENT)
        return FileLayout(header, {key: len(header) + at for key, at in places.items()}, len(header) + end)

    def reference(self, path: str, /) -> Mapping[str, TensorSpec] | None:
        try:
            from gguf import GGUFReader
        except ImportError:
            return None
        found = {}
        try:
            for tensor in GGUFReader(path).tensors:
                dtype, shape = tensor.tensor_type.name, tuple(int(length) for length in reversed(tensor.shape))
                found[tensor.name] = TensorSpec(dtype, shape, BLOCKS.get(dtype))
        except (ValueError, KeyError, IndexError) as error:
            raise CheckpointError(f"{shown(path)}: gguf-py does not open it: {error}") from None
        return found


def _aligned(at: int, alignment: int) -> int:
    return -(-at // alignment) * alignment


def _tensor_line(key: str, spec: TensorSpec, offset: int) -> bytes:
    if len(spec.shape) > MOST_DIMENSIONS:
        raise Refused(f"{key} has {len(spec.shape)} dimensions; GGUF readers take {MOST_DIMENSIONS} at most")
    number = NUMBERS[spec.dtype]
    sizes = struct.pack(f"<I{len(spec.shape)}Q", len(spec.shape), *reversed(spec.shape))
    return packed_text(key) + sizes + struct.pack("<IQ", number, offset)


def _read_tensor(reader: HeaderReader) -> tuple[str, TensorSpec, int]:
    key = read_text(reader)
    (count,) = struct.unpack("<I", reader.take(4))
    if count > MOST_DIMENSIONS:
        raise DamagedValue(f"{key!r} has {count} dimensions")
    *sizes, number, offset = struct.unpack(f"<{count}QIQ", reader.take(8 * count + 12))
    dtype = _NAMES.get(number)
    if dtype is None:
        raise DamagedValue(f"{key!r} is of type {number}, which is not known here")
    spec = TensorSpec(dtype, tuple(reversed(sizes)), BLOCKS.get(dtype))
    if spec.numel > 2**63 - 1:
        raise DamagedValue(f"{key!r}: shape {list(spec.shape)} overflows")
    if spec.block is not None and (not sizes or sizes[0] % spec.block[0]):
        raise DamagedValue(f"{key!r}: {spec} is not made of whole blocks of {spec.block[0]}")
    return key, spec, offset


_NAMES = {number: name for name, number in NUMBERS.items()}


def _check_places(
    specs: Mapping[str, TensorSpec], offsets: Mapping[str, int], alignment: int, start: int, size: int
) -> None:
    """Every tensor aligned, beyond the one before it, and with the zeros after it inside the file."""
    end = start
    for key in sorted(specs, key=lambda key: (offsets[key], specs[key].nbytes)):
        at = offsets[key]
        if at % alignment or at < end:
            raise DamagedValue(f"{key!r} starts at byte {at}, expected {end} or a multiple of {alignment} after it")
        end = _aligned(at + specs[key].nbytes, alignment)
        if end > size:
            raise DamagedValue(f"{key!r} ends at byte {end}, the file has {size}")
    if end > size:
        raise DamagedValue(f"the header ends at byte {end}, the file has {size}")


@hookimpl
def converter_containers() -> Sequence[type[Container]]:
    return [Gguf]
