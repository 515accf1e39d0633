"""The Philox4x64-10 counter generator for many counters at once (Salmon et al. 2011).

`numpy.random.Philox` gives the same numbers, but has to be set to each counter by itself, which
costs more than the numbers do.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

UInt64s = NDArray[np.uint64]

WORDS = 4
"""Of 64 bits each, that one counter gives."""
_ROUNDS = 10
_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_WEYL = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)


def philox(counter: Iterable[UInt64s], key: tuple[int, int]) -> UInt64s:
    """Four random words for each counter.

    Args:
        counter: The four words of each counter, lowest first, in arrays of one shape [...].
        key: Two words.

    Returns:
        [..., 4].
    """
    first, second, third, fourth = counter
    for index in range(_ROUNDS):
        left, right = ((word + index * step) % 2**64 for word, step in zip(key, _WEYL, strict=True))
        high0, low0 = _multiplied(first, _MULTIPLIERS[0])
        high1, low1 = _multiplied(third, _MULTIPLIERS[1])
        first, second = high1 ^ second ^ np.uint64(left), low1
        third, fourth = high0 ^ fourth ^ np.uint64(right), low0
    return np.stack([first, second, third, fourth], axis=-1)


def _multiplied(values: UInt64s, by: int) -> tuple[UInt64s, UInt64s]:
    """Upper and lower 64 bits of the products, by the school method on halves."""
    by_high, by_low = np.uint64(by >> 32), np.uint64(by & 0xFFFFFFFF)
    high, low = values >> _HALF, values & _LOW
    middle = by_high * low + ((by_low * low) >> _HALF)
    carry = (by_low * high + (middle & _LOW)) >> _HALF
    return by_high * high + (middle >> _HALF) + carry, values * np.uint64(by)
