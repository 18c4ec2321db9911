"""Philox4x32-10, a counter-based generator, many counters and keys at a time, by numpy alone.

J. K. Salmon, M. A. Moraes, R. O. Dror and D. E. Shaw, *Parallel random numbers: as easy as 1, 2, 3*, SC 2011
(doi:10.1145/2063384.2063405). Words of 32 bits are held in arrays of 64, so that a product needs no halves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
ROUNDS = 10


def philox4x32(counter: Sequence[Any], key: Sequence[Any]) -> tuple[Words, Words, Words, Words]:
    """The four output words of each counter: four and two uint64 scalars or arrays below 2³², broadcast → arrays."""
    shape = np.broadcast_shapes(*(np.shape(word) for word in (*counter, *key)))
    c0, c1, c2, c3 = (np.array(np.broadcast_to(np.asarray(word, np.uint64), shape or (1,))) for word in counter)
    k0, k1 = (np.asarray(word, np.uint64) for word in key)
    for number in range(ROUNDS):
        # in place: in blocks that fit the cache, fresh arrays would cost as much as the arithmetic
        c0 *= _M0
        c2 *= _M1
        high, low = c0 >> _HALF, c0 & _LOW
        c3 ^= high
        c3 ^= (k1 + np.uint64(number * _W1)) & _LOW
        np.right_shift(c2, _HALF, out=high)
        c2 &= _LOW
        c1 ^= high
        c1 ^= (k0 + np.uint64(number * _W0)) & _LOW
        c0, c1, c2, c3 = c1, c2, c3, low
    return c0.reshape(shape), c1.reshape(shape), c2.reshape(shape), c3.reshape(shape)


def key_words(key: int) -> tuple[int, int]:
    """The low and the high half of a 64-bit key."""
    return key & 0xFFFFFFFF, key >> 32
