"""The arrays that hold a plan's rows, about 25 bytes per row, and how they are made from listed rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cfaug.causal.intervention import Value
from cfaug.errors import UsageError
from cfaug.offline.format import KEY, MAX_KEY, MAX_SEED

Whole = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class Columns:
    """N rows in the order of their shards.

    Attributes:
        sources: the source keys that `source` counts.
        levels: attribute -> the values that its codes count; sorted by name.
        source: (N,) whole numbers.
        codes: (A, N), one line per attribute of `levels`; -1 where the row does not intervene on it.
        seed, replica, shard: (N,) whole numbers; `shard` ascends.
        keys: N texts; None where the rows are numbered, "train-000000000" and so on.
    """

    sources: Sequence[str]
    levels: Mapping[str, Sequence[Value]]
    source: Whole
    codes: Whole
    seed: Whole
    replica: Whole
    shard: Whole
    keys: Sequence[str] | None = None


def listed(rows: Sequence[Any], split: str) -> Columns:
    """The columns of :class:`PlanRow` objects in the order of their shards; UsageError for a row that a plan cannot have."""
    for row in rows:
        if row.do.changes:
            raise UsageError(f"plan row {row.key!r}: expected values in do, got {row.do}; set a value instead")
        for name, beyond in (("seed", MAX_SEED), ("shard", 2**31), ("replica", 2**31)):
            value = getattr(row, name)
            if type(value) is not int or not 0 <= value < beyond:
                raise UsageError(f"plan row {row.key!r}: expected {name} in [0, {beyond}), got {value!r}; change it")
    keys: list[str] | None = [row.key for row in rows]
    keys = None if keys == numbered(split, slice(0, len(rows)), len(rows)) else keys
    check_keys(keys or ())
    levels: dict[str, dict[Value, int]] = {name: {} for name in sorted({name for row in rows for name in row.do.names})}
    sources: dict[str, int] = {}
    source = [sources.setdefault(row.source_key, len(sources)) for row in rows]
    acts = [dict(row.do.assignments) for row in rows]
    codes = np.array(
        [
            [seen.setdefault(act[name], len(seen)) if name in act else -1 for act in acts]
            for name, seen in levels.items()
        ],
        dtype=np.int32,
    ).reshape(len(levels), len(rows))
    values = {name: list(seen) for name, seen in levels.items()}
    seed, shard, replica = (np.array([getattr(row, name) for row in rows], np.int64) for name in ("seed", "shard", "replica"))  # fmt: skip
    return Columns(
        list(sources), values, np.array(source, np.int32), codes.astype(code_type(values)), seed,
        replica.astype(np.int32), shard.astype(np.int32), keys,
    )  # fmt: skip


def check_keys(keys: Sequence[str]) -> None:
    """UsageError unless all are well-formed and different."""
    seen: set[str] = set()
    for key in keys:
        if not KEY.fullmatch(key) or len(key) > MAX_KEY or key in seen:
            raise UsageError(
                f"expected unique keys of 1 to {MAX_KEY} characters A-Z a-z 0-9 _ -, got {key!r}; change it"
            )
        seen.add(key)


def number_width(total: int) -> int:
    """How many digits the number of a row has in its key."""
    return max(9, len(str(total - 1)))


def numbered(split: str, rows: slice, total: int) -> list[str]:
    """The keys of drawn rows, "train-000000000" and so on: they sort as the rows do."""
    form = f"{split}-%0{number_width(total)}d"
    return [form % i for i in range(rows.start, rows.stop)]


def code_type(levels: Mapping[str, Sequence[Value]]) -> np.dtype[np.integer[Any]]:
    """The smaller type of whole numbers that holds the codes of all `levels`."""
    return np.dtype(np.int16 if max(map(len, levels.values()), default=0) < 2**15 else np.int32)


def acts_of(columns: Columns, rows: slice) -> tuple[list[dict[str, Value]], Whole]:
    """The different do() of some rows, as mappings, and for each row which of them it has."""
    codes = columns.codes[:, rows].astype(np.int64)
    which = np.zeros(codes.shape[1], np.int64)
    for line, levels in zip(codes, columns.levels.values()):  # counted anew each time, so that no product overflows
        which = np.unique(which * (len(levels) + 1) + line + 1, return_inverse=True)[1]
    first = np.unique(which, return_index=True)[1]
    acts = [
        {name: levels[code] for (name, levels), code in zip(columns.levels.items(), tuple_) if code >= 0}
        for tuple_ in codes[:, first].T.tolist()
    ]
    return acts, which
