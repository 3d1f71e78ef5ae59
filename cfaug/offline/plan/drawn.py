"""Rows that are computed: shard number -> its rows, a pure function of the table's arrays and a seed.

    row t of real ones:   intervention t mod count of its source t mod n, replica t // n        count = n x per source
    place in the plan:    real and null rows are permuted apart (:mod:`cfaug.offline.plan.permutation`) and dealt to shards

Nothing is stored for a row. Shards have equal sizes (they differ by at most one row, or one pair) and equal shares of
null interventions, so any subset of shards is a fair sample. Five rows lead each shard that show every name of do() and
every attribute which a source of the shard has: HF ``datasets`` infers its columns from the first five samples.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cfaug.causal.intervention import Intervention, Value
from cfaug.causal.row_random import stream
from cfaug.offline.format import MAX_SEED
from cfaug.offline.plan.permutation import Whole, permuted
from cfaug.offline.plan.rows import Known, PlanRow, PlanSummary, runs, sources_digest
from cfaug.offline.plan.values import Column, key_of

# HF datasets infers the schema from five samples and silently drops the names of do() that only come later.
LEADING_REAL = 5
_REAL, _NULL, _NULL_SOURCE, _SEED, _WITHIN = range(5)  # purposes of the seed; the strategies' are above


@dataclass(frozen=True)
class Levels:
    """An attribute and what its codes mean: categories, or the sorted numbers that occur."""

    name: str
    values: Sequence[Value]

    @property
    def known(self) -> Known:
        """As :class:`PlanSummary` tells it."""
        if isinstance(self.values[0], str):
            return tuple(sorted(map(str, self.values)))
        return float(self.values[0]), float(self.values[-1])


class Batch(NamedTuple):
    """Rows of consecutive shards, in order, as arrays (B,); `codes` (A of them) mean nothing where `null`."""

    start: int
    sources: Whole
    null: npt.NDArray[np.bool_]
    codes: list[Whole]
    seeds: Whole
    shards: Whole
    replicas: Whole


@dataclass(frozen=True, eq=False)
class DrawnRows:
    """The row source of all strategies, see the module.

    `keys` are those of the n sources, `present` (n, A') which attributes each has, None where all have all. `levels` and
    `columns` belong together, one for each attribute intervened on, sorted by name. `nulls` is the number of null
    interventions; `paired` puts one behind every real row instead, with its seed.
    """

    keys: tuple[str, ...]
    present: npt.NDArray[np.bool_] | None
    levels: tuple[Levels, ...]
    columns: tuple[Column, ...]
    per_source: int
    replicas: int
    nulls: int
    seed: int
    split: str
    samples_per_shard: int
    paired: bool = False

    @property
    def real(self) -> int:
        return len(self.keys) * self.per_source * self.replicas

    @property
    def _width(self) -> int:
        """Rows of a unit, which is dealt as one."""
        return 2 if self.paired else 1

    @cached_property
    def _digits(self) -> int:
        """Of a key's number: keys sort as rows do, beyond 10^9 of them too."""
        return max(9, len(str(len(self) - 1)))

    @property
    def _units(self) -> int:
        return self.real + self.nulls

    @property
    def shards(self) -> range:
        return range(-(-self._units // (self.samples_per_shard // self._width)))

    @cached_property
    def summary(self) -> PlanSummary:
        nulls = self.real if self.paired else self.nulls
        return PlanSummary(
            len(self), nulls, len(self.shards), len(set(self.keys)), sources_digest(self.keys),
            tuple(level.name for level in self.levels), {level.name: level.known for level in self.levels},
        )  # fmt: skip

    def __len__(self) -> int:
        return self._units * self._width

    def shard_of(self, i: int) -> tuple[int, int]:
        unit, within = divmod(i, self._width)
        shard = ((unit + 1) * len(self.shards) - 1) // self._units
        return shard, (unit - self._edge(shard)) * self._width + within

    def parts(self, shards_per_part: int) -> Iterator[range]:
        return runs(self.shards, shards_per_part)

    def rows(self, shards: range) -> Sequence[PlanRow]:
        batch = self._batch(shards)
        known: dict[tuple[int, ...], Intervention] = {}
        found = []
        columns = zip(*(codes.tolist() for codes in batch.codes))
        fields = zip(
            batch.sources.tolist(), batch.null.tolist(), columns,
            batch.seeds.tolist(), batch.shards.tolist(), batch.replicas.tolist(),
        )  # fmt: skip
        for i, (source, null, codes, seed, shard, replica) in enumerate(fields, batch.start):
            code = () if null else codes
            if (intervention := known.get(code)) is None:
                pairs = ((level.name, level.values[c]) for level, c in zip(self.levels, code))
                intervention = known[code] = Intervention(tuple(pairs))
            found.append(
                PlanRow(f"{self.split}-{i:0{self._digits}d}", self.keys[source], intervention, seed, shard, replica)
            )
        return found

    def lines(self, shards: range) -> bytes:
        batch = self._batch(shards)
        keys, levels = self._texts
        columns = [texts[codes].tolist() for texts, codes in zip(levels, batch.codes)]
        dos = ["{" + ",".join(parts) + "}" for parts in zip(*columns)]
        for i in np.flatnonzero(batch.null).tolist():
            dos[i] = "{}"
        begin, digits = f'{{"key":"{self.split}-', self._digits
        fields = zip(
            range(batch.start, batch.start + len(dos)), keys[batch.sources].tolist(), dos,
            batch.seeds.tolist(), batch.shards.tolist(), batch.replicas.tolist(),
        )  # fmt: skip
        return "".join(
            [
                f'{begin}{i:0{digits}d}","source_key":{key},"do":{do},"seed":{seed},"shard":{shard},"replica":{replica}}}\n'
                for i, key, do, seed, shard, replica in fields
            ]
        ).encode("ascii")

    @cached_property
    def _texts(self) -> tuple[npt.NDArray[np.object_], list[npt.NDArray[np.object_]]]:
        """JSON of every key, and of every level as a member of an object."""
        levels = [
            np.array([f"{json.dumps(level.name)}:{json.dumps(value)}" for value in level.values], dtype=object)
            for level in self.levels
        ]
        return np.array([json.dumps(key) for key in self.keys], dtype=object), levels

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name not in ("_texts", "summary")}

    # --- the draw
    def _edge(self, shard: int) -> int:
        return self._units * shard // len(self.shards)

    def _batch(self, shards: range) -> Batch:
        # in Python's whole numbers: a product of 10^10 and 10^10 is beyond int64
        edges = [self._edge(shard) for shard in range(shards.start, shards.stop + 1)]
        real_edges = [self.real * edge // self._units for edge in edges]  # of edge: no shard gets less than 0 nulls
        null_edges = [edge - real for edge, real in zip(edges, real_edges)]
        numbers = np.arange(shards.start, shards.stop)
        real_at, real_shard = _dealt(real_edges, numbers)
        null_at, null_shard = _dealt(null_edges, numbers)
        real = permuted(real_at, self.real, key_of(self.seed, _REAL))
        nulls = permuted(null_at, max(1, self.nulls), key_of(self.seed, _NULL))
        units, shard = np.concatenate([real, self.real + nulls]), np.concatenate([real_shard, null_shard])
        order = self._arranged(units, shard, len(real))
        units, shard = units[order], shard[order]
        sources = self._sources(units)
        null = units >= self.real
        seeds = permuted(units, MAX_SEED, key_of(self.seed, _SEED))
        codes = self._codes(units, sources, null, seeds)
        n = len(self.keys)
        replicas = units // n
        if self.paired:
            sources, shard, seeds = (np.repeat(a, 2) for a in (sources, shard, seeds))
            codes = [np.repeat(code, 2) for code in codes]
            null = np.tile([False, True], len(units))
            replicas = np.repeat(2 * replicas, 2) + null
        return Batch(edges[0] * self._width, sources, null, codes, seeds, shard, replicas)

    def _sources(self, units: Whole) -> Whole:
        """Real rows go through the sources in turn, and so do null ones, in another order: the last round is a sample."""
        n = len(self.keys)
        sources = units % n
        nulls = np.flatnonzero(units >= self.real)
        sources[nulls] = permuted(sources[nulls], n, key_of(self.seed, _NULL_SOURCE))
        return sources

    def _codes(self, units: Whole, sources: Whole, null: npt.NDArray[np.bool_], seeds: Whole) -> list[Whole]:
        real = np.flatnonzero(~null)
        first = units[real] % (len(self.keys) * self.per_source)  # replicas repeat the intervention of the first
        own = permuted(first, MAX_SEED, key_of(self.seed, _SEED)) if self.replicas > 1 else seeds[real]
        codes = []
        for column in self.columns:
            code = np.zeros(len(units), dtype=np.int64)
            code[real] = column(sources[real], first // len(self.keys), own.astype(np.uint64))
            codes.append(code)
        return codes

    def _arranged(self, units: Whole, shard: Whole, real: int) -> npt.NDArray[np.intp]:
        """The order of rows within their shards: the few that show every attribute, real ones up to five, the rest at random."""
        lead = np.full(len(units), LEADING_REAL, dtype=np.int64)
        first = np.searchsorted(shard[:real], shard[:real], side="left")
        lead[:real] = np.minimum(np.arange(real) - first, LEADING_REAL)
        if self.present is not None:
            has = self.present[self._sources(units)]
            by_shard = np.argsort(shard, kind="stable")
            starts = np.flatnonzero(np.diff(shard[by_shard], prepend=-1))
            some, every = (f.reduceat(has[by_shard], starts) for f in (np.logical_or, np.logical_and))
            mixed = (some != every).any(axis=1)
            for mine in (group for group, m in zip(np.split(by_shard, starts[1:]), mixed) if m):
                front = mine[showing(has[mine])]
                lead[mine] = LEADING_REAL
                lead[front] = np.arange(-len(front), 0)
                others = mine[(lead[mine] == LEADING_REAL) & (mine < real)][: LEADING_REAL - len(front)]
                lead[others] = np.arange(len(others))
        at_random = stream(units.astype(np.uint64) ^ key_of(self.seed, _WITHIN), 0)
        at_random[lead < LEADING_REAL] = 0
        return np.lexsort((at_random, lead, shard))


def _dealt(edges: Sequence[int], numbers: Whole) -> tuple[Whole, Whole]:
    """Places from the first edge to the last, and the number of the interval that each is in."""
    return np.arange(edges[0], edges[-1], dtype=np.int64), np.repeat(numbers, np.diff(edges))


def showing(has: npt.NDArray[np.bool_]) -> Whole:
    """The few rows of `has` (rows, A) that together show every attribute which any has; none where all have the same.

    HF datasets takes what its first five samples lack for a column of nulls, and breaks at the first value.
    """
    left = has.any(axis=0)
    front: list[int] = []
    while (has != has[:1]).any() and left.any() and len(front) < LEADING_REAL - 1:  # one place is kept for a real row
        front.append(int((has & left).sum(axis=1).argmax()))  # the first of the best: real rows before others
        left = left & ~has[front[-1]]
    return np.array(front, dtype=np.int64)
