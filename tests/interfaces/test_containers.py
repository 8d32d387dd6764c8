"""A file format like GGUF through the public interface alone: typed metadata, packed dtypes, aligned tensors."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import converter_core
from converter_core.api import (
    CheckpointError,
    Container,
    ConversionError,
    ConverterError,
    Extras,
    FileContents,
    FileLayout,
    HeaderReader,
    ModelFacts,
    Parts,
    PlannedWeight,
    QuantFormat,
    Quantizer,
    Refused,
    SourceTensors,
    Stored,
    Target,
    TensorSpec,
    WeightContext,
    hookimpl,
    shown,
)
from converter_core.testing import ContainerConformance

from .conftest import tensors

TYPES = {"F32": 0, "F16": 1, "Q8": 8, "BF16": 30}
ALIGNMENT = 32
BLOCK = (32, 34)


class Packed(Container):
    """``PACK``, version, counts, typed metadata, dims reversed, tensor data at multiples of 32."""

    name = "packed"
    suffixes = (".packed",)
    magic = b"PACK"
    dtypes = ("F32", "F16", "BF16")
    blocks: ClassVar[Mapping[str, tuple[int, int]]] = {"Q8": BLOCK}

    def read(self, source: Any, /) -> FileContents:
        reader, name = HeaderReader(source), shown(source.name)
        if source.size < 24 or reader.take(4) != b"PACK":
            raise CheckpointError(f"{name}: no packed file")
        try:
            _, count, pairs = struct.unpack("<IQQ", reader.take(20))
            metadata = {text_from(reader): value_from(reader) for _ in range(pairs)}
            tensors, begins = {}, {}
            for _ in range(count):
                key = text_from(reader)
                (dims,) = struct.unpack("<I", reader.take(4))
                shape = struct.unpack(f"<{dims}Q", reader.take(8 * dims))[::-1]
                code, begins[key] = struct.unpack("<IQ", reader.take(12))
                dtype = next(name for name, known in TYPES.items() if known == code)
                tensors[key] = TensorSpec(dtype, shape, self.blocks.get(dtype))
            data = aligned(reader.at)
            ends = [data + begins[key] + spec.nbytes for key, spec in tensors.items()]
        except (StopIteration, UnicodeDecodeError, ValueError, struct.error, OverflowError) as error:
            raise CheckpointError(f"{name}: its header is damaged ({error})") from None
        if aligned(max(ends, default=data)) != source.size:
            raise CheckpointError(f"{name}: is cut short")
        return FileContents(tensors, {key: data + at for key, at in begins.items()}, metadata, data)

    def place(self, weights: Sequence[PlannedWeight], metadata: Mapping[str, Any], /) -> FileLayout:
        outputs = [output for weight in weights for output in weight.outputs]
        head = b"PACK" + struct.pack("<IQQ", 3, len(outputs), len(metadata))
        head += b"".join(text(key) + value_of(key, value) for key, value in metadata.items())
        end, begins = 0, {}
        for output in outputs:
            begins[output.key] = aligned(end)
            end = begins[output.key] + output.spec.nbytes
            dims = output.spec.shape[::-1]
            head += text(output.key) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
            head += struct.pack("<IQ", TYPES[output.spec.dtype], begins[output.key])
        head += bytes(aligned(len(head)) - len(head))
        return FileLayout(head, {key: len(head) + at for key, at in begins.items()}, len(head) + aligned(end))


def aligned(at: int) -> int:
    return -(-at // ALIGNMENT) * ALIGNMENT


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value_of(key: str, value: Any) -> bytes:
    if isinstance(value, str):
        return b"\x08" + text(value)
    if isinstance(value, bool):
        return b"\x07" + struct.pack("<?", value)
    if isinstance(value, int):
        return b"\x04" + struct.pack("<q", value)
    if isinstance(value, float):
        return b"\x06" + struct.pack("<d", value)
    if isinstance(value, list):
        return b"\x09" + struct.pack("<Q", len(value)) + b"".join(value_of(key, one) for one in value)
    raise Refused(f"metadata {key!r} cannot be stored: {type(value).__name__}")


def text_from(reader: HeaderReader) -> str:
    return reader.take(*struct.unpack("<Q", reader.take(8))).decode()


def value_from(reader: HeaderReader, depth: int = 0) -> Any:
    kind = reader.take(1)[0]
    if kind == 8:
        return text_from(reader)
    if kind == 9 and depth < 3:
        (count,) = struct.unpack("<Q", reader.take(8))
        if count > reader.source.size:
            raise ValueError(f"an array of {count}")
        return [value_from(reader, depth + 1) for _ in range(count)]
    form = {7: "<?", 4: "<q", 6: "<d"}.get(kind)
    if form is None:
        raise ValueError(f"a value of type {kind}")
    return struct.unpack(form, reader.take(struct.calcsize(form)))[0]


METADATA = {"general.architecture": "tiny", "general.file_type": 7, "scale": 0.5, "is": True, "dims": [3, -1, 2]}


class TestPacked(ContainerConformance):
    container = Packed()
    metadata = METADATA


@dataclass(frozen=True)
class Q8(Quantizer):
    """Blocks of 32: a scale in fp16, then 32 codes."""

    name: ClassVar[str] = "q8"
    row_block: ClassVar[int | None] = 1

    @property
    def format(self) -> QuantFormat:
        return QuantFormat("q8", "q8", 8, "group", 32)

    def quantize(self, weight: Tensor, /) -> Parts:
        if weight.shape[-1] % 32:
            raise Refused("needs a multiple of 32 columns")
        blocks = weight.float().view(weight.shape[0], -1, 32)
        scale = blocks.abs().amax(-1, keepdim=True) / torch.tensor(127.0, device=weight.device)
        codes = torch.where(scale > 0, blocks / scale, torch.zeros_like(blocks)).round().to(torch.int8)
        packed = torch.cat([scale.to(torch.float16).view(torch.uint8), codes.view(torch.uint8)], -1)
        return {"weight": packed.flatten(1)}

    def dequantize(self, parts: Parts, /) -> Tensor:
        blocks = parts["weight"].view(parts["weight"].shape[0], -1, 34)
        scale = blocks[..., :2].contiguous().view(torch.float16).float()
        return (blocks[..., 2:].contiguous().view(torch.int8).float() * scale).flatten(1)


class PackedTarget(Target):
    name = "packed_runtime"
    row_block = 1
    container = "packed"

    def key(self, context: WeightContext, role: str, /) -> str:
        return context.name

    def encode(self, context: WeightContext, parts: Parts, /) -> Parts:
        return parts

    def decode(self, context: WeightContext, stored: Parts, /) -> Parts:
        return stored

    def stored_spec(self, context: WeightContext, role: str, spec: TensorSpec, /) -> TensorSpec:
        if context.format.name != "q8":
            return spec
        return TensorSpec("Q8", (*spec.shape[:-1], spec.shape[-1] // 34 * 32), BLOCK)

    def extras(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Extras:
        return Extras(metadata=METADATA)

    def detect(self, tensors: SourceTensors, /) -> Mapping[str, Stored]:
        format = Q8().format
        return {key: Stored(format, {"weight": key}) for key, spec in tensors.items() if spec.dtype == "Q8"}


PLUGINS = {"containers": [Packed], "targets": [PackedTarget], "quantizers": [Q8]}


@pytest.fixture
def registry(load: Any) -> Any:
    return load(**PLUGINS)


def expected_q8(weight: Tensor) -> bytes:
    """Block by block, in plain Python."""
    made = b""
    for row in weight.float().tolist():
        for at in range(0, len(row), 32):
            block = row[at : at + 32]
            top = torch.tensor(max(map(abs, block)))
            scale = top / torch.tensor(127.0)
            codes = [int(torch.tensor(value).div(scale).round()) for value in block]
            made += struct.pack("<e32b", scale.item(), *codes)
    return made


def test_the_bytes(registry: Any, recipe: Any, tmp_path: Path) -> None:
    converter_core.convert(recipe("q8", "packed_runtime"), registry=registry)
    content = (tmp_path / "out" / "tiny.packed").read_bytes()
    assert content[:8] == b"PACK\x03\0\0\0"
    assert len(content) % 32 == 0
    contents = Packed().read(Source(content))
    assert {key: contents.metadata[key] for key in METADATA} == METADATA
    made = tensors()
    for key, tensor in made.items():
        at, spec = contents.offsets[key], contents.tensors[key]
        data = content[at : at + spec.nbytes]
        assert at % 32 == 0
        if key.endswith("up.weight"):
            assert spec == TensorSpec("Q8", (96, 64), BLOCK)
            assert data == expected_q8(tensor)
        else:
            assert data == tensor.view(torch.uint8).numpy().tobytes()


class Source:
    """A file in memory."""

    name = "x.packed"

    def __init__(self, content: bytes) -> None:
        self.content, self.size = content, len(content)

    def read(self, at: int, into: memoryview) -> None:
        into[:] = self.content[at : at + len(into)]


@pytest.mark.parametrize("layout", ["single_file", "by_block", "chunked"])
def test_it_is_verified_inspected_and_laid_out_anew(
    registry: Any, recipe: Any, source: Path, tmp_path: Path, layout: str
) -> None:
    asked = recipe("q8", "packed_runtime", layout=layout)
    asked["performance"]["max_memory"] = "8KiB"  # slabs of a few rows
    converter_core.convert(asked, registry=registry)
    out = tmp_path / "out"
    assert not list(out.glob("*.index.json"))
    report = converter_core.verify(out, source, registry=registry)
    assert report.ok, report.problems
    assert {weight.name: weight.relative_error < 0.01 for weight in report.weights} == {
        f"layers.{layer}.up.weight": True for layer in range(2)
    }
    if layout != "single_file":
        return
    found = converter_core.inspect(out, registry=registry)
    assert (found.format, found.model, found.quantized.target) == ("packed", "tiny", "packed_runtime")
    assert found.dtypes == {"BF16": 3, "Q8": 2}
    assert found.parameters == sum(tensor.numel() for tensor in tensors().values())
    again = {**recipe("none", "packed_runtime", layout="by_block"), "source": {"path": str(out)}}
    again["output"] = {"path": str(tmp_path / "again"), "name": "tiny"}
    converter_core.convert(again, registry=registry)
    assert converter_core.verify(tmp_path / "again", out, registry=registry).ok


def test_a_rerun_finds_it_done_and_a_damaged_file_is_found(registry: Any, recipe: Any, tmp_path: Path) -> None:
    asked = recipe("q8", "packed_runtime")
    converter_core.convert(asked, registry=registry)
    assert converter_core.convert(asked, registry=registry).outputs[0].status == "already done"
    path = tmp_path / "out" / "tiny.packed"
    content = bytearray(path.read_bytes())
    content[30] ^= 1
    path.write_bytes(content)
    assert not converter_core.verify(tmp_path / "out", registry=registry).ok
    assert converter_core.convert(asked, registry=registry).outputs[0].status == "done"
    assert converter_core.verify(tmp_path / "out", registry=registry).ok


def test_an_interrupted_run_is_resumed(
    registry: Any, recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe("q8", "packed_runtime")
    asked["performance"]["num_workers"] = 1
    plain = Q8.quantize
    calls = []

    def stops(self: Q8, weight: Tensor, /, **given: Tensor) -> Parts:
        if weight.device.type == "cpu" and weight.abs().sum() > 0:
            calls.append(1)
            if len(calls) == 20:
                raise ConversionError("enough")
        return plain(self, weight, **given)

    with monkeypatch.context() as patch, pytest.raises(ConverterError, match="enough"):
        patch.setattr(Q8, "quantize", stops)
        asked["performance"]["max_memory"] = "8KiB"
        converter_core.convert(asked, registry=registry)
    result = converter_core.convert(asked, registry=registry)
    assert result.outputs[0].resumed["tensors"] > 0
    assert converter_core.verify(tmp_path / "out", registry=registry).ok


def test_what_it_cannot_hold_is_refused(load: Any, recipe: Any, source: Path, tmp_path: Path) -> None:
    class Odd(PackedTarget):
        def extras(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Extras:
            return Extras(metadata={"a set": {1, 2}})

    registry = load(**PLUGINS)
    save_file({**tensors(), "layers.0.count": torch.ones(3, dtype=torch.int32)}, source / "model.safetensors")
    with pytest.raises(ConverterError, match=r"container packed cannot hold I32: layers\.0\.count"):
        converter_core.convert(recipe("q8", "packed_runtime"), registry=registry)
    save_file(tensors(), source / "model.safetensors")
    registry = load(**{**PLUGINS, "targets": [Odd]})
    with pytest.raises(ConverterError, match=r"target packed_runtime: metadata 'a set' cannot be stored: set"):
        converter_core.convert(recipe("q8", "packed_runtime"), registry=registry)
    assert not (tmp_path / "out").exists()


def test_a_target_whose_container_is_not_there(load: Any, recipe: Any) -> None:
    registry = load(targets=[PackedTarget], quantizers=[Q8])
    with pytest.raises(ConverterError, match="unknown container 'packed'"):
        converter_core.convert(recipe("q8", "packed_runtime"), registry=registry)


@hookimpl
def converter_containers() -> list[type[Container]]:
    return [Packed]
