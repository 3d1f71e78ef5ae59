"""Random draws that belong to the row: each is a function of the row's seed, and of nothing else.

    z_j = mix(seed + (j + 1) * gamma),   u_j = (floor(z_j / 2^12) + 1/2) / 2^52          SplitMix64

Batch, order, chunk and process therefore change no draw, and a million rows are drawn at once; NumPy has no vectorised
generator with one seed per row. SplitMix64: Steele, Lea and Flood 2014, Fast splittable pseudorandom number generators; its
finaliser passes BigCrush on consecutive counters. Not cryptographic.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.errors import UsageError

Array = npt.NDArray[np.float64]
Seeds = npt.NDArray[np.uint64]
"""One seed per row, (B,)."""

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: Seeds) -> Seeds:
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is intended
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def natural(seed: object) -> int:
    """``seed`` as an int in [0, 2^64); UsageError for anything else."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        raise UsageError(f"a seed: expected a whole number from 0 to 2**64 - 1, got {seed!r}; write for example 0")
    return int(seed)


def row_seeds(seed: int | Sequence[int] | Seeds, keys: pd.Index) -> Seeds:
    """One seed per row, (B,): from one number and the row's key, or as given, one per row.

    Raises UsageError for a seed that is not a whole number in [0, 2^64), or when there are not as many as rows.
    """
    if not isinstance(seed, Sequence | np.ndarray):
        hashes: Seeds = pd.util.hash_array(np.asarray(keys, dtype=object)).astype(np.uint64)
        return stream(hashes, natural(seed))
    if isinstance(seed, np.ndarray) and seed.dtype == np.uint64:
        seeds = seed
    else:
        seeds = np.array([natural(s) for s in seed], dtype=np.uint64)
    if len(seeds) != len(keys):
        raise UsageError(
            f"expected one seed per row, got {len(seeds)} seeds for {len(keys)} rows; give one number for all"
        )
    return seeds


def stream(seeds: Seeds, number: int) -> Seeds:
    """(B,) seeds of an independent family: one ``number`` per node, or purpose, that draws for the same row."""
    with np.errstate(over="ignore"):
        salt = _mix(np.array([number], dtype=np.uint64) * _GAMMA + np.uint64(0xD1B54A32D192ED03))
    return _mix(seeds ^ salt)


def uniforms(seeds: Seeds, width: int = 1) -> Array:
    """(B, width) uniform draws in the open interval (0, 1), on a grid of 2^-52."""
    with np.errstate(over="ignore"):
        counters = np.arange(1, width + 1, dtype=np.uint64) * _GAMMA
        z = _mix(seeds[:, None] + counters)
    # at 53 bits the half step would round the last value to 1
    out: Array = ((z >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return out


def gumbels(seeds: Seeds, width: int = 1) -> Array:
    """(B, width) standard Gumbel draws: -log(-log u)."""
    out: Array = -np.log(-np.log(uniforms(seeds, width)))
    return out


def normals(seeds: Seeds, width: int = 1) -> Array:
    """(B, width) standard normal draws, by the quantile function."""
    from scipy.special import ndtri

    out: Array = ndtri(uniforms(seeds, width))
    return out
