"""Which few of many items are looked at, wherever not all are."""

from __future__ import annotations

import numpy as np


def spread(length: int, most: int) -> list[int]:
    """min(most, length) of the indices below ``length``, ascending, the same every time; ``most`` >= 2.

    The first, the last, and a random sample of those between: data that is interleaved (two views, two annotators) has no
    step in common with it.
    """
    if length <= most:
        return list(range(length))
    between = np.random.default_rng(0).choice(length - 2, most - 2, replace=False, shuffle=False)
    return [0, *(np.sort(between) + 1).tolist(), length - 1]
