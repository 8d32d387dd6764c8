"""What a dry run is given and what it finds: specs, and how outputs grow with the rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..api.values import TensorSpec

# The first arithmetic on meta tensors imports torch._dynamo (1 s, 71 MiB with torch 2.13): only where zeros would be
# large, which happens to whole-weight quantizers alone.


@dataclass(frozen=True)
class SourceSpec:
    """A source of a weight, or an input beside it, as the dry run sees it."""

    spec: TensorSpec
    by_rows: bool


@dataclass(frozen=True)
class OutputSchema:
    """What one quantizer and target make of weights of one shape.

    spec: of the assembled weight. row_block: slabs are multiples of this many rows; None: the weight stays whole.
    two_pass: the quantizer observes the whole weight first. heights: part that grows with the rows -> its rows for each
    row block of the quantizer. outputs: role -> spec, and the bytes each full row block adds (0: the same from every
    slab, written once).
    """

    spec: TensorSpec
    row_block: int | None
    two_pass: bool
    outputs: Mapping[str, tuple[TensorSpec, int]]
    heights: Mapping[str, int] = field(default_factory=dict)


def common_row_block(*blocks: int | None) -> int | None:
    """The least number of rows that suits all; None if one of them wants whole weights."""
    return math.lcm(*(block for block in blocks if block)) if all(blocks) else None
