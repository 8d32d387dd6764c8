"""A model as a table of its tensors: their names in every key format, their shapes by dimension, their kinds.

Names, shapes, checks and made-up checkpoints follow from the rows. ``TableModel`` is the adapter over them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from ..errors import PluginError, unknown
from .values import TensorSpec

Axis = int | str
"""A length: a number, a dimension (``dim``), or a multiple of one (``6*dim``)."""

PREFIXES = (
    "model.diffusion_model.",
    "diffusion_model.",
    "model.",
    "module.",
    "transformer.",
    "pipe.dit.",
    "dit.",
    "generator.model.",
    "generator.",
    "net.",
    "_orig_mod.",
)
"""What tools and trainers put before every key of a diffusion transformer, one of them or several in a row."""

COMPONENTS = (
    "first_stage_model.",
    "vae.",
    "text_encoders.",
    "text_encoder.",
    "cond_stage_model.",
    "conditioner.",
    "image_encoder.",
    "clip_vision.",
    "clip.",
    "t5.",
)
"""What other models' keys begin with where one file holds a whole pipeline."""

_COMPANION = re.compile(r"(.+\.weight)_[a-z_]+")


@dataclass(frozen=True)
class Row:
    """One tensor, or one of every block where its name holds ``{}``, which stands for the block's number.

    name: in the first key format of the table. also: in the others, in their order; empty: the same in all.
    kind: as of ``WeightInfo``. module: empty: the first name inside the block.
    branch: what a model must have to have it, e.g. ``image``; every branch is whole or not there.
    only_first: only the first block has it. only: the one key format that has such a tensor, e.g. a fused projection;
    ``name`` is then in that format.
    """

    name: str
    shape: tuple[Axis, ...]
    kind: str = "other"
    module: str = ""
    also: tuple[str, ...] = ()
    branch: str = ""
    only_first: bool = False
    only: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.also)

    def spelt(self, number: int) -> str:
        """In the key format of that number."""
        return self.names[number] if self.also else self.name

    @property
    def stack(self) -> str:
        """``blocks.{}.``; empty outside the blocks."""
        head, number, _ = self.name.partition("{}.")
        return head + number if number else ""

    @property
    def group(self) -> str:
        """What ``target_modules`` selects it by."""
        return self.module or self.name[len(self.stack) :].partition(".")[0]


def linear(
    name: str,
    rows: Axis,
    columns: Axis,
    *,
    also: tuple[str, ...] = (),
    kind: str = "linear",
    module: str = "",
    branch: str = "",
    bias: bool = True,
) -> Iterator[Row]:
    """The weight ``[rows, columns]`` of a linear layer, and its bias. Names without ``.weight``."""
    yield Row(f"{name}.weight", (rows, columns), kind, module, tuple(f"{one}.weight" for one in also), branch)
    if bias:
        yield Row(f"{name}.bias", (rows,), "bias", module, tuple(f"{one}.bias" for one in also), branch)


def norm(
    name: str, size: Axis, *, also: tuple[str, ...] = (), module: str = "", branch: str = "", bias: bool = False
) -> Iterator[Row]:
    """The weight ``[size]`` of a norm, and its bias. Names without ``.weight``."""
    for part in ("weight", "bias") if bias else ("weight",):
        yield Row(f"{name}.{part}", (size,), "norm", module, tuple(f"{one}.{part}" for one in also), branch)


@dataclass(frozen=True)
class Size:
    """One model of a table. What ``dims`` and ``blocks`` do not name may be any.

    dims: lengths by name. blocks: stack -> how many. branches: what it has. optional: branches that it may have.
    """

    dims: Mapping[str, int]
    blocks: Mapping[str, int]
    branches: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()


class Known(NamedTuple):
    """A key of a table. block: its number, or empty. key_format: empty where all say the same."""

    row: Row
    block: str
    key_format: str
    prefix: str

    @property
    def name(self) -> str:
        """In the first key format, without prefix."""
        return self.row.name.format(self.block)


