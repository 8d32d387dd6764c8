"""The crc32 of bytes that lie one after the other, from the crc32 of each: nothing is read again."""

from __future__ import annotations

from functools import cache

_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31
"""x to the power of 0, in the reflected order of bits that CRC-32 uses."""


def combined(first: int, second: int, nbytes: int) -> int:
    """crc32 of A followed by B, from that of A, that of B and the length of B."""
    return _times(_power(8 * nbytes), first) ^ second


def _times(one: int, other: int) -> int:
    """Product of two polynomials over GF(2), modulo that of CRC-32."""
    product, bit = 0, _ONE
    while one:
        if one & bit:
            product ^= other
            one ^= bit
        bit >>= 1
        other = other >> 1 ^ (_POLYNOMIAL if other & 1 else 0)
    return product


@cache
def _squared(times: int) -> int:
    """x to the power of 2 to the power of ``times``."""
    if times == 0:
        return _ONE >> 1
    before = _squared(times - 1)
    return _times(before, before)


def _power(exponent: int) -> int:
    """x to that power."""
    power = _ONE
    for place in range(exponent.bit_length()):
        if exponent >> place & 1:
            power = _times(_squared(place), power)
    return power
