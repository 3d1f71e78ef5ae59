"""Which value an intervention gives an attribute: functions of the source, the number of its intervention and its seed.

    value of source s in its j-th intervention = levels[column(s, j, seed)]

Every column is computed at the places asked for, from arrays as long as the sources: never from the rows before.
A *stratum* is a set of sources that share the counts, such as a target class; its slots are m = sources x interventions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cfaug.causal.row_random import Seeds, stream, uniforms
from cfaug.offline.plan.permutation import Whole, permuted


class Column(Protocol):
    """Codes of one attribute's levels, (B,), for `sources` (B,), their intervention numbers `each` (B,) and `seeds` (B,)."""

    def __call__(self, sources: Whole, each: Whole, seeds: Seeds) -> Whole: ...


def key_of(seed: int, *numbers: int) -> Seeds:
    """(1,) the key of one purpose: an independent family for each list of numbers."""
    key = np.array([seed], dtype=np.uint64)
    for number in numbers:
        key = stream(key, number)
    return key


@dataclass(frozen=True, eq=False)
class Strata:
    """The slots of every stratum in a random order: slot number -> place in 0 ... m - 1, a bijection within the stratum."""

    of: Whole  # (n,) stratum of every source
    rank: Whole  # (n,) number of every source within its stratum
    sizes: Whole  # (S,) sources of every stratum
    per_source: int
    keys: Seeds  # (S,)

    @staticmethod
    def make(of: Whole, per_source: int, key: Seeds) -> Strata:
        order = np.argsort(of, kind="stable")
        sizes = np.bincount(of).astype(np.int64)
        rank = np.empty(len(of), dtype=np.int64)
        rank[order] = np.arange(len(of)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return Strata(of.astype(np.int64), rank, sizes, per_source, np.empty(0, np.uint64)).keyed(key)

    def keyed(self, key: Seeds) -> Strata:
        """The same slots in another order; the arrays of the sources are shared."""
        return replace(self, keys=stream(np.arange(len(self.sizes), dtype=np.uint64) ^ key, 0))

    @property
    def slots(self) -> Whole:
        """(S,) slots of every stratum."""
        return self.sizes * self.per_source

    def places(self, sources: Whole, each: Whole) -> tuple[Whole, Whole, Seeds]:
        """(stratum, place in it, a key of the stratum for further draws), each (B,)."""
        mine = self.of[sources]
        keys = self.keys[mine]
        slot = self.rank[sources] + self.sizes[mine] * each
        return mine, permuted(slot, self.slots[mine], keys), stream(keys, 1)


@dataclass(frozen=True, eq=False)
class Evenly:
    """Every one of `size` levels equally often within a stratum: counts differ by at most one, which ones is random."""

    strata: Strata
    size: int

    def __call__(self, sources: Whole, each: Whole, seeds: Seeds) -> Whole:
        _, place, keys = self.strata.places(sources, each)
        return permuted(place % self.size, self.size, keys)


@dataclass(frozen=True, eq=False)
class Stratified:
    """One draw from each of the m equal slices of the `size` sorted numbers: a stratum's sample of the whole distribution."""

    strata: Strata
    size: int

    def __call__(self, sources: Whole, each: Whole, seeds: Seeds) -> Whole:
        mine, place, keys = self.strata.places(sources, each)
        within = uniforms(stream(keys ^ place.astype(np.uint64), 2))[:, 0]
        return quantile((place + within) / self.strata.slots[mine], self.size)


@dataclass(frozen=True, eq=False)
class Shared:
    """Cells of a joint distribution: `bounds` (S, cells) are the cumulated counts, `codes` (cells,) this attribute's level."""

    strata: Strata
    bounds: Whole
    codes: Whole

    def __call__(self, sources: Whole, each: Whole, seeds: Seeds) -> Whole:
        mine, place, _ = self.strata.places(sources, each)
        slots = self.strata.slots
        before = np.cumsum(slots) - slots
        flat = (self.bounds + before[:, None]).ravel()  # ascending: one search serves all strata
        cell = np.searchsorted(flat, place + before[mine], side="right") - mine * self.bounds.shape[1]
        out: Whole = self.codes[cell]
        return out


@dataclass(frozen=True, eq=False)
class Uniformly:
    """A draw by the row's own seed, every level alike; of sorted numbers that is a draw from their quantiles."""

    size: int
    number: int

    def __call__(self, sources: Whole, each: Whole, seeds: Seeds) -> Whole:
        u = uniforms(stream(seeds, self.number))[:, 0]
        out: Whole = (u * self.size).astype(np.int64)
        return out


@dataclass(frozen=True, eq=False)
class Digit:
    """The levels in turn: one digit of the number of the intervention, so that several columns count all combinations."""

    size: int
    stride: int

    def __call__(self, sources: Whole, each: Whole, seeds: Seeds) -> Whole:
        return each // self.stride % self.size


@dataclass(frozen=True, eq=False)
class Others:
    """Every level but the `factual` one (n,), -1 where that is unknown, equally often within a stratum of one factual level."""

    strata: Strata
    factual: Whole
    size: int

    def __call__(self, sources: Whole, each: Whole, seeds: Seeds) -> Whole:
        _, place, keys = self.strata.places(sources, each)
        own = self.factual[sources]
        sizes = self.size - (own >= 0)
        code = permuted(place % sizes, sizes, keys)
        out: Whole = code + ((own >= 0) & (code >= own))
        return out


@dataclass(frozen=True, eq=False)
class Mirrored:
    """The level of the mirrored quantile, `to` (n,); where it is -1, the factual one being unknown, a draw of `otherwise`."""

    to: Whole
    otherwise: Column

    def __call__(self, sources: Whole, each: Whole, seeds: Seeds) -> Whole:
        code = self.to[sources]
        lost = np.flatnonzero(code < 0)
        code[lost] = self.otherwise(sources[lost], each[lost], seeds[lost])
        return code


def quantile(level: npt.NDArray[np.float64], size: int) -> Whole:
    """Place in `size` sorted numbers of quantile levels in (0, 1]: the inverse of the empirical distribution function."""
    out: Whole = np.clip(np.ceil(level * size).astype(np.int64) - 1, 0, size - 1)
    return out


def mirrored(column: npt.NDArray[np.float64], levels: npt.NDArray[np.float64]) -> Whole:
    """(n,) where in the sorted `levels` the mirror image of each value lies, a different value; -1 for NaN.

    Rank r becomes N - 1 - r (the middle rank of ties). A value in the very middle is its own mirror image: then it is the
    next larger value, or the next smaller where there is none.
    """
    known = ~np.isnan(column)
    out = np.full(len(column), -1, dtype=np.int64)
    values, last = column[known], len(levels) - 1
    left = np.searchsorted(levels, values, side="left")
    right = np.searchsorted(levels, values, side="right")
    to = last - (left + right - 1) // 2
    same = levels[to] == values
    to[same] = np.where(right[same] <= last, right[same], left[same] - 1)
    out[known] = to
    return out
