"""Keys of Wan checkpoints: which tensor a key means, and what a tensor is called in each key format."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from converter_core.api import PluginError, unknown

from ._wan_inventory import BLOCK, ROWS, STACKS, Row

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
"""What tools and trainers put before every key of the transformer, one of them or several in a row."""

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

KEY_FORMATS = ("original", "diffusers")

_ORIGINAL: Mapping[str, Row] = {row.name: row for row in ROWS}
_DIFFUSERS: Mapping[str, Row] = {row.diffusers: row for row in ROWS}
_PREFIX = re.compile(f"(?:{'|'.join(map(re.escape, PREFIXES))})*")
_NUMBERED = re.compile(f"({'|'.join(re.escape(stack.partition('{}')[0]) for stack in STACKS)})(0|[1-9][0-9]{{0,5}})\\.")
_COMPANION = re.compile(r"(.+\.weight)_[a-z_]+")
_SHARED_WITH_T5 = f"{BLOCK}norm2.weight"


class Known(NamedTuple):
    """A key of the inventory. key_format: empty where both say the same."""

    row: Row
    block: str
    key_format: str
    prefix: str

    @property
    def name(self) -> str:
        return self.row.name.format(self.block)


def parse(key: str) -> Known | None:
    """None for a key that is not in the inventory."""
    prefix = prefix_of(key)
    template, block = _template(key[len(prefix) :])
    original, diffusers = _ORIGINAL.get(template), _DIFFUSERS.get(template)
    if original is not None:
        return Known(original, block, "" if diffusers is original else "original", prefix)
    if diffusers is not None:
        return Known(diffusers, block, "diffusers", prefix)
    return None


def prefix_of(key: str) -> str:
    match = _PREFIX.match(key)
    return match[0] if match else ""


def bare(key: str) -> str:
    """A key beyond the inventory, as it is called in the output."""
    return key[len(prefix_of(key)) :]


def is_foreign(key: str, prefix: str) -> bool:
    """Whether a key beyond the inventory belongs to another model. prefix: that of this model's keys."""
    return not key.startswith(prefix) or key.startswith(COMPONENTS)


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

    Not so ``blocks.N.norm2.weight``: this model's in the diffusers key format, and that of the T5 encoder that comes
    with Wan.
    """
    if _template(key)[0] == _SHARED_WITH_T5:
        return False
    return parse(key) is not None or is_companion(key)


def rename(name: str, key_format: str) -> str:
    """An original name in another key format; names beyond the inventory stay."""
    if key_format not in KEY_FORMATS:
        raise PluginError(unknown("key format", key_format, KEY_FORMATS))
    template, block = _template(name)
    row = _ORIGINAL.get(template)
    return row.diffusers.format(block) if row is not None and key_format == "diffusers" else name


def _template(key: str) -> tuple[str, str]:
    match = _NUMBERED.match(key)
    return (f"{match[1]}{{}}.{key[match.end() :]}", match[2]) if match else (key, "")
