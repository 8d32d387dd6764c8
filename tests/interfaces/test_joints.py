"""What plugins return is checked where it meets what others return: no wrong plugin makes a conversion that lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import converter_core
from converter_core import (
    Container,
    ConverterError,
    Extras,
    FileLayout,
    ModelFacts,
    Parts,
    PlannedWeight,
    Quantizer,
    SourceTensors,
    Target,
    WeightContext,
)
from converter_plugins.containers.safetensors import Safetensors

from .conftest import Tiny, tensors


class Plain(Target):
    name = "mine"
    row_block = 1

    def key(self, context: WeightContext, role: str, /) -> str:
        return context.name if role == "weight" else f"{context.name}_{role}"

    def encode(self, context: WeightContext, parts: Parts, /) -> Parts:
        return parts

    def decode(self, context: WeightContext, stored: Parts, /) -> Parts:
        return stored


def side(files: Mapping[str, bytes]) -> type[Target]:
    class Writes(Plain):
        def extras(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Extras:
            return Extras(side_files=files)

    return Writes


class ExtraUnderAWeight(Plain):
    def extras(self, model: ModelFacts, weights: Sequence[PlannedWeight], /) -> Extras:
        return Extras(tensors={"layers.0.up.weight": torch.ones(1)})


class OneKey(Plain):
    def key(self, context: WeightContext, role: str, /) -> str:
        return "x"


class Wrong(Plain):
    container = "wrong"


def placing(change: Any) -> type[Container]:
    class Places(Safetensors):
        name = "wrong"
        default = False

        def place(self, weights: Sequence[PlannedWeight], metadata: Mapping[str, Any], /) -> FileLayout:
            return change(super().place(weights, metadata))

    return Places


def overlapping(layout: FileLayout) -> FileLayout:
    first = min(layout.offsets.values())
    return FileLayout(layout.header, dict.fromkeys(layout.offsets, first), layout.size)


def in_the_header(layout: FileLayout) -> FileLayout:
    return FileLayout(layout.header, {key: at - 8 for key, at in layout.offsets.items()}, layout.size)


def too_short(layout: FileLayout) -> FileLayout:
    return FileLayout(layout.header, layout.offsets, layout.size - 1)


def forgetful(layout: FileLayout) -> FileLayout:
    return FileLayout(layout.header, dict(list(layout.offsets.items())[1:]), layout.size)


class NoDot(Safetensors):
    name = "wrong"
    default = False
    suffixes = ("gguf",)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (side({"tiny.safetensors": b"x"}), "tiny.safetensors would be both a weight file and a side file"),
        (side({"TINY.safetensors": b"x"}), "would be both a weight file and a side file"),
        (side({"tiny.manifest.json": b"x"}), "would be both a side file and the manifest"),
        (side({"../x.json": b"x"}), "'../x.json', which is not a plain relative path"),
        (side({"/tmp/x.json": b"x"}), "is not a plain relative path"),
        (side({"tiny.safetensors/x": b"x"}), "lies in tiny.safetensors, which is a file itself"),
        (side({".tiny.partial/journal.jsonl": b"x"}), "is reserved for unfinished files"),
        (ExtraUnderAWeight, "layers.0.up.weight and layers.0.up.weight would both be written under it"),
        (OneKey, "would both be written under it"),
    ],
)
def test_a_target_that_lies(load: Any, recipe: Any, tmp_path: Path, target: type[Target], words: str) -> None:
    with pytest.raises(ConverterError, match=words):
        converter_core.convert(recipe("int8", "mine"), registry=load(targets=[target]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("container", "words"),
    [
        (placing(overlapping), r"starts at byte \d+, inside"),
        (placing(in_the_header), "inside the header, which ends at"),
        (placing(too_short), "beyond the file's"),
        (placing(forgetful), "its container places .* not at all or twice"),
        (NoDot, "a suffix must begin with a dot and hold no path, not 'gguf'"),
    ],
)
def test_a_container_that_lies(load: Any, recipe: Any, tmp_path: Path, container: type, words: str) -> None:
    with pytest.raises(ConverterError, match=words):
        converter_core.convert(recipe("int8", "mine"), registry=load(targets=[Wrong], containers=[container]))
    assert not (tmp_path / "out").exists()


class OneName(Tiny):
    def rename(self, name: str, key_format: str) -> str:
        return "x"


class TwoRows(Tiny):
    """More rows than its sources have."""

    def assemble(self, context: WeightContext, sources: Parts) -> Tensor:
        return torch.cat([sources["weight"], sources["weight"]])


class Guesses(Tiny):
    name = "guesses"

    def recognise(self, tensors: SourceTensors) -> str | None:
        return "everything"


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ([OneName], "model tiny: rename gives .* the same name, x"),
        ([TwoRows], "assemble must give one tensor with the .* rows of its sources"),
        ([Tiny, Guesses], "both recognise it; say which with source.type"),
    ],
)
def test_a_model_that_lies(load: Any, recipe: Any, tmp_path: Path, models: list[type], words: str) -> None:
    with pytest.raises(ConverterError, match=words):
        converter_core.convert(recipe("int8", "plain"), registry=load(models=models))
    assert not (tmp_path / "out").exists()


@dataclass(frozen=True)
class PairsOfRows(Quantizer):
    """A scale for each two rows; an odd row at the end has one of its own."""

    name: ClassVar[str] = "pairs"
    row_block: ClassVar[int | None] = 2

    def quantize(self, weight: Tensor, /) -> Parts:
        rows = weight.float()
        pairs = torch.split(rows, 2)
        scale = torch.stack([pair.abs().amax().clamp(min=1e-9) for pair in pairs]) / 127
        each = scale.repeat_interleave(2)[: rows.shape[0], None]
        return {"weight": (rows / each).round().clamp(-127, 127).to(torch.int8), "scale": scale[:, None]}

    def dequantize(self, parts: Parts, /) -> Tensor:
        rows = parts["weight"].shape[0]
        return parts["weight"].float() * parts["scale"].repeat_interleave(2, 0)[:rows]


@pytest.mark.parametrize("rows", [5, 6, 37, 1, 2, 3])
@pytest.mark.parametrize("memory", ["4GiB", "8KiB"])
def test_a_last_row_block_that_is_not_whole(
    load: Any, recipe: Any, source: Path, tmp_path: Path, rows: int, memory: str
) -> None:
    made = tensors(rows=rows)
    save_file(made, source / "model.safetensors")
    registry = load(quantizers=[PairsOfRows])
    asked = recipe("pairs", "plain")
    asked["performance"]["max_memory"] = memory
    converter_core.convert(asked, registry=registry)
    written = load_file(tmp_path / "out" / "tiny.safetensors")
    expected = PairsOfRows().quantize(made["layers.0.up.weight"])
    assert torch.equal(written["layers.0.up.weight"], expected["weight"])
    assert torch.equal(written["layers.0.up.weight_scale"], expected["scale"])
    report = converter_core.verify(tmp_path / "out", source, registry=registry)
    assert report.ok, report.problems
