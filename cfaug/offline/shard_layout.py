"""How drawn interventions become rows: replicas, null and invariant rows are added, all are shuffled and dealt to shards.

Shards have equal sizes (they differ by at most one row, or one pair) and equal shares of null interventions, so any subset of
shards is a fair sample. No two rows have one seed, pairs apart.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from cfaug.causal.intervention import Value
from cfaug.offline.format import MAX_SEED
from cfaug.offline.plan_columns import Columns, code_type

# HF datasets infers the columns from five samples and silently drops the names of do() that only come later
LEADING_REAL = 5


def dealt(
    levels: Mapping[str, Sequence[Value]],
    drawn: npt.NDArray[np.int64],
    n: int,
    replicas: int,
    nulls: float,
    samples_per_shard: int,
    paired: bool,
    present: npt.NDArray[np.bool_] | None,
    rng: np.random.Generator,
    invariant: float = 0.0,
    hidden: Collection[str] = (),
) -> Columns:
    """The columns of a plan, without its sources' keys.

    Args:
        levels: attribute -> the values that its codes count.
        drawn: (A, n x interventions) codes, source by source, then intervention by intervention.
        n: how many sources; `nulls`: the share of null interventions among all rows.
        paired: each row is followed by the null intervention with its seed.
        present: (n, A') which attributes each source has; None where all have all.
        invariant: the share of rows that hide the attributes `hidden` and change no other.
    """
    real = drawn.shape[1] * replicas
    apart = 1 - nulls - invariant
    null, hiding = round(nulls / apart * real), round(invariant / apart * real)
    if hiding:
        levels = {name: [*held, None] if name in hidden else held for name, held in levels.items()}
    codes = np.full((len(levels), real + null + hiding), -1, dtype=code_type(levels))
    for (name, held), line, slots in zip(levels.items(), codes, drawn):
        line[:real] = np.tile(slots, replicas)
        if hiding and name in hidden:
            line[real + null :] = len(held) - 1
    null += hiding  # from here on they are placed as null rows are
    # real rows go through the sources in turn and so do null ones, in a different order: their last round is a sample
    source = np.arange(real + null, dtype=np.int32) % n
    source[real:] = rng.permutation(n)[source[real:]]
    seed = rng.choice(MAX_SEED, real + null, replace=False)
    order, shard = _shuffled(real, null, samples_per_shard // (2 if paired else 1), rng, source, present)
    source, codes, seed = source[order], codes[:, order], seed[order]
    replica = (order // n).astype(np.int32)
    if paired:
        source, replica, shard, seed = (np.repeat(column, 2) for column in (source, 2 * replica, shard, seed))
        codes = np.repeat(codes, 2, axis=1)
        codes[:, 1::2] = -1
        replica[1::2] += 1
    return Columns((), levels, source, codes, seed, replica, shard)


def _shuffled(
    real: int,
    null: int,
    most: int,
    rng: np.random.Generator,
    source: npt.NDArray[np.int32],
    present: npt.NDArray[np.bool_] | None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """(order of the units, shard of each in that order): real and null ones are shuffled apart and mixed within a shard.

    A shard begins with a few rows that together show every attribute that its sources have; rows that are not null
    interventions follow, because some readers infer the fields of all samples from the first ones.
    """
    units = real + null
    shards = -(-units // most)
    edges = units * np.arange(shards + 1) // shards
    reals = real * edges // units
    numbers = np.arange(shards, dtype=np.int32)
    shard = np.concatenate([np.repeat(numbers, np.diff(reals)), np.repeat(numbers, np.diff(edges - reals))])
    order = np.concatenate([rng.permutation(real), real + rng.permutation(null)])
    place = rng.integers(2 * LEADING_REAL, 2**31, units)
    place[np.flatnonzero(np.arange(real) - reals[shard[:real]] < LEADING_REAL)] = LEADING_REAL
    if present is not None:
        for k in range(shards):
            mine = np.r_[reals[k] : reals[k + 1], real + edges[k] - reals[k] : real + edges[k + 1] - reals[k + 1]]
            front = showing(present[source[order[mine]]])
            place[mine[front]] = np.arange(len(front))
    place += shard.astype(np.int64) << 32
    at = np.argsort(place, kind="stable")
    return order[at], shard[at]


def showing(has: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """The few rows of `has` (rows, A) that together show every attribute which any has; empty where all have the same.

    HF datasets takes what its first five samples lack for a column of nulls, and breaks at the first value.
    """
    left = has.any(axis=0)
    front: list[int] = []
    while (has != has[:1]).any() and left.any() and len(front) < LEADING_REAL - 1:  # one place is kept for a real row
        front.append(int((has & left).sum(axis=1).argmax()))  # the first of the best: real rows before null ones
        left = left & ~has[front[-1]]
    return np.array(front, dtype=np.intp)
