"""Keys of Wan checkpoints: which tensor a key means, and what a tensor is called in each naming."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from converter_core.errors import PluginError, unknown

from ._wan_inventory import BLOCK, ROWS, Row

PREFIX = "model.diffusion_model."
"""What ComfyUI-style checkpoints put before every key of the transformer."""

DIALECTS = ("original", "diffusers")

_ORIGINAL: Mapping[str, Row] = {row.name: row for row in ROWS}
_DIFFUSERS: Mapping[str, Row] = {row.diffusers: row for row in ROWS}
_NUMBERED = re.compile(r"blocks\.(0|[1-9][0-9]{0,5})\.")
_COMPANION = re.compile(r"(.+\.weight)_[a-z_]+")
_SHARED_WITH_T5 = f"{BLOCK}norm2.weight"


class Known(NamedTuple):
    """A key of the inventory. naming: empty where both namings say the same."""

    row: Row
    block: str
    naming: str
    prefix: str

    @property
    def name(self) -> str:
        return self.row.name.format(self.block)


def parse(key: str) -> Known | None:
    """None for a key that is not in the inventory."""
    prefix = PREFIX if key.startswith(PREFIX) else ""
    template, block = _template(key[len(prefix) :])
    original, diffusers = _ORIGINAL.get(template), _DIFFUSERS.get(template)
    if original is not None:
        return Known(original, block, "" if diffusers is original else "original", prefix)
    if diffusers is not None:
        return Known(diffusers, block, "diffusers", prefix)
    return None


def bare(key: str) -> str:
    """A key beyond the inventory, as it is called in the output."""
    return key.removeprefix(PREFIX)


def block_of(name: str) -> str:
    """Number of the block, empty outside the blocks."""
    return _template(name)[1]


def is_companion(key: str) -> bool:
    """Whether a key is something quantization put beside a linear weight, e.g. ``blocks.0.ffn.0.weight_scale``."""
    match = _COMPANION.fullmatch(key)
    known = parse(match[1]) if match else None
    return known is not None and known.row.kind == "linear"


def is_telling(key: str) -> bool:
    """Whether a key can only be of this model.

    Not so ``blocks.N.norm2.weight``: this model's in diffusers naming, and the T5 encoder's that comes with Wan.
    """
    if _template(key)[0] == _SHARED_WITH_T5:
        return False
    return parse(key) is not None or is_companion(key)


def rename(name: str, dialect: str) -> str:
    """An original name in another naming; names beyond the inventory stay."""
    if dialect not in DIALECTS:
        raise PluginError(unknown("naming", dialect, DIALECTS))
    template, block = _template(name)
    row = _ORIGINAL.get(template)
    return row.diffusers.format(block) if row is not None and dialect == "diffusers" else name


def _template(key: str) -> tuple[str, str]:
    match = _NUMBERED.match(key)
    return (BLOCK + key[match.end() :], match[1]) if match else (key, "")
