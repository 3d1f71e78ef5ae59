"""The rows of a plan, their lines on disk, and what is known of all of them together.

    row = (key, source_key, do, seed, shard, replica)        image = model(source, do, seed)

A plan's rows come from a *row source*: listed in memory, drawn shard by shard, or read part by part. All three give the
same rows and the same bytes; what a shard is does not depend on how much of the plan is looked at.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Protocol

from cfaug.causal.intervention import Intervention, Value, do
from cfaug.data.table import text_of
from cfaug.errors import UsageError
from cfaug.offline.format import KEY, MAX_KEY, MAX_SEED, canonical_json

Known = tuple[str, ...] | tuple[float, float]
MOST_LISTED = 1000  # whole numbers of an attribute beyond which only their range is told


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One image to make: `do` applied to source `source_key` with the row's own `seed`, stored as `key` in `shard`.

    `replica` numbers the rows of one source; `seed` is in [0, 2**53).
    """

    key: str
    source_key: str
    do: Intervention
    seed: int
    shard: int
    replica: int

    def line(self) -> bytes:
        """The row as one line of a plan file: compact ASCII JSON."""
        text = canonical_json(dict(self.do.assignments)).decode("ascii")
        return (
            f'{{"key":"{self.key}","source_key":{json.dumps(self.source_key)},"do":{text},'
            f'"seed":{self.seed},"shard":{self.shard},"replica":{self.replica}}}\n'.encode("ascii")
        )

    @staticmethod
    def parse(line: bytes, known: dict[str, Intervention] | None = None) -> PlanRow:
        """The inverse of ``line``; ValueError, KeyError or TypeError for another one. `known` shares equal do()."""
        fields = json.loads(line)
        text = repr(fields["do"])
        known = {} if known is None else known
        if (intervention := known.get(text)) is None:
            intervention = known[text] = do(fields["do"])
        row = PlanRow(
            fields["key"], fields["source_key"], intervention, fields["seed"], fields["shard"], fields["replica"]
        )
        texts, numbers = (row.key, row.source_key), (row.seed, row.shard, row.replica)
        if not all(type(text) is str for text in texts) or not all(type(number) is int for number in numbers):
            raise ValueError(f"no plan row: {line[:60]!r}")
        return row


@dataclass(frozen=True)
class PlanSummary:
    """What is known of a plan as a whole: `rows`, of which `nulls` are null interventions, `shards`, different `sources`.

    `names` are the attributes intervened on; `values` are theirs: the texts, sorted, or (least, greatest) of numbers. Of
    a drawn plan they are what was drawn from: every row's values are among them. `sources_sha256` is that of the sorted
    source keys, each followed by a newline.
    """

    rows: int
    nulls: int
    shards: int
    sources: int
    sources_sha256: str
    names: tuple[str, ...]
    values: Mapping[str, Known]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "names": list(self.names), "values": {name: list(v) for name, v in self.values.items()}}

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> PlanSummary:
        """The inverse of ``to_json``; TypeError or KeyError for something else."""
        values = {name: tuple(known) for name, known in fields["values"].items()}
        return PlanSummary(**{**fields, "names": tuple(fields["names"]), "values": values})

    @staticmethod
    def of(rows: Iterable[PlanRow]) -> PlanSummary:
        """The summary of rows that are looked at one by one."""
        count = nulls = 0
        shards: set[int] = set()
        sources: set[str] = set()
        values: dict[str, set[Value]] = {}
        for row in rows:
            count += 1
            nulls += row.do.is_null
            shards.add(row.shard)
            sources.add(row.source_key)
            for name, value in row.do.assignments.items():
                values.setdefault(name, set()).add(value)
        known = {name: _known(found) for name, found in values.items()}
        return PlanSummary(count, nulls, len(shards), len(sources), sources_digest(sources), tuple(values), known)


def sources_digest(keys: Iterable[str]) -> str:
    """sha256 hex of the different source keys, sorted, each followed by a newline, in UTF-8."""
    sha256 = hashlib.sha256()
    for key in sorted(set(keys)):
        sha256.update(key.encode("utf-8", "surrogatepass") + b"\n")  # a file name may be no UTF-8
    return sha256.hexdigest()


