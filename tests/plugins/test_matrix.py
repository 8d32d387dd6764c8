"""Every scheme in every dress that holds it: written, recognised, in every other dress, and back to the first bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import gguf
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import converter_core
from converter_core.api.tensors import raw
from converter_core.api.values import SyntheticCheckpoint
from converter_core.checkpoint.synthetic import write_synthetic
from converter_core.errors import ConverterError
from converter_core.plugins.registry import Registry
from converter_core.report.difference import pairs as pairs_of
from converter_plugins.models.wan_dit import Structure, WanDit

TINY = Structure(dim=256, ffn_dim=544, num_layers=1, in_dim=16, text_dim=64, image_dim=0, image=False)
"""544 columns make an odd number of scales, 544 rows a last tile that is not full; of K-quants they are q8_0."""

DRESSES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "lightx2v": ("lightx2v", {}),
    "comfyui": ("comfyui", {}),
    "legacy": ("comfyui", {"style": "legacy"}),
    "gguf": ("gguf", {}),
    "sdnq": ("diffusers", {"style": "sdnq"}),
    "torchao": ("diffusers", {"style": "torchao", "activations": "none"}),
    "dynamic": ("diffusers", {"style": "torchao", "activations": "dynamic"}),
    "bfl": ("diffusers", {"style": "bfl"}),
    "vllm_omni": ("vllm_omni", {}),
    "compressed": ("compressed_tensors", {}),
    "plain": ("plain", {}),
    "unquantized": ("diffusers", {"style": "unquantized"}),
}
ROUNDED = ("lightx2v", "sdnq", "plain")
"""What a scheme with float32 scales rounds to bf16 for, when it is told nothing."""

SCHEMES: Mapping[str, tuple[str, Mapping[str, Any], frozenset[str]]] = {
    "int8": (
        "int8",
        {},
        frozenset({"lightx2v", "comfyui", "sdnq", "torchao", "dynamic", "vllm_omni", "compressed", "plain"}),
    ),
    "fp8": ("fp8", {}, frozenset({"lightx2v", "sdnq", "torchao", "bfl", "compressed", "plain"})),
    "fp8 of the tensor": (
        "fp8",
        {"per_channel": False},
        frozenset({"lightx2v", "comfyui", "legacy", "compressed", "plain"}),
    ),
    "mxfp4": ("mxfp4", {}, frozenset({"lightx2v", "compressed", "plain"})),
    "mxfp6": ("mxfp6", {}, frozenset({"lightx2v", "plain"})),
    "mxfp8": ("mxfp8", {}, frozenset({"lightx2v", "comfyui", "compressed", "plain"})),
    "nvfp4": ("nvfp4", {}, frozenset({"lightx2v", "comfyui", "compressed", "plain"})),
    "q8_0": ("q8_0", {}, frozenset({"gguf", "plain"})),
    "q4_1": ("q4_1", {}, frozenset({"gguf", "plain"})),
    "q4_k": ("q4_k", {}, frozenset({"gguf", "plain"})),
}
"""Scheme -> method, options, the dresses that hold it."""

HAVE_PRECISION = ("int8", "fp8", "fp8 of the tensor")


def exact(scheme: str, dress: str) -> bool:
    """Whether a conversion leaves float32 scales there with all their bits; LightX2V is no place for such."""
    if scheme == "fp8 of the tensor" and dress in ("compressed", "plain"):
        return False  # of one scale for the whole weight only ComfyUI is said to want all bits
    return scheme in HAVE_PRECISION and dress not in ROUNDED


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_synthetic(folder, SyntheticCheckpoint(TINY.inventory("BF16"), WanDit().synthetic().config), shards=1)
    return folder


def convert(source: Path, output: Path, dress: str, registry: Registry, scheme: str = "") -> Path:
    method, options, _ = SCHEMES.get(scheme, ("none", {}, ()))
    target, style = DRESSES[dress]
    recipe = {
        "source": {"path": str(source)},
        "quantization": {"method": method, "options": dict(options)},
        "target": {"format": target, "options": dict(style)},
        "output": {"path": str(output)},
        "performance": {"device": "cpu", "num_workers": 1},
    }
    converter_core.convert(recipe, registry=registry)
    return output


def contents(folder: Path) -> dict[str, Any]:
    """Every tensor by key, and what stands beside the weights."""
    found: dict[str, Any] = {}
    for file in folder.glob("*.safetensors"):
        for key, tensor in load_file(file).items():
            found[key] = tensor.dtype, tuple(tensor.shape), bytes(raw(tensor))
    for file in folder.glob("*.gguf"):
        for one in gguf.GGUFReader(file).tensors:
            found[one.name] = one.tensor_type, tuple(one.shape), one.data.tobytes()
    config = folder / "config.json"
    return {**found, "config.json": json.loads(config.read_text()) if config.exists() else None}


def is_linear(key: str) -> bool:
    return key.startswith("blocks.") and key.endswith(".weight") and "norm" not in key


def pairs() -> Iterator[tuple[str, str, str]]:
    for scheme, (_, _, holders) in SCHEMES.items():
        for first, second in product(DRESSES, DRESSES):
            if first in holders:
                yield scheme, first, second


def sample() -> list[tuple[str, str, str]]:
    """Each dress of some schemes, to the next one that holds it."""
    found = [("fp8 of the tensor", "compressed", "lightx2v"), ("q4_k", "gguf", "plain"), ("q8_0", "plain", "gguf")]
    for scheme in ("int8", "fp8", "mxfp8", "nvfp4"):
        holders = SCHEMES[scheme][2]
        ring = [dress for dress in DRESSES if dress in holders]
        found += [(scheme, one, ring[(number + 1) % len(ring)]) for number, one in enumerate(ring)]
    return found


def check(scheme: str, first: str, second: str, source: Path, folder: Path, registry: Registry) -> None:
    start = convert(source, folder / "start", first, registry, scheme)
    seen = converter_core.inspect(start, registry).quantized
    assert seen is not None
    assert (seen.target, SCHEMES[scheme][0] in seen.formats) == (DRESSES[first][0], True)
    refused = second not in SCHEMES[scheme][2] or (second == "lightx2v" and exact(scheme, first))
    if refused:
        with pytest.raises(ConverterError) as caught:
            convert(start, folder / "there", second, registry)
        told = "\n".join(caught.value.problems)
        assert "give the original checkpoint" in told
        assert "source.dequantize: true" in told
        return
    there = convert(start, folder / "there", second, registry)
    report = converter_core.verify(there, start, registry=registry)
    assert report.ok, report.problems
    back = convert(there, folder / "back", first, registry)
    one, other = contents(back), contents(start)
    if first != second == "gguf":  # it wants biases and the like in float32, whatever they were
        one, other = ({key: made[key] for key in made if is_linear(key)} for made in (one, other))
        assert len(one) == 10
    assert [key for key in one if one[key] != other.get(key)] == []
    assert one.keys() == other.keys()


@pytest.mark.parametrize(("scheme", "first", "second"), sample())
def test_to_the_next_dress_and_back(
    scheme: str, first: str, second: str, source: Path, tmp_path: Path, registry: Registry
) -> None:
    check(scheme, first, second, source, tmp_path, registry)


@pytest.mark.parametrize(
    ("scheme", "first", "second"),
    [
        ("int8", "torchao", "lightx2v"),
        ("fp8", "bfl", "lightx2v"),
        ("fp8", "torchao", "dynamic"),
        ("nvfp4", "compressed", "gguf"),
    ],
)
def test_what_the_other_dress_cannot_hold(
    scheme: str, first: str, second: str, source: Path, tmp_path: Path, registry: Registry
) -> None:
    check(scheme, first, second, source, tmp_path, registry)


@pytest.mark.soak
@pytest.mark.parametrize(("scheme", "first", "second"), list(pairs()))
def test_every_pair(scheme: str, first: str, second: str, source: Path, tmp_path: Path, registry: Registry) -> None:
    check(scheme, first, second, source, tmp_path, registry)


@pytest.mark.parametrize(
    ("scheme", "dress"),
    [("fp8", "bfl"), ("int8", "torchao"), ("int8", "vllm_omni"), ("nvfp4", "compressed"), ("", "unquantized")],
)
def test_verified_without_a_manifest(scheme: str, dress: str, source: Path, tmp_path: Path, registry: Registry) -> None:
    """Names and style are found by the files alone; a changed tensor is found, too."""
    folder = convert(source, tmp_path / "o", dress, registry, scheme)
    (folder / next(folder.glob("*manifest*")).name).unlink()
    report = converter_core.verify(folder, source, registry=registry)
    assert report.ok, report.problems
    (file,) = folder.glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    key = next(key for key in tensors if key.endswith("patch_embedding.bias"))
    tensors[key][0] += 1
    save_file(tensors, file, metadata)
    (problem,) = converter_core.verify(folder, source, registry=registry).problems
    assert problem.tensor == key


def test_outputs_of_unlike_names_are_compared(source: Path, tmp_path: Path, registry: Registry) -> None:
    one = convert(source, tmp_path / "one", "lightx2v", registry, "int8")
    other = convert(source, tmp_path / "other", "torchao", registry, "int8")
    reports = [converter_core.verify(folder, source, registry=registry) for folder in (one, other)]
    found = pairs_of(*reports)
    assert len(found) == 10
    for name, (first, second) in found.items():
        assert first is not None
        assert second is not None
        assert (first.name, second.name) == (name, WanDit().rename(name, "diffusers"))
