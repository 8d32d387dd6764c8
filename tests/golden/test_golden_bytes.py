"""No change of structure may change a byte: digests of every weight file and index, recorded once and kept.

``python -m tests.golden.test_golden_bytes`` (from the root of the repository) records them anew; a changed digest is a
change of what the product writes and needs a line in the changelog.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import tempfile
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import converter_core
from converter_core.checkpoint.synthetic import write_synthetic
from converter_plugins.models.wan_dit import WanDit

DIGESTS = Path(__file__).with_name("digests.json")
SCHEMES = ("int8", "fp8", "mxfp4", "nvfp4")
LAYOUTS: Mapping[str, Mapping[str, Any]] = {
    "single_file": {},
    "by_block": {},
    "chunked": {"chunk_size": "1MiB"},
}
SOURCE_DTYPES = ("BF16", "F16", "F32")
OPTIONS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "int8": ({"scale_rule": "mse"}, {"per_channel": False}, {"symmetric": False}, {"target_modules": ["ffn"]}),
    "fp8": ({"scale_rule": "absmax"}, {"per_channel": False}),
    "mxfp4": ({"scale_rule": "rceil"}, {"scale_rule": "floor"}, {"scale_rule": "mse"}),
    "nvfp4": ({"scale_rule": "absmax"}, {"scale_rule": "four_over_six"}),
}
VERSION = "model-converter"


def cases() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name, source, recipe without source and output)."""
    for scheme, layout, dtype, numerics in product(SCHEMES, LAYOUTS, SOURCE_DTYPES, ("exact", "lightx2v")):
        yield (
            f"{scheme}-{layout}-{dtype}-{numerics}",
            dtype,
            {
                "quantization": {"method": scheme, "options": {"numerics": numerics}},
                "target": {"layout": layout, **LAYOUTS[layout]},
            },
        )
    for scheme, several in OPTIONS.items():
        for options in several:
            words = "-".join(f"{key}={value}" for key, value in options.items())
            recipe = {"quantization": {"method": scheme, "options": dict(options)}, "target": {"format": "plain"}}
            yield f"{scheme}-{words}", "F32", recipe
    for dtype, cast in product(SOURCE_DTYPES, ("keep", "bfloat16", "float16", "float32")):
        yield f"none-{dtype}-{cast}", dtype, {"target": {"dtype": cast, "layout": "by_block"}}
    yield "diffusers-int8", "diffusers", {"quantization": {"method": "int8"}, "target": {"layout": "chunked"}}
    mixed = {"method": "int8", "rules": [{"match": "*.ffn.*", "method": "mxfp4"}]}
    yield "mixed-plain", "BF16", {"quantization": mixed, "target": {"format": "plain", "layout": "by_block"}}


CASES = {name: (source, recipe) for name, source, recipe in cases()}


def write_source(folder: Path, source: str) -> Path:
    if source == "diffusers":
        write_synthetic(folder / source, WanDit().synthetic(), rename=lambda name: WanDit().rename(name, "diffusers"))
    else:
        write_synthetic(folder / source, WanDit().synthetic(), dtype=source)
    return folder / source


def digests_of(output: Path) -> dict[str, dict[str, str] | str]:
    """Weight files: of the header's entries and all data, and of the metadata without our version; others whole."""
    found: dict[str, dict[str, str] | str] = {}
    for path in sorted(output.iterdir()):
        if path.is_dir():
            continue
        content = path.read_bytes()
        if path.suffix == ".safetensors":
            (length,) = struct.unpack("<Q", content[:8])
            header = json.loads(content[8 : 8 + length])
            metadata = header.pop("__metadata__", {})
            metadata.pop(VERSION, None)
            entries = json.dumps(header).encode()
            found[path.name] = {
                "tensors": hashlib.sha256(entries + content[8 + length :]).hexdigest()[:32],
                "metadata": hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()[:32],
            }
        elif path.name.endswith(".index.json"):
            found[path.name] = hashlib.sha256(content).hexdigest()[:32]
    return found


def convert(source: Path, output: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    whole = {
        **recipe,
        "source": {"path": str(source)},
        "output": {"path": str(output), "name": "wan"},
        "performance": {"device": "cpu", "num_workers": 2},
    }
    converter_core.convert(whole)
    return digests_of(output)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("golden")
    return {source: write_source(folder, source) for source in sorted({source for source, _ in CASES.values()})}


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DIGESTS.read_text())
    return found


def test_sources_are_what_they_were(sources: dict[str, Path], recorded: dict[str, Any]) -> None:
    """Another torch may draw other random numbers: then the digests below say nothing of ours."""
    assert {name: digests_of(path) for name, path in sources.items()} == recorded["sources"]


@pytest.mark.parametrize("name", CASES)
def test_bytes_are_what_they_were(
    name: str, sources: dict[str, Path], recorded: dict[str, Any], tmp_path: Path
) -> None:
    source, recipe = CASES[name]
    assert convert(sources[source], tmp_path / "out", recipe) == recorded["outputs"][name]


def record() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        sources = {name: write_source(root, name) for name in sorted({source for source, _ in CASES.values()})}
        outputs = {
            name: convert(sources[source], root / "out" / name, recipe) for name, (source, recipe) in CASES.items()
        }
        found = {"sources": {name: digests_of(path) for name, path in sources.items()}, "outputs": outputs}
    DIGESTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(record())
