"""The safetensors file format: headers written from specs alone, and read with distrust.

https://github.com/huggingface/safetensors: 8 bytes of header length (little endian), a JSON header, then the data.
Readers reject holes between tensors, trailing bytes and metadata that is not strings; so does this one.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from reprlib import repr as short
from typing import Any, ClassVar

from converter_core.api import (
    ITEMSIZE,
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
    load_json_object,
    shown,
    unknown,
)

MAX_HEADER = 100_000_000
"""Bytes; the limit of the official reader."""

MAX_ELEMENTS = 2**63 - 1


class Safetensors(Container):
    """The Hugging Face format: a JSON header, then the tensors without holes."""

    name = "safetensors"
    default = True
    suffixes = (".safetensors",)
    index_suffixes = (".safetensors.index.json",)
    sharded = True
    metadata: ClassVar[Mapping[str, Any]] = {"format": "pt"}

    @classmethod
    def recognises(cls, head: bytes) -> bool:
        return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER

    def read(self, source: ByteSource, /) -> FileContents:
        """Everything the header claims is checked against the file's size; nothing large is allocated before that."""
        name, size = shown(source.name), source.size
        if size < 8:
            raise CheckpointError(f"{name}: {size} bytes are no safetensors file; was the download cut short?")
        reader = HeaderReader(source)
        (length,) = struct.unpack("<Q", reader.take(8))
        if length > MAX_HEADER:
            raise CheckpointError(
                f"{name}: a header of {length} bytes is no safetensors header (limit {MAX_HEADER}); the file is "
                "damaged or of another format"
            )
        if 8 + length > size:
            raise CheckpointError(
                f"{name}: the header is {length} bytes long but the file only {size}; download it again"
            )
        return _parsed(reader.take(length), name, size)

    def place(self, weights: Sequence[PlannedWeight], metadata: Mapping[str, Any], /) -> FileLayout:
        """Wider dtypes first, then by key, as the official writer sorts: every tensor is aligned by itself."""
        for key, value in metadata.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise Refused(f"metadata {key!r} of a safetensors file must be text, not {type(value).__name__}")
        outputs = sorted(
            (output for weight in weights for output in weight.outputs),
            key=lambda output: (-ITEMSIZE[output.spec.dtype], output.key),
        )
        entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        offsets: dict[str, int] = {}
        end = 0
        for output in outputs:
            offsets[output.key], begin, end = end, end, end + output.spec.nbytes
            entries[output.key] = {
                "dtype": output.spec.dtype,
                "shape": output.spec.shape,
                "data_offsets": [begin, end],
            }
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        data = 8 + len(text)
        header = struct.pack("<Q", len(text)) + text
        return FileLayout(header, {key: data + offset for key, offset in offsets.items()}, data + end)

    def reference(self, path: str, /) -> Mapping[str, TensorSpec] | None:
        from safetensors import SafetensorError, safe_open

        found = {}
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (not a mapping)
                    tensor = file.get_slice(key)
                    found[key] = TensorSpec(tensor.get_dtype(), tuple(tensor.get_shape()))
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"the safetensors library does not open it: {error}") from None
        return found


def _parsed(text: bytes, name: str, size: int) -> FileContents:
    data = 8 + len(text)
    entries = load_json_object(text, f"{name}: the header", "this is no safetensors file")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{name}: __metadata__ must map names to strings")
    tensors: dict[str, TensorSpec] = {}
    spans: list[tuple[int, int, str]] = []
    for key, entry in entries.items():
        tensors[key], begin, end = _parse_entry(key, entry, name)
        spans.append((begin, end, key))
    _check_spans(spans, size - data, name)
    return FileContents(tensors, {key: data + begin for begin, _, key in spans}, metadata, data)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _parse_entry(key: str, entry: Any, name: str) -> tuple[TensorSpec, int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{name}: {key!r} must have dtype, shape and data_offsets in the header")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEMSIZE:
        raise CheckpointError(f"{name}: {key!r}: {unknown('dtype', str(dtype), ITEMSIZE)}")
    if not isinstance(shape, list) or not all(map(_is_count, shape)):
        raise CheckpointError(f"{name}: {key!r}: shape {short(shape)} is not a list of sizes")
    if not isinstance(span, list) or len(span) != 2 or not all(map(_is_count, span)) or span[0] > span[1]:
        raise CheckpointError(f"{name}: {key!r}: data_offsets {short(span)} are not a begin and an end")
    elements = 1
    for length in shape:
        elements *= length
        if elements > MAX_ELEMENTS:
            raise CheckpointError(f"{name}: {key!r}: shape {short(shape)} overflows")
    spec = TensorSpec(dtype, tuple(shape))
    if spec.nbytes != span[1] - span[0]:
        raise CheckpointError(
            f"{name}: {key!r}: {spec} takes {spec.nbytes} bytes, its offsets span {span[1] - span[0]}"
        )
    return spec, span[0], span[1]


def _check_spans(spans: list[tuple[int, int, str]], available: int, name: str) -> None:
    at = 0
    for begin, end, key in sorted(spans):
        if begin != at:
            kind = "overlaps the tensor before it" if begin < at else "leaves a hole before it"
            raise CheckpointError(f"{name}: {key!r} {kind} (starts at {begin}, expected {at})")
        if end > available:
            raise CheckpointError(
                f"{name}: {key!r} ends {end - available} bytes beyond the end of the file; it is cut short, "
                "download it again"
            )
        at = end
    if at != available:
        raise CheckpointError(f"{name}: {available - at} bytes follow the last tensor; the file is damaged")


@hookimpl
def converter_containers() -> list[type[Container]]:
    return [Safetensors]
