"""The checksum of source bytes: against its definition in whole numbers, compiled and by torch."""

from __future__ import annotations

import random

import pytest

from converter_core.native import checksum
from converter_core.native.checksum import Checksum

DATA = random.Random(7).randbytes(3 * 4096 + 1234)


def defined(data: bytes) -> int:
    """As the module's docstring says it."""
    total = 0
    for start in range(0, len(data), 4096):
        block = data[start : start + 4096].ljust(4096, b"\0")
        words = (int.from_bytes(block[at : at + 8], "little") for at in range(0, 4096, 8))
        total = total * 0x9E3779B97F4A7C15 + sum(
            (word % 2**32) * (key % 2**32) + (word >> 32) * (key >> 32)
            for word, key in zip(words, checksum.KEYS, strict=True)
        )
    return (total * 0x9E3779B97F4A7C15 + len(data)) % 2**64


def value(*parts: bytes) -> int:
    sums = Checksum()
    for part in parts:
        sums.update(memoryview(part))
    assert sums.count == sum(map(len, parts))
    return sums.value


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(checksum, "_library", None)
    elif checksum._library is None:
        pytest.skip("the kernels are not compiled")


def test_keys() -> None:
    """The first value of SplitMix64 with seed 0 is e220a8397b1dcdaf in the published test vectors."""
    assert checksum.KEYS[0] == 0xE220A8397B1DCDAF
    assert checksum.KEYS[1] == 0x6E789E6AA1B965F4 | 0x100000001
    assert len(set(checksum.KEYS)) == 512
    assert all(key & 0x100000001 == 0x100000001 for key in checksum.KEYS)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 4095, 4096, 4097, 8192, len(DATA)])
def test_definition(size: int) -> None:
    assert value(DATA[:size]) == defined(DATA[:size])


@pytest.mark.parametrize("seed", range(8))
def test_cuts_do_not_show(seed: int) -> None:
    dice = random.Random(seed)
    parts, rest = [], DATA
    while rest:
        size = dice.choice((1, 3, 8, 100, 4095, 4096, 4097, 8200))
        parts.append(rest[:size])
        rest = rest[size:]
    assert value(*parts) == defined(DATA)


def test_large_runs() -> None:
    assert value(DATA * 90) == value(*[DATA] * 90) == defined(DATA * 90)


def test_what_differs_shows() -> None:
    seen = {value(DATA), value(DATA[:-1]), value(DATA + b"\0"), value(b"\0" + DATA)}
    seen.add(value(DATA[4096:8192] + DATA[:4096] + DATA[8192:]))  # blocks that change places
    seen.add(value(DATA[8:16] + DATA[:8] + DATA[16:]))
    dice = random.Random(1)
    for _ in range(200):
        changed = bytearray(DATA)
        changed[dice.randrange(len(DATA))] ^= 1 << dice.randrange(8)
        seen.add(value(bytes(changed)))
    assert len(seen) > 200


@pytest.mark.parametrize(
    ("dtype", "good", "bad"),
    [
        ("BF16", (0x7F7F, 0xFF7F, 0x0001, 0x8000), (0x7F80, 0xFF80, 0x7F81, 0xFFFF)),
        ("F16", (0x7BFF, 0xFBFF, 0x0001, 0x8000), (0x7C00, 0xFC00, 0x7C01, 0xFFFF)),
        ("F32", (0x7F7FFFFF, 0xFF7FFFFF, 0x00000001, 0x80000000), (0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF)),
    ],
)
@pytest.mark.parametrize("count", [1, 3, 4, 5, 4099])
def test_infinity_and_nan_are_seen(dtype: str, good: tuple[int, ...], bad: tuple[int, ...], count: int) -> None:
    size = 4 if dtype == "F32" else 2
    values = [good[number % len(good)] for number in range(count)]

    def finite(values: list[int], cut: int) -> bool:
        data = b"".join(value.to_bytes(size, "little") for value in values)
        sums = Checksum(dtype)
        sums.update(memoryview(data[:cut]))
        sums.update(memoryview(data[cut:]))
        assert sums.value == defined(data)
        return sums.finite

    known = checksum._library is not None  # torch looks after them otherwise
    for cut in (0, size, count // 2 * size):
        assert finite(values, cut) is known
        for place in {0, count // 2, count - 1}:
            for value_ in bad:
                assert not finite([*values[:place], value_, *values[place + 1 :]], cut)


def test_other_numbers_are_not_judged() -> None:
    sums = Checksum("F8_E4M3")
    sums.update(memoryview(b"\0\1"))
    assert not sums.finite
