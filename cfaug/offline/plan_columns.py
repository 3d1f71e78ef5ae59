"""The arrays that hold a plan's rows, about 25 bytes per row, and how they are filled from rows or lines."""

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


class Filling:
    """Columns of a known number of rows, filled run by run; UsageError for a row that a plan cannot have."""

    def __init__(self, rows: int, split: str, names: Sequence[str]) -> None:
        self._split = split
        self._sources: dict[str, int] = {}
        self._levels: dict[str, dict[Value, int]] = {name: {} for name in names}
        self._source, self._replica, self._shard = (np.zeros(rows, dtype=np.int32) for _ in range(3))
        self._seed = np.zeros(rows, dtype=np.int64)
        self._codes = np.zeros((len(names), rows), dtype=np.int32)
        self._keys: list[str] | None = None  # as long as all rows have the keys that counting gives
        self._done = 0

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """The next rows, as their lines have them."""
        at = slice(self._done, self._done + len(rows))
        self._add_keys([row["key"] for row in rows], at)
        sources, acts = self._sources, [row["do"] for row in rows]
        self._source[at] = [sources.setdefault(row["source_key"], len(sources)) for row in rows]
        for line, (name, levels) in zip(self._codes, self._levels.items()):
            line[at] = [levels.setdefault(act[name], len(levels)) if name in act else -1 for act in acts]
        for array, name, beyond in (
            (self._seed, "seed", MAX_SEED), (self._shard, "shard", 2**31), (self._replica, "replica", 2**31),
        ):  # fmt: skip
            numbers = np.array([row[name] for row in rows])
            if len(rows) and (numbers.dtype.kind != "i" or numbers.min() < 0 or numbers.max() >= beyond):
                wrong = next(
                    (row for row in rows if type(row[name]) is not int or not 0 <= row[name] < beyond), rows[0]
                )
                raise UsageError(
                    f"plan row {wrong['key']!r}: expected {name} in [0, {beyond}), got {wrong[name]!r}; change it"
                )
            array[at] = numbers
        self._done = at.stop

    def _add_keys(self, keys: list[str], at: slice) -> None:
        if self._keys is None and keys != numbered(self._split, at, len(self._seed)):
            self._keys = numbered(self._split, slice(0, at.start), len(self._seed))
        if self._keys is not None:
            self._keys += keys

    def columns(self) -> Columns:
        """What has been filled in; UsageError unless that is all rows, in the order of their shards, with keys of their own."""
        if self._done < len(self._seed) or (np.diff(self._shard) < 0).any():
            raise UsageError(f"expected {len(self._seed)} rows in the order of their shards, got others; plan again")
        seen: set[str] = set()
        for key in self._keys or ():
            if not KEY.fullmatch(key) or len(key) > MAX_KEY or key in seen:
                raise UsageError(
                    f"expected unique keys of 1 to {MAX_KEY} characters A-Z a-z 0-9 _ -, got {key!r}; change it"
                )
            seen.add(key)
        levels = {name: list(found) for name, found in self._levels.items()}
        codes = self._codes.astype(code_type(levels))
        return Columns(
            list(self._sources), levels, self._source, codes, self._seed, self._replica, self._shard, self._keys
        )


def numbered(split: str, rows: slice, total: int) -> list[str]:
    """The keys of drawn rows, "train-000000000" and so on: they sort as the rows do."""
    form = f"{split}-%0{max(9, len(str(total - 1)))}d"
    return [form % i for i in range(rows.start, rows.stop)]


def code_type(levels: Mapping[str, Sequence[Value]]) -> np.dtype[np.integer[Any]]:
    """The smaller type of whole numbers that holds the codes of all `levels`."""
    return np.dtype(np.int16 if max(map(len, levels.values()), default=0) < 2**15 else np.int32)
