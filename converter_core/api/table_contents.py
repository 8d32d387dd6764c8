"""What a checkpoint holds of a model that is a table, and what is wrong with it.

The structure is read off the tensors themselves: every tensor votes for the dimensions that its shape shows, so one
odd tensor neither hides nor shifts the blame to the others.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

from .tables import COMPONENTS, Known, Row, Size, Table, has, length, split
from .values import FLOATING, TensorSpec

SHOWN = 4
"""Tensors that a message names before it only counts."""


class TableContents:
    """known: the keys of the table. extra: the others, without those that quantization adds to a weight.

    foreign: keys of other models in the same file (VAE, text encoder). dims: what could be read off the shapes; a
    dimension that no tensor shows is absent. stacks: the numbers of the blocks there are of each. branches: what it has
    of them.
    """

    def __init__(self, table: Table, tensors: Mapping[str, TensorSpec], ignored: tuple[str, ...] = ()) -> None:
        self.table = table
        self.tensors = tensors
        self.ignored = ignored
        self.known: dict[str, Known] = {}
        self._unknown: list[str] = []
        for key in tensors:
            known = table.parse(key)
            if known is None:
                self._unknown.append(key)
            else:
                self.known[key] = known

    @cached_property
    def prefix(self) -> str:
        return _most(known.prefix for known in self.known.values()) or ""

    @cached_property
    def foreign(self) -> list[str]:
        others = (*COMPONENTS, *self.ignored)
        return [key for key in self._unknown if not key.startswith(self.prefix) or key.startswith(others)]

    @cached_property
    def extra(self) -> list[str]:
        others = set(self.foreign)
        return [key for key in self._unknown if key not in others and not self.table.is_companion(key)]

    @cached_property
    def keys(self) -> Mapping[str, Sequence[str]]:
        """Name -> the keys that mean it."""
        others = set(self.foreign)
        found: dict[str, list[str]] = defaultdict(list)
        for key in self.tensors:
            if key in self.known:
                found[self.known[key].name].append(key)
            elif key not in others:
                found[self.table.bare(key)].append(key)
        return found

    @cached_property
    def dims(self) -> Mapping[str, int]:
        return _vote(self.known, self.tensors)

    @cached_property
    def stacks(self) -> Mapping[str, Sequence[int]]:
        return {stack: _numbers(self.known.values(), stack) for stack in self.table.stacks}

    @cached_property
    def branches(self) -> frozenset[str]:
        named = {known.row.branch for known in self.known.values()} - {""}
        implied = self.table.implied
        return frozenset({*named, *(implied[branch] for branch in named if branch in implied)})

    @cached_property
    def key_format(self) -> str:
        spellings = (known.key_format for known in self.known.values() if known.key_format)
        return _most(spellings) or self.table.key_formats[0]

    def layers(self, stack: str) -> int:
        return self.stacks[stack][-1] + 1 if self.stacks[stack] else 0

    def is_of(self, size: Size) -> bool:
        """Whether it is that model, by all that its tensors show."""
        return (
            all(self.dims.get(dim, wanted) == wanted for dim, wanted in size.dims.items())
            and size.branches <= self.branches <= size.branches | size.optional
            and all(
                self.layers(stack) == count
                for stack, count in size.blocks.items()
                if any(self._expected(self.table.stacks[stack]))
            )
        )

    def holds(self, *groups: Iterable[str]) -> bool:
        """Whether at least one row of each group is there, by their names."""
        names = {known.row.name for known in self.known.values()}
        return all(not names.isdisjoint(group) for group in groups)

    def problems(self) -> Iterator[str]:
        yield from self._twice()
        yield from self._missing()
        yield from self._misshapen()

    def spell(self, name: str) -> str:
        """A name of the first key format as this checkpoint would spell it."""
        return self.prefix + self.table.rename(name, self.key_format)

    def _expected(self, rows: Iterable[Row]) -> Iterator[Row]:
        return (row for row in rows if has(self.branches, row) and row.only in ("", self.key_format))

    def _twice(self) -> Iterator[str]:
        twice = [f"{name} (as {' and as '.join(keys)})" for name, keys in self.keys.items() if len(keys) > 1]
        if twice:
            yield (
                f"{_tensors(len(twice))} there more than once, in different spellings: {_some(twice)}; "
                "keep only one of the files"
            )

    def _missing(self) -> Iterator[str]:
        outside = [row.name for row in self._expected(self.table.outside) if row.name not in self.keys]
        if outside:
            names = [self.spell(name) for name in outside]
            yield f"missing {_tensors(len(names))} outside the blocks: {_some(names)}; is a shard missing?"
        for stack, blocks in self.stacks.items():
            expected = [row for row in self._expected(self.table.stacks[stack]) if not row.only_first]
            if expected and not blocks:
                example = next((row for row in expected if row.kind == "linear"), expected[0])
                yield (
                    f"there is no block{self._of(stack)} at all (no {self.spell(example.name.format(0))}); "
                    "is a shard missing?"
                )
            yield from self._holes(stack, blocks)
            yield from self._lacking(stack, blocks)

    def _holes(self, stack: str, blocks: Sequence[int]) -> Iterator[str]:
        holes = [
            (before + 1, after - 1) for before, after in zip([-1, *blocks], blocks, strict=False) if after - before > 1
        ]
        if holes:
            yield (
                f"missing every tensor of {self._blocks(holes, stack)}, while there are blocks up to {blocks[-1]}; "
                "is a shard missing?"
            )

    def _lacking(self, stack: str, blocks: Sequence[int]) -> Iterator[str]:
        rows = list(self._expected(self.table.stacks[stack]))
        lacking: dict[tuple[Row, ...], list[int]] = defaultdict(list)
        for block in blocks:
            wanted = (row for row in rows if not (row.only_first and block))
            lacking[tuple(row for row in wanted if row.name.format(block) not in self.keys)].append(block)
        for absent, where in lacking.items():
            if absent:
                names = [self.spell(row.name.format(where[0])) for row in absent]
                each = "each of " if len(where) > 1 else ""
                count = sum(not (row.only_first and where[0]) for row in rows)
                yield (
                    f"missing {len(absent)} of the {_tensors(count)} of {each}{self._blocks(_runs(where), stack)}: "
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

    def _of(self, stack: str) -> str:
        """Which stack, where it is not the first one."""
        return "" if stack == next(iter(self.stacks)) else f" of {stack.partition('.{}')[0]}"

    def _blocks(self, runs: Sequence[tuple[int, int]], stack: str) -> str:
        text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
        single = len(runs) == 1 and runs[0][0] == runs[0][1]
        return f"{'block' if single else 'blocks'} {text}{self._of(stack)}"


def _numbers(known: Iterable[Known], stack: str) -> list[int]:
    return sorted({int(found.block) for found in known if found.block and found.row.stack == stack})


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


def _tensors(count: int) -> str:
    return "1 tensor" if count == 1 else f"{count} tensors"


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