class Table:
    """Rows in the order of the model's state dict; those of a stack stand together.

    key_formats: what ``Row.name`` and ``Row.also`` are. prefixes: what may stand before every key.
    implied: branch -> one that models with it have too.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        key_formats: tuple[str, ...] = ("original",),
        *,
        prefixes: tuple[str, ...] = PREFIXES,
        implied: Mapping[str, str] | None = None,
    ) -> None:
        self.rows = tuple(rows)
        self.key_formats = key_formats
        self.implied = implied or {}
        self.outside = tuple(row for row in self.rows if not row.stack)
        stacks = dict.fromkeys(row.stack for row in self.rows if row.stack)
        self.stacks = {stack: tuple(row for row in self.rows if row.stack == stack) for stack in stacks}
        self._by_name = [
            {row.spelt(number): row for row in self.rows if row.only in ("", key_format)}
            for number, key_format in enumerate(key_formats)
        ]
        self._named = {name: row for rows in reversed(self._by_name) for name, row in rows.items()}
        self._formats = {
            name: "" if not row.only and set(row.names) == {name} else self._format_of(name)
            for name, row in self._named.items()
        }
        heads = {name.partition("{}")[0] for row in self.rows for name in row.names if "{}" in name}
        ordered = "|".join(map(re.escape, sorted(heads, key=len, reverse=True)))
        self._numbered = re.compile(f"({ordered})(0|[1-9][0-9]{{0,5}})\\.") if heads else None
        self._prefix = re.compile(f"(?:{'|'.join(map(re.escape, prefixes))})*") if prefixes else re.compile("")

    def parse(self, key: str) -> Known | None:
        """None for a key that is not in the table."""
        prefix = ""
        template, block = self._template(key)
        if template not in self._named:
            prefix = self.prefix_of(key)
            template, block = self._template(key[len(prefix) :])
        row = self._named.get(template)
        return None if row is None else Known(row, block, self._formats[template], prefix)

    def _format_of(self, name: str) -> str:
        """The first key format with such a name."""
        return next(
            key_format for key_format, rows in zip(self.key_formats, self._by_name, strict=True) if name in rows
        )

    def prefix_of(self, key: str) -> str:
        match = self._prefix.match(key)
        return match[0] if match else ""

    def bare(self, key: str) -> str:
        """A key beyond the table, as it is called in the output."""
        return key[len(self.prefix_of(key)) :]

    def block_of(self, name: str) -> str:
        """Number of the block, empty outside the blocks."""
        return self._template(name)[1]

    def is_companion(self, key: str) -> bool:
        """Whether a key is something quantization put beside a linear weight, e.g. ``blocks.0.ffn.0.weight_scale``."""
        match = _COMPANION.fullmatch(key)
        known = self.parse(match[1]) if match else None
        return known is not None and known.row.kind == "linear"

    def rename(self, name: str, key_format: str) -> str:
        """A name as ``WeightInfo`` has it, in another key format; names beyond the table stay.

        PluginError for an unknown key format, and for one that has no such tensor.
        """
        if key_format not in self.key_formats:
            raise PluginError(unknown("key format", key_format, self.key_formats))
        template, block = self._template(name)
        row = self._named.get(template)
        if row is not None and row.only not in ("", key_format):
            raise PluginError(
                f"{name} is of the {row.only} key format and has no name in {key_format}; "
                f"give the checkpoint in its {key_format} form"
            )
        return row.spelt(self.key_formats.index(key_format)).format(block) if row else name

    def inventory(self, size: Size, dtype: str = "F32", key_format: str | None = None) -> dict[str, TensorSpec]:
        """Every tensor of a model by its name, in the order of the state dict. key_format: the first if None."""
        wanted = key_format or self.key_formats[0]
        specs: dict[str, TensorSpec] = {}
        for stack, rows in groupby(self.rows, key=lambda row: row.stack):
            present = [row for row in rows if has(size.branches, row) and row.only in ("", wanted)]
            for number in range(size.blocks.get(stack, 0) if stack else 1):
                for row in present:
                    if not (row.only_first and number):
                        lengths = (length(axis, size.dims) for axis in row.shape)
                        name = row.spelt(self.key_formats.index(wanted)).format(number)
                        specs[name] = TensorSpec(dtype, tuple(lengths))
        return specs

    def _template(self, key: str) -> tuple[str, str]:
        match = self._numbered.match(key) if self._numbered else None
        return (f"{match[1]}{{}}.{key[match.end() :]}", match[2]) if match else (key, "")


def has(branches: Collection[str], row: Row) -> bool:
    return not row.branch or row.branch in branches


def split(axis: str) -> tuple[int, str]:
    """``6*dim`` -> (6, ``dim``); ``dim`` -> (1, ``dim``)."""
    factor, _, dimension = axis.rpartition("*")
    return int(factor or 1), dimension


def length(axis: Axis, dims: Mapping[str, int]) -> int:
    """KeyError where ``dims`` lacks the dimension."""
    if isinstance(axis, int):
        return axis
    factor, dimension = split(axis)
    return factor * dims[dimension]
