"""Write made-up checkpoints: seeded weights for demonstrations and tests, and bare headers of full size for plans."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from ..api.containers import Container
from ..api.formats import UNQUANTIZED
from ..api.targets import INDEX_STEM as STEM
from ..api.tensors import raw, torch_dtype
from ..api.values import FLOATING, FileLayout, OutputTensor, PlannedWeight, SyntheticCheckpoint, TensorSpec, WeightInfo
from ..plugins.registry import load_plugins

_TOKENIZER = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "padding_side": "right"}


def write_synthetic(
    folder: str | Path,
    sample: SyntheticCheckpoint,
    *,
    dtype: str = "BF16",
    shards: int = 3,
    seed: int = 0,
    rename: Callable[[str], str] | None = None,
    container: Container | None = None,
) -> list[Path]:
    """A checkpoint as it is downloaded: shards that cut blocks anywhere, index, config.json, a tokenizer's file.

    Values depend on ``seed`` and on a tensor's name in the sample alone, not on shards or ``rename``. Matrices are
    gaussian with rows of different scale and a few outliers, 1-D weights (norms) near 1, the rest small.
    dtype: of every floating tensor. shards: 1 writes a single file without an index. container: None: the installed
    default. Returns the weight files.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    names: dict[str, str] = {}
    specs: dict[str, TensorSpec] = {}
    for name, spec in sample.tensors.items():
        key = rename(name) if rename else name
        names[key] = name
        specs[key] = TensorSpec(dtype, spec.shape) if spec.dtype in FLOATING else spec
    paths = []
    for path, placed in _shards(root, specs, shards, container or _default()):
        paths.append(path)
        with open(path, "wb") as file:
            file.write(placed.header)
            for key in placed.offsets:
                values = _values(names[key], specs[key].shape, seed).to(torch_dtype(specs[key].dtype))
                file.seek(placed.offsets[key])
                file.write(raw(values))
    if sample.config:
        _write_json(root / "config.json", sample.config)
    (root / "tokenizer").mkdir(exist_ok=True)
    _write_json(root / "tokenizer" / "tokenizer_config.json", _TOKENIZER)
    return paths


def write_headers_only(folder: str | Path, tensors: Mapping[str, TensorSpec], shards: int = 7) -> list[Path]:
    """The same files without data: sparse, of full length, so that any model can be planned on any disk.

    Returns the weight files.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    paths = []
    for path, placed in _shards(root, tensors, shards, _default()):
        paths.append(path)
        with open(path, "wb") as file:
            file.write(placed.header)
            file.truncate(placed.size)
    return paths


def _default() -> Container:
    containers = load_plugins().containers
    return containers[containers.default()]()


def _shards(
    root: Path, specs: Mapping[str, TensorSpec], shards: int, container: Container
) -> list[tuple[Path, FileLayout]]:
    """Cut by the number of tensors, regardless of what belongs together; the index is written here."""
    keys = list(specs)
    count = max(1, min(shards, len(keys)))
    cuts = [number * len(keys) // count for number in range(count + 1)]
    files: list[tuple[Path, FileLayout]] = []
    weight_map: dict[str, str] = {}
    for number, (begin, end) in enumerate(pairwise(cuts), 1):
        name = f"{STEM}-{number:05d}-of-{count:05d}" if count > 1 else STEM
        path = root / f"{name}{container.suffixes[0]}"
        planned = [_planned(key, specs[key]) for key in keys[begin:end]]
        files.append((path, container.place(planned, container.metadata)))
        weight_map |= dict.fromkeys(keys[begin:end], path.name)
    if count > 1 and container.index_suffixes:
        total = sum(spec.nbytes for spec in specs.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(root / f"{STEM}{container.index_suffixes[0]}", index)
    return files


def _planned(key: str, spec: TensorSpec) -> PlannedWeight:
    return PlannedWeight(WeightInfo(key, {}), key, spec, UNQUANTIZED, (OutputTensor(key, "weight", spec),))


def _values(name: str, shape: Sequence[int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
    values = _bell(shape, generator)
    if len(shape) < 2:
        return 1 + 0.1 * values if name.endswith(".weight") else 0.02 * values
    rows = values.view(shape[0], -1)
    scale = torch.randint(4, 24, (shape[0], 1), generator=generator) / 8  # as rows of real weights differ in size
    rows.mul_(scale / math.sqrt(rows.shape[1]))
    outliers = max(1, values.numel() // 4096)
    rows.view(-1)[torch.randint(values.numel(), (outliers,), generator=generator)] *= 8
    return values


def _bell(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Near normal, of unit variance: sums of four whole numbers, so that every machine makes the same bytes.

    ``torch.randn`` goes through logarithms and cosines, which differ in the last bit from one processor to another.
    """
    total = torch.zeros(tuple(shape), dtype=torch.int32)
    for _ in range(4):
        total += torch.randint(-32767, 32768, tuple(shape), generator=generator, dtype=torch.int32)
    return total.to(torch.float32) / (32767 * 2 / math.sqrt(3))


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
