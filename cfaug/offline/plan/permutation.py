"""A shuffle of any length in no memory: a keyed permutation of 0 ... n - 1 that is computed at the places asked for.

    x = b L + R,  L in Z_a, R in Z_b, ab >= n      L := L + F_0(R) mod a,   R := R + F_1(L) mod b,   L := L + F_2(R) ...

A Feistel network (Luby and Rackoff 1988, How to construct pseudorandom permutations from pseudorandom functions) in the
mixed-radix form of Black and Rogaway 2002 (Ciphers with arbitrary finite domains, section 5): with a = ceil(sqrt(n)) the
square ab is hardly larger than n, and what falls outside goes through the network again (cycle walking) until it is inside.
The round functions are SplitMix64 (:mod:`cfaug.causal.row_random`). It shuffles well; it is no cipher and hides nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cfaug.causal.row_random import Seeds, stream
from cfaug.errors import UsageError

Whole = npt.NDArray[np.int64]
# four rounds are enough where the halves are large; over all orders of five images the uniform law needs more
ROUNDS = 14
MOST = 1 << 53  # sqrt is exact enough up to here, and halves stay below 32 bits


def permuted(places: Whole, n: int | Whole, key: Seeds) -> Whole:
    """Where the permutation of ``0 ... n - 1`` with this `key` sends `places`, (B,), each from 0 to its n - 1.

    `n` is one number or one for each place, (B,), from 1 to 2^53; `key` is (1,) or (B,). Places of the same n and key go
    to different places; another key is another permutation. :class:`UsageError` for a place outside.
    """
    if not len(places):
        return places.astype(np.int64)
    if places.min() < 0 or (places >= n).any() or np.max(n) > MOST:
        raise UsageError(
            f"expected places from 0 up to n - 1 with n at most 2^53, got {places.min()} to {places.max()}"
        )
    size: Seeds = np.asarray(n, dtype=np.int64).astype(np.uint64)
    a = np.sqrt(size.astype(np.float64)).astype(np.uint64)
    a = a + (a * a < size)
    b = (size + a - np.uint64(1)) // a
    out = _network(places.astype(np.uint64), a, b, key)
    outside = np.flatnonzero(out >= size)
    while len(outside):
        again = _network(out[outside], _at(a, outside), _at(b, outside), _at(key, outside))
        out[outside] = again
        outside = outside[again >= _at(size, outside)]
    return out.astype(np.int64)


def _network(x: Seeds, a: Seeds, b: Seeds, key: Seeds) -> Seeds:
    left, right = x // b, x % b
    for number in range(ROUNDS):
        if number % 2:
            right = _added(right, left, b, key, number)
        else:
            left = _added(left, right, a, key, number)
    return left * b + right


def _added(half: Seeds, other: Seeds, size: Seeds, key: Seeds, number: int) -> Seeds:
    """half + F(other) mod size; F first comes down to below `size`, for a sum that wraps at 2^64 is no sum mod `size`."""
    f = ((stream(other ^ key, number) >> np.uint64(32)) * size) >> np.uint64(32)
    f += half
    f -= size * (f >= size)
    return f


def _at(values: Seeds, places: npt.NDArray[np.intp]) -> Seeds:
    return values[places] if values.ndim and len(values) > 1 else values
