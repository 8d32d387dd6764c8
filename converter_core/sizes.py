"""Sizes in bytes as people write them."""

from __future__ import annotations

import re

_UNITS: dict[str, int] = {
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)},
    **{f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", 1)},
    # a bare letter is binary, as in Docker's, systemd's and the JVM's memory sizes
    **{letter: 1024**power for power, letter in enumerate("KMGT", 1)},
}


def parse_bytes(text: str) -> int:
    """``"4GiB"`` -> 4294967296. Fractions, a space before the unit and any case are fine; the unit is not optional.

    ``KB MB GB TB`` are powers of 1000; ``KiB MiB GiB TiB`` and ``K M G T`` powers of 1024. Rounded to a whole byte.
    ValueError for anything else, and for less than one byte.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text, re.ASCII)
    if not found or found[2].upper() not in _UNITS:
        raise ValueError(f"{text!r} is no size; write a number and a unit, e.g. 512MiB, 4GiB or 4GB")
    size = round(float(found[1]) * _UNITS[found[2].upper()])
    if size < 1:
        raise ValueError(f"{text!r} is less than one byte")
    return size


def format_bytes(count: int) -> str:
    """``4294967296`` -> ``"4 GiB"``, ``1610612736`` -> ``"1.5 GiB"``: binary units, at most two decimals."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    power = 0
    while power < len(units) - 1 and round(count / 1024**power, 2) >= 1024:
        power += 1
    return f"{count / 1024**power:.2f}".rstrip("0").rstrip(".") + f" {units[power]}"