def _known(values: set[Value]) -> Known:
    numbers = [value for value in values if not isinstance(value, str)]
    whole = all(isinstance(value, int) for value in numbers) and len(numbers) <= MOST_LISTED
    if len(numbers) == len(values) and not whole:
        return float(min(numbers)), float(max(numbers))
    return tuple(sorted({str(text_of(value)) for value in values}))


class RowSource(Protocol):
    """Where a plan's rows come from. Picklable. Shards are whole, and `shards` are ascending."""

    @property
    def shards(self) -> Sequence[int]: ...

    @property
    def summary(self) -> PlanSummary: ...

    def __len__(self) -> int: ...

    def shard_of(self, i: int) -> tuple[int, int]:
        """The shard of row `i` and the row's place in it."""
        ...

    def parts(self, shards_per_part: int) -> Iterator[range]:
        """Runs of consecutive shards that are saved, and read, together."""
        ...

    def rows(self, shards: range) -> Sequence[PlanRow]:
        """The rows of a run of shards, in plan order."""
        ...

    def lines(self, shards: range) -> bytes:
        """The same as lines of JSON."""
        ...


def runs(shards: Sequence[int], most: int) -> Iterator[range]:
    """Runs of consecutive numbers of ascending `shards`, none across a multiple of `most`."""
    if isinstance(shards, range):
        for start in range(shards.start - shards.start % most, shards.stop, most):
            yield range(max(start, shards.start), min(start + most, shards.stop))
        return
    first = 0
    for i in range(1, len(shards) + 1):
        if i == len(shards) or shards[i] != shards[i - 1] + 1 or shards[i] % most == 0:
            yield range(shards[first], shards[i - 1] + 1)
            first = i


class ListedRows:
    """Rows in memory, checked one by one, in the order of their shards.

    :class:`UsageError` for keys outside ``[A-Za-z0-9_-]{1,95}``, repeated keys, seeds out of range, changes in do().
    """

    def __init__(self, rows: Iterable[PlanRow], samples_per_shard: int) -> None:
        by_shard: dict[int, list[PlanRow]] = {}
        keys: set[str] = set()
        for row in rows:
            if not KEY.fullmatch(row.key) or len(row.key) > MAX_KEY or row.key in keys:
                raise UsageError(f"expected unique keys of 1 to {MAX_KEY} characters A-Z a-z 0-9 _ -, got {row.key!r}")
            if not (0 <= row.seed < MAX_SEED and row.shard >= 0 and row.replica >= 0):
                raise UsageError(
                    f"plan row {row.key!r}: expected seed in [0, 2**53), shard and replica >= 0, got {row}"
                )
            if row.do.changes:
                raise UsageError(f"plan row {row.key!r}: expected values in do, got {row.do}: resolve it (SCM.resolve)")
            keys.add(row.key)
            by_shard.setdefault(row.shard, []).append(row)
        for shard, members in by_shard.items():
            if len(members) > samples_per_shard:
                raise UsageError(f"shard {shard}: expected at most {samples_per_shard} rows, got {len(members)}")
        self.shards: Sequence[int] = sorted(by_shard)
        self._by_shard = {shard: tuple(by_shard[shard]) for shard in self.shards}
        self._starts = [0, *accumulate(len(members) for members in self._by_shard.values())]

    @cached_property
    def summary(self) -> PlanSummary:
        return PlanSummary.of(row for members in self._by_shard.values() for row in members)

    def __len__(self) -> int:
        return self._starts[-1]

    def shard_of(self, i: int) -> tuple[int, int]:
        number = bisect_right(self._starts, i) - 1
        return self.shards[number], i - self._starts[number]

    def parts(self, shards_per_part: int) -> Iterator[range]:
        return runs(self.shards, shards_per_part)

    def rows(self, shards: range) -> Sequence[PlanRow]:
        return [row for shard in shards for row in self._by_shard[shard]]

    def lines(self, shards: range) -> bytes:
        return b"".join(row.line() for row in self.rows(shards))
