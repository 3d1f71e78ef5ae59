"""The plan: one row per counterfactual image, and the only source of randomness in generation.

    row = (key, source_key, do, seed, shard, replica)        image = model(source, do, seed)

In memory a plan is a few arrays, about 25 bytes per row; a :class:`PlanRow` exists only while somebody looks at it. The files
are those of :mod:`cfaug.offline.plan_files`. The digests promise no authenticity: whoever can write the place can write a
consistent plan. A plan does not promise that the decoder obeys; the stages check that the label may be kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from cfaug.causal.intervention import Intervention, Value
from cfaug.errors import UsageError
from cfaug.offline import plan_files
from cfaug.offline.format import MAX_SAMPLES, SPLITS, shard_name
from cfaug.offline.inspect.cells import cells_table
from cfaug.offline.plan_columns import Columns, acts_of, listed, numbered
from cfaug.offline.plan_files import digest_of
from cfaug.offline.storage import open_storage

_RUN = 1000  # rows that are Python objects at a time


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


@dataclass(frozen=True)
class PlanSummary:
    """What is known of a plan as a whole.

    Attributes:
        rows, nulls: rows, and how many of them are null interventions.
        shards, sources: how many of each.
        sources_sha256: :func:`sources_digest` of the source keys.
        names: the attributes intervened on, sorted.
        values: attribute -> its values, sorted; of continuous numbers the least and the greatest.
    """

    rows: int
    nulls: int
    shards: int
    sources: int
    sources_sha256: str
    names: tuple[str, ...]
    values: Mapping[str, tuple[Value, ...]]


class Plan:
    """A sequence of :class:`PlanRow`, immutable, with its `split`, `samples_per_shard` (at most) and `settings`.

    Rows are in the order of their shards, and within a shard as given. `settings` says how the rows were drawn and is for
    people: `digest`, and with it ``==``, covers the split and the rows. :class:`UsageError` for keys outside
    ``[A-Za-z0-9_-]{1,95}``, repeated keys, seeds out of range, changes (``shift``, ...) in do(), shards too large.
    """

    def __init__(
        self,
        rows: Iterable[PlanRow],
        split: str = "train",
        samples_per_shard: int = 1000,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        rows = sorted(rows, key=attrgetter("shard"))
        self._set(listed(rows, split), split, samples_per_shard, settings or {})

    @classmethod
    def of_columns(cls, columns: Columns, split: str, samples_per_shard: int, settings: Mapping[str, Any]) -> Plan:
        """The plan of rows that are arrays already; whoever made them vouches for them."""
        plan = cls.__new__(cls)
        plan._set(columns, split, samples_per_shard, settings)
        return plan

    def _set(self, columns: Columns, split: str, samples_per_shard: int, settings: Mapping[str, Any]) -> None:
        check_shape(split, samples_per_shard)
        self.split = split
        self.samples_per_shard = samples_per_shard
        self.settings: dict[str, Any] = dict(settings)
        self._columns = columns
        self._starts = np.flatnonzero(np.r_[True, columns.shard[1:] != columns.shard[:-1]][: len(columns.shard)])
        self._numbers = columns.shard[self._starts]
        sizes = np.diff(self._starts, append=len(columns.shard))
        for shard in np.flatnonzero(sizes > samples_per_shard)[:1]:
            raise UsageError(
                f"shard {self._numbers[shard]}: expected at most {samples_per_shard} rows, got {sizes[shard]}; "
                "deal them to more shards"
            )

    def __len__(self) -> int:
        return len(self._columns.seed)

    def __iter__(self) -> Iterator[PlanRow]:
        for start in range(0, len(self), _RUN):
            yield from self._rows(start, start + _RUN)

    def __getitem__(self, i: int) -> PlanRow:
        place = i + len(self) if i < 0 else i
        if not 0 <= place < len(self):
            raise IndexError(f"expected a row of the plan (0 to {len(self) - 1}), got {i}")
        return self._rows(place, place + 1)[0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and (self is other or self.digest == other.digest)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Plan({len(self)} rows, {len(self.shards())} shards, split={self.split!r})"

    def _repr_html_(self) -> str:
        return cells_table(repr(self), self._columns.levels, self._columns.codes)

    def shards(self) -> list[int]:
        """The shard numbers, ascending."""
        numbers: list[int] = self._numbers.tolist()
        return numbers

    def rows_of(self, shard: int) -> list[PlanRow]:
        """The rows of one shard, in plan order; :class:`UsageError` for a shard that is not in the plan."""
        at = int(np.searchsorted(self._numbers, shard))
        if at == len(self._numbers) or self._numbers[at] != shard:
            last = self._numbers[-1] if len(self._numbers) else -1
            raise UsageError(f"expected a shard of the plan (0 to {last}), got {shard!r}; see plan.shards()")
        stop = self._starts[at + 1] if at + 1 < len(self._starts) else len(self)
        return self._rows(int(self._starts[at]), int(stop))

    def shard_name(self, shard: int) -> str:
        """File name of a shard: ``cf-train-000000.tar``."""
        return shard_name(self.split, shard)

    def missing(self, committed: Container[str]) -> list[int]:
        """The shards whose names are not among `committed`, ascending."""
        return [number for number in self.shards() if self.shard_name(number) not in committed]

    def sample(self, most: int) -> list[PlanRow]:
        """At most `most` rows that lie evenly over the plan, from few shards; all rows where there are no more.

        Drawn plans are shuffled, so this is a fair sample of them.
        """
        if len(self) <= most:
            return list(self)
        shards = self.shards()
        wanted = min(len(shards), -(-most * len(shards) // len(self)))
        per_shard = max(1, most // wanted)
        chosen = [shards[len(shards) * k // wanted] for k in range(wanted)]
        return [row for shard in chosen for row in self.rows_of(shard)[:per_shard]][:most]

    @property
    def sources(self) -> list[str]:
        """The different source keys of the rows."""
        return [self._columns.sources[i] for i in np.unique(self._columns.source).tolist()]

    @cached_property
    def summary(self) -> PlanSummary:
        """Counts, attributes and sources of the whole plan."""
        held = self._columns
        values = {}
        for (name, levels), codes in zip(held.levels.items(), held.codes):
            used = [levels[code] for code in np.unique(codes).tolist() if code >= 0]
            if used:
                values[name] = _known(used)
        keys = self.sources
        nulls = int((held.codes < 0).all(axis=0).sum())
        return PlanSummary(len(self), nulls, len(self._numbers), len(keys), sources_digest(keys), tuple(values), values)

    @cached_property
    def digest(self) -> str:
        """sha256 hex of the split and the rows: known once the plan is saved or loaded, else a pass over the rows."""
        return self.recomputed_digest()

    def recomputed_digest(self) -> str:
        """:attr:`digest`, from the rows in memory: that of a loaded plan unless its lines and its arrays disagree."""
        return digest_of(self._columns, self.split)

    def _rows(self, start: int, stop: int) -> list[PlanRow]:
        held, rows = self._columns, slice(start, min(stop, len(self)))
        acts, which = acts_of(held, rows)
        shared = [Intervention(tuple(act.items())) for act in acts]  # equal do() are one object
        keys = numbered(self.split, rows, len(self)) if held.keys is None else held.keys[rows]
        numbers = (column[rows].tolist() for column in (held.source, held.seed, held.shard, held.replica))
        return [
            PlanRow(key, held.sources[source], shared[act], seed, shard, replica)
            for key, act, source, seed, shard, replica in zip(keys, which.tolist(), *numbers)
        ]

    def save(self, place: str | Path) -> None:
        """Write the rows and, last, the header into a directory or to a URL, in place of what is there.

        :class:`StorageError` in one line where that fails; what is left then is not a plan.
        """
        header = {
            "rows": len(self), "shards": len(self._numbers), "split": self.split, "samples_per_shard": self.samples_per_shard,
            "attributes": list(self._columns.levels), "settings": self.settings,
        }  # fmt: skip
        self.digest = plan_files.save(open_storage(place), self._columns, self.split, header)

    @classmethod
    def load(cls, place: str | Path) -> Plan:
        """The plan saved in a directory or at a URL; all of it is checked against its digests.

        :class:`ShardError` in one line where it is missing, damaged or of a different format.
        """
        header, columns = plan_files.load(open_storage(place))
        plan = cls.of_columns(columns, header["split"], header["samples_per_shard"], header["settings"])
        plan.digest = header["digest"]
        return plan


def sources_digest(keys: Iterable[str]) -> str:
    """sha256 hex of the different source keys, sorted, each followed by a newline, in UTF-8."""
    sha256 = hashlib.sha256()
    for key in sorted(set(keys)):
        sha256.update(key.encode("utf-8", "surrogatepass") + b"\n")  # a file name need not be UTF-8
    return sha256.hexdigest()


def check_shape(split: object, samples_per_shard: object) -> None:
    """UsageError for an unknown split, and for a size of shards out of range."""
    if split not in SPLITS:
        raise UsageError(f"expected a split among {', '.join(SPLITS)}, got {split!r}")
    if type(samples_per_shard) is not int or not 1 <= samples_per_shard <= MAX_SAMPLES:
        raise UsageError(f"expected samples_per_shard of 1 to {MAX_SAMPLES}, got {samples_per_shard!r}")


def _known(used: list[Value]) -> tuple[Value, ...]:
    if all(isinstance(value, float) for value in used):
        return min(used), max(used)  # type: ignore[type-var]
    return tuple(sorted(used, key=lambda value: (value is None, isinstance(value, str), value)))
