"""The safetensors file format: headers written from specs alone, and read with distrust.

https://github.com/huggingface/safetensors: 8 bytes of header length (little endian), a JSON header, then the data.
Readers reject holes between tensors, trailing bytes and metadata that is not strings; so does this one.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from reprlib import repr as short
from typing import Any

from ..api.values import ITEMSIZE, FileLayout, PlannedWeight, TensorSpec
from ..errors import CheckpointError, shown, unknown

MAX_HEADER = 100_000_000
"""Bytes; the limit of the official reader."""

MAX_ELEMENTS = 2**63 - 1


class SafetensorsContainer:
    suffix = ".safetensors"

    def place(self, weights: Sequence[PlannedWeight], metadata: Mapping[str, str]) -> FileLayout:
        """Wider dtypes first, then by key, as the official writer sorts: every tensor is aligned by itself."""
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

    def read(self, path: str) -> tuple[Mapping[str, tuple[TensorSpec, int]], Mapping[str, str]]:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            return parse_header(file.read, size, path)


SAFETENSORS = SafetensorsContainer()


class SafetensorsReader:
    """One file held open for reading by position; only its header is read at first.

    header_hash: SHA-256 of everything before the data. stat: of the file that was opened.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = open(path, "rb")  # noqa: SIM115 (held until close)
        try:
            self.stat = os.fstat(self._file.fileno())
            digest = hashlib.sha256()

            def read(count: int) -> bytes:
                data = self._file.read(count)
                digest.update(data)
                return data

            placed, self.metadata = parse_header(read, self.stat.st_size, path)
        except BaseException:
            self._file.close()
            raise
        self.header_hash = digest.hexdigest()
        self._offsets = {key: offset for key, (_, offset) in placed.items()}
        by_offset = sorted(placed.items(), key=lambda item: (item[1][1], item[0]))
        self.tensors: Mapping[str, TensorSpec] = {key: spec for key, (spec, _) in by_offset}

    def read(self, key: str, start: int, into: memoryview) -> None:
        """Fill ``into`` with the tensor's bytes from ``start`` on. Any number of threads at a time."""
        check_range(self.tensors[key], start, len(into))
        at = self._offsets[key] + start
        done = 0
        while done < len(into):  # Linux reads at most 2 GiB at a time
            try:
                count = os.preadv(self._file.fileno(), [into[done:]], at + done)
            except OSError as error:
                raise CheckpointError(f"{shown(self.path)}: cannot read {key!r}: {error.strerror}") from None
            if not count:
                raise CheckpointError(
                    f"{shown(self.path)}: {key!r}: the file ends {len(into) - done} bytes too early; it was cut short "
                    "while it was read"
                )
            done += count

    def will_need(self, key: str, start: int, nbytes: int) -> None:
        if nbytes and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), self._offsets[key] + start, nbytes, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        self._file.close()


def check_range(spec: TensorSpec, start: int, nbytes: int) -> None:
    if start < 0 or start + nbytes > spec.nbytes:
        raise ValueError(f"bytes {start} to {start + nbytes} of a tensor of {spec.nbytes}")


def parse_header(
    read: Callable[[int], bytes], size: int, path: str
) -> tuple[Mapping[str, tuple[TensorSpec, int]], Mapping[str, str]]:
    """(key -> spec and offset from the beginning of the file, metadata).

    Everything the header claims is checked against the file's size; nothing large is allocated before that.
    """
    path = shown(path)
    if size < 8:
        raise CheckpointError(f"{path}: {size} bytes are no safetensors file; was the download cut short?")
    (length,) = struct.unpack("<Q", _exactly(read, 8, path))
    if length > MAX_HEADER:
        raise CheckpointError(
            f"{path}: a header of {length} bytes is no safetensors header (limit {MAX_HEADER}); the file is damaged or "
            "of another format"
        )
    if 8 + length > size:
        raise CheckpointError(f"{path}: the header is {length} bytes long but the file only {size}; download it again")
    data = 8 + length
    entries = load_json_object(_exactly(read, length, path), f"{path}: the header", "this is no safetensors file")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ must map names to strings")
    tensors: dict[str, tuple[TensorSpec, int]] = {}
    spans: list[tuple[int, int, str]] = []
    for key, entry in entries.items():
        spec, begin, end = _parse_entry(key, entry, path)
        spans.append((begin, end, key))
        tensors[key] = (spec, data + begin)
    _check_spans(spans, size - data, path)
    return tensors, metadata


def _exactly(read: Callable[[int], bytes], count: int, path: str) -> bytes:
    data = read(count)
    if len(data) != count:
        raise CheckpointError(f"{path}: was cut short while it was read")
    return data


def load_json_object(text: bytes, what: str, remedy: str) -> dict[str, Any]:
    """A JSON object that names nothing twice and holds Unicode text only; else a CheckpointError about ``what``."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(pairs)
        if len(seen) != len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise CheckpointError(f"{what} names {short(twice)} twice; the file is damaged")
        for key, value in pairs:
            # half of a surrogate pair can be written as an escape, but never as UTF-8 again
            key.encode()
            if isinstance(value, str):
                value.encode()
        return seen

    try:
        content = json.loads(text.decode(), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is not JSON ({error}); {remedy}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{what} is not a JSON object; {remedy}")
    return content


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _parse_entry(key: str, entry: Any, path: str) -> tuple[TensorSpec, int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{path}: {key!r} must have dtype, shape and data_offsets in the header")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEMSIZE:
        raise CheckpointError(f"{path}: {key!r}: {unknown('dtype', str(dtype), ITEMSIZE)}")
    if not isinstance(shape, list) or not all(map(_is_count, shape)):
        raise CheckpointError(f"{path}: {key!r}: shape {short(shape)} is not a list of sizes")
    if not isinstance(span, list) or len(span) != 2 or not all(map(_is_count, span)) or span[0] > span[1]:
        raise CheckpointError(f"{path}: {key!r}: data_offsets {short(span)} are not a begin and an end")
    elements = 1
    for length in shape:
        elements *= length
        if elements > MAX_ELEMENTS:
            raise CheckpointError(f"{path}: {key!r}: shape {short(shape)} overflows")
    spec = TensorSpec(dtype, tuple(shape))
    if spec.nbytes != span[1] - span[0]:
        raise CheckpointError(
            f"{path}: {key!r}: {spec} takes {spec.nbytes} bytes, its offsets span {span[1] - span[0]}"
        )
    return spec, span[0], span[1]


def _check_spans(spans: list[tuple[int, int, str]], available: int, path: str) -> None:
    at = 0
    for begin, end, key in sorted(spans):
        if begin != at:
            kind = "overlaps the tensor before it" if begin < at else "leaves a hole before it"
            raise CheckpointError(f"{path}: {key!r} {kind} (starts at {begin}, expected {at})")
        if end > available:
            raise CheckpointError(
                f"{path}: {key!r} ends {end - available} bytes beyond the end of the file; it is cut short, "
                "download it again"
            )
        at = end
    if at != available:
        raise CheckpointError(f"{path}: {available - at} bytes follow the last tensor; the file is damaged")
