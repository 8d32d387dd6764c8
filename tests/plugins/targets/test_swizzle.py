from __future__ import annotations

import pytest
import torch

from converter_plugins.targets._swizzle import swizzle, tiled_shape, unswizzle

SHAPES = [(128, 4), (256, 8), (384, 12), (1, 1), (130, 5), (128, 7), (64, 20), (320, 4)]


def numbered(rows: int, blocks: int) -> torch.Tensor:
    """No byte is zero, so that padding shows."""
    return (torch.arange(rows * blocks) % 251 + 1).to(torch.uint8).reshape(rows, blocks)


def slow(scale: torch.Tensor) -> bytes:
    """The index formula, one scale after the other."""
    rows, blocks = scale.shape
    tiles = (blocks + 3) // 4
    out = bytearray((rows + 127) // 128 * 128 * tiles * 4)
    for m in range(rows):
        for k in range(blocks):
            offset = (m // 128) * (tiles * 512) + (k // 4) * 512 + (m % 32) * 16 + ((m % 128) // 32) * 4 + (k % 4)
            out[offset] = int(scale[m, k])
    return bytes(out)


@pytest.mark.parametrize(
    ("row", "block", "offset"),
    [
        (0, 0, 0),
        (0, 3, 3),
        (1, 0, 16),
        (31, 0, 496),
        (32, 0, 4),
        (127, 3, 511),
        (0, 4, 512),
        (65, 6, 538),  # 512 + 1 * 16 + 2 * 4 + 2
        (128, 0, 1024),
        (255, 7, 2047),
    ],
)
def test_offsets_by_hand(row: int, block: int, offset: int) -> None:
    scale = torch.zeros(256, 8, dtype=torch.uint8)
    scale[row, block] = 0x5A
    assert swizzle(scale).flatten().nonzero().tolist() == [[offset]]


@pytest.mark.parametrize("shape", SHAPES)
def test_swizzle_is_the_formula(shape: tuple[int, int]) -> None:
    scale = numbered(*shape)
    tiled = swizzle(scale)
    assert tuple(tiled.shape) == tiled_shape(*shape)
    assert tiled.is_contiguous()
    assert bytes(tiled.flatten().tolist()) == slow(scale)


@pytest.mark.parametrize("shape", SHAPES)
def test_unswizzle_takes_it_back(shape: tuple[int, int]) -> None:
    scale = numbered(*shape)
    assert torch.equal(unswizzle(swizzle(scale), *shape), scale)


def test_slabs_of_128_rows_join() -> None:
    scale = numbered(300, 6)
    slabs = [swizzle(scale[start : start + 128]) for start in (0, 128, 256)]
    assert torch.equal(torch.cat(slabs), swizzle(scale))


def test_layout_of_the_input_in_memory_does_not_show() -> None:
    scale = numbered(160, 8)
    assert torch.equal(swizzle(scale.T.contiguous().T), swizzle(scale))
    assert torch.equal(swizzle(numbered(160, 16)[:, ::2]), swizzle(numbered(160, 16)[:, ::2].contiguous()))


def test_padding_to_whole_tiles() -> None:
    assert tiled_shape(320, 20) == (384, 20)
    assert tiled_shape(5120, 320) == (5120, 320)
    assert tiled_shape(1, 1) == (128, 4)
