from __future__ import annotations

import pytest

from converter_core.sizes import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GiB", 4294967296),
        ("512MiB", 536870912),
        ("1.5 KiB", 1536),
        ("4GB", 4_000_000_000),
        ("2TB", 2_000_000_000_000),
        ("3 kb", 3000),
        ("1G", 1073741824),
        ("7m", 7340032),
        ("2TiB", 2199023255552),
        (" 10B ", 10),
        ("0.1KB", 100),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "4", "4 gigs", "-4GiB", "4GiB extra", "1,5GiB", "1e3MiB", "٤GiB", "4.GiB"])
def test_what_is_no_size_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="is no size; write a number and a unit") as raised:
        parse_bytes(text)
    assert repr(text) in str(raised.value)


@pytest.mark.parametrize("text", ["0GiB", "0.0001KiB"])
def test_nothing_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="less than one byte"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (100, "100 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1024**2 - 1, "1 MiB"),
        (4 * 1024**3, "4 GiB"),
        (65_579_515_136, "61.08 GiB"),
        (5000 * 1024**4, "5000 TiB"),
    ],
)
def test_sizes_are_shown(size: int, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize("size", [1, 1000, 1024, 3 * 512, 2**30, 5 * 2**38])
def test_what_is_shown_can_be_read(size: int) -> None:
    assert parse_bytes(format_bytes(size)) == size
