"""What a checkpoint holds of a Wan transformer, and what is wrong with it.

The structure is read off the tensors themselves: every tensor votes for the dimensions that its shape shows, so one
odd tensor neither hides nor shifts the blame to the others.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from converter_core.specs import FLOATING, TensorSpec

from ._wan_inventory import BLOCKS, HEAD_OF_MODEL, TAIL_OF_MODEL, VARIANTS, Row, length, split
from ._wan_names import Known, bare, is_companion, parse, rename

SHOWN = 4
"""Tensors that a message names before it only counts."""


class Survey:
    """known: the keys of the inventory. extra: the others, without those that quantization adds to a weight.

    dims: what could be read off the shapes; a dimension that no tensor shows is absent.
    """

    def __init__(self, tensors: Mapping[str, TensorSpec]) -> None:
        parsed = {key: parse(key) for key in tensors}
        self.tensors = tensors
        self.known: dict[str, Known] = {key: known for key, known in parsed.items() if known is not None}
        self.extra = [key for key, known in parsed.items() if known is None and not is_companion(key)]
        self.keys: dict[str, list[str]] = defaultdict(list)
        for key, found in parsed.items():
            self.keys[found.name if found else bare(key)].append(key)
        self.dims = _vote(self.known, tensors)
        self.blocks: list[int] = sorted({int(known.block) for known in self.known.values() if known.block})
        self.num_layers = self.blocks[-1] + 1 if self.blocks else 0
        branches = {known.row.branch for known in self.known.values()}
        self.flf = "flf" in branches
        self.image = self.flf or "image" in branches
        self.naming = _most(known.naming for known in self.known.values() if known.naming) or "original"
        self.prefix = _most(known.prefix for known in self.known.values()) or ""

    @property
    def is_wan(self) -> bool:
        """A modulation table, and what it modulates: together they occur in no other model of this naming."""
        rows = {known.row.name for known in self.known.values()}
        return any(name.endswith("modulation") for name in rows) and bool(
            rows & {"patch_embedding.weight", "blocks.{}.self_attn.q.weight"}
        )

    def variant(self) -> str:
        for name, structure in VARIANTS.items():
            dims = all(self.dims.get(dim) == getattr(structure, dim) for dim in ("dim", "ffn_dim", "in_dim"))
            branches = (self.image, self.flf) == (structure.image, structure.flf)
            if dims and branches and self.num_layers == structure.num_layers:
                return name
        return "unknown"

    def problems(self) -> Iterator[str]:
        yield from self._twice()
        yield from self._missing()
        yield from self._misshapen()

    def spell(self, name: str) -> str:
        """An original name as this checkpoint would spell it."""
        return self.prefix + rename(name, self.naming)

    def _expected(self, rows: Iterable[Row]) -> Iterator[Row]:
        branches = {"": True, "image": self.image, "flf": self.flf}
        return (row for row in rows if branches[row.branch])

    def _twice(self) -> Iterator[str]:
        twice = [f"{name} (as {' and as '.join(keys)})" for name, keys in self.keys.items() if len(keys) > 1]
        if twice:
            yield (
                f"{_tensors(len(twice))} there more than once, in different spellings: {_some(twice)}; "
                "keep only one of the files"
            )

    def _missing(self) -> Iterator[str]:
        outside = [row.name for row in self._expected((*HEAD_OF_MODEL, *TAIL_OF_MODEL)) if row.name not in self.keys]
        if outside:
            names = [self.spell(name) for name in outside]
            yield f"missing {_tensors(len(names))} outside the blocks: {_some(names)}; is a shard missing?"
        if not self.blocks:
            yield f"there is no block at all (no {self.spell('blocks.0.self_attn.q.weight')}); is a shard missing?"
        holes = [
            (before + 1, after - 1)
            for before, after in zip([-1, *self.blocks], self.blocks, strict=False)
            if after - before > 1
        ]
        if holes:
            yield (
                f"missing every tensor of {_blocks(holes)}, while there are blocks up to {self.blocks[-1]}; "
                "is a shard missing?"
            )
        rows = list(self._expected(BLOCKS))
        lacking: dict[tuple[Row, ...], list[int]] = defaultdict(list)
        for block in self.blocks:
            lacking[tuple(row for row in rows if row.name.format(block) not in self.keys)].append(block)
        for absent, blocks in lacking.items():
            if absent:
                names = [self.spell(row.name.format(blocks[0])) for row in absent]
                each = "each of " if len(blocks) > 1 else ""
                yield (
                    f"missing {len(absent)} of the {_tensors(len(rows))} of {each}{_blocks(_runs(blocks))}: "
                    f"{_some(names)}; is a shard missing?"
                )

    def _misshapen(self) -> Iterator[str]:
        wrong = []
        for key, known in self.known.items():
            spec = self.tensors[key]
            # a quantized weight may be packed: several elements to a byte
            if spec.dtype in FLOATING and not _fits(spec.shape, known.row, self.dims):
                expected = ", ".join(str(_shown(axis, self.dims)) for axis in known.row.shape)
                wrong.append(f"{key} has the shape {list(spec.shape)}, expected [{expected}]")
        yield from wrong[: 2 * SHOWN]
        if len(wrong) > 2 * SHOWN:
            yield f"{len(wrong) - 2 * SHOWN} more tensors have an unexpected shape"


def _vote(known: Mapping[str, Known], tensors: Mapping[str, TensorSpec]) -> dict[str, int]:
    votes: dict[str, Counter[int]] = defaultdict(Counter)
    for key, found in known.items():
        shape = tensors[key].shape
        if len(shape) != len(found.row.shape):
            continue
        for axis, size in zip(found.row.shape, shape, strict=True):
            if isinstance(axis, str):
                factor, dimension = split(axis)
                if size % factor == 0:
                    votes[dimension][size // factor] += 1
    return {dimension: counter.most_common(1)[0][0] for dimension, counter in votes.items()}


def _fits(shape: Sequence[int], row: Row, dims: Mapping[str, int]) -> bool:
    return len(shape) == len(row.shape) and all(
        size == _shown(axis, dims) for axis, size in zip(row.shape, shape, strict=True)
    )


def _shown(axis: int | str, dims: Mapping[str, int]) -> int | str:
    try:
        return length(axis, dims)
    except KeyError:
        return axis


def _most(values: Iterable[str]) -> str | None:
    ranked = Counter(values).most_common(1)
    return ranked[0][0] if ranked else None


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _blocks(runs: Sequence[tuple[int, int]]) -> str:
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    single = len(runs) == 1 and runs[0][0] == runs[0][1]
    return f"block {text}" if single else f"blocks {text}"


def _tensors(count: int) -> str:
    return "1 tensor" if count == 1 else f"{count} tensors"


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
