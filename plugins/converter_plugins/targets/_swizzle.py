"""The order in which Blackwell's block-scaled GEMMs read scales: tiles of 128 rows by 4 blocks, 512 bytes each.

NVIDIA's 128x4 block-scale layout (cuBLAS "1D block scaling factors layout", CUTLASS ``Sm1xxBlockScaledConfig``). The
scale of row m and block k stands at byte

    (m // 128) * tiles * 512 + (k // 4) * 512 + (m % 32) * 16 + (m % 128 // 32) * 4 + k % 4

with ``tiles = ceil(blocks / 4)``. Both dimensions are padded with zero bytes; the two-dimensional shape of the result
is nominal.
"""

from __future__ import annotations

from torch import Tensor

ROWS = 128
BLOCKS = 4


def tiled_shape(rows: int, blocks: int) -> tuple[int, int]:
    """``[rows, blocks]`` padded to whole tiles."""
    return -(-rows // ROWS) * ROWS, -(-blocks // BLOCKS) * BLOCKS


def swizzle(scale: Tensor) -> Tensor:
    """``[rows, blocks]`` uint8 -> ``tiled_shape`` uint8. 128 rows stay 128 rows, so slabs of them can be joined."""
    rows, blocks = scale.shape
    height, width = tiled_shape(rows, blocks)
    if (height, width) != (rows, blocks):
        padded = scale.new_zeros((height, width))
        padded[:rows, :blocks] = scale
        scale = padded
    tiles = scale.reshape(height // ROWS, 4, 32, width // BLOCKS, BLOCKS)
    return tiles.permute(0, 3, 2, 1, 4).reshape(height, width)


def unswizzle(tiled: Tensor, rows: int, blocks: int) -> Tensor:
    """The inverse, without the padding: uint8 ``[rows, blocks]``."""
    height, width = tiled.shape
    tiles = tiled.reshape(height // ROWS, width // BLOCKS, 32, 4, BLOCKS)
    return tiles.permute(0, 3, 2, 1, 4).reshape(height, width)[:rows, :blocks]
