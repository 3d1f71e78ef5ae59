"""The plan: one row per counterfactual image, and the only source of randomness in generation.

    row = (key, source_key, do, seed, shard, replica)        image = model(source, do, seed)

A plan is listed (``Plan(rows)``), drawn (:mod:`cfaug.offline.plan.strategies`) or loaded (``Plan.load``); a drawn one computes
its rows shard by shard, a loaded one reads them part by part, so 100 million rows need no more memory than their sources.
It does not promise that the decoder obeys, nor that an attribute is no ancestor of the target: the stages check that.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

from cfaug.errors import UsageError
from cfaug.offline.format import MAX_SAMPLES, SPLITS, shard_name
from cfaug.offline.plan.file import PLAN_FORMAT, LoadedRows, encoded, load_header, plan_digest, save_plan
from cfaug.offline.plan.rows import ListedRows, PlanRow, PlanSummary, RowSource, sources_digest
from cfaug.offline.storage import open_storage

__all__ = ["PLAN_FORMAT", "ROWS_PER_PART", "Plan", "PlanRow", "PlanSummary", "sources_digest"]

ROWS_PER_PART = 50_000  # 8 MB: read and checked in some 20 ms, and 2 000 files for 100 million rows


class Plan:
    """A sequence of :class:`PlanRow`, immutable, with its `split`, `samples_per_shard` (at most) and `settings`.

    Rows are in the order of their shards, and within a shard as given. `settings` says how the rows were drawn and is for
    people: `digest`, and with it ``==``, covers the split and the rows in their shards. Iteration streams; ``plan[i]`` and
    ``rows_of`` look at one shard. :class:`UsageError` for keys outside ``[A-Za-z0-9_-]{1,95}``, repeated keys, seeds out of
    range, shards too large.
    """

    def __init__(
        self,
        rows: Iterable[PlanRow],
        split: str = "train",
        samples_per_shard: int = 1000,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        refuse_wrong_shape(split, samples_per_shard)
        self._set(ListedRows(rows, samples_per_shard), split, samples_per_shard, settings or {})

    @classmethod
    def drawn(cls, source: RowSource, split: str, samples_per_shard: int, settings: Mapping[str, Any]) -> Plan:
        """The plan of a row source, which vouches for its rows."""
        refuse_wrong_shape(split, samples_per_shard)
        plan = cls.__new__(cls)
        plan._set(source, split, samples_per_shard, settings)
        return plan

    def _set(self, source: RowSource, split: str, samples_per_shard: int, settings: Mapping[str, Any]) -> None:
        self.split = split
        self.samples_per_shard = samples_per_shard
        self.settings: dict[str, Any] = dict(settings)
        self._source = source
        self._last: tuple[int, tuple[PlanRow, ...]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_last": None}

    def __len__(self) -> int:
        return len(self._source)

    def __iter__(self) -> Iterator[PlanRow]:
        for shards in self._source.parts(self._shards_per_part):
            yield from self._source.rows(shards)

    def __getitem__(self, i: int) -> PlanRow:
        place = i + len(self) if i < 0 else i
        if not 0 <= place < len(self):
            raise IndexError(f"expected a row of the plan (0 to {len(self) - 1}), got {i}")
        shard, within = self._source.shard_of(place)
        return self.rows_of(shard)[within]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and (self is other or self.digest == other.digest)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        digest = vars(self).get("digest", "")  # not worth a pass over 100 million rows
        known = f", digest={digest[:12]}" if digest else ""
        return f"Plan({len(self)} rows, {len(self.shards())} shards, split={self.split!r}{known})"

    def shards(self) -> Sequence[int]:
        """The shard numbers, ascending: a range unless some are missing."""
        return self._source.shards

    def rows_of(self, shard: int) -> tuple[PlanRow, ...]:
        """The rows of one shard, in plan order; :class:`UsageError` for a shard that is not in the plan.

        Of a loaded plan :class:`ShardError` when the part that has them is missing or damaged.
        """
        if self._last is not None and self._last[0] == shard:
            return self._last[1]
        known = self._source.shards
        if not _holds(known, shard):
            raise UsageError(f"expected a shard of the plan (0 to {known[-1] if known else -1}), got {shard!r}")
        rows = tuple(self._source.rows(range(shard, shard + 1)))
        self._last = shard, rows
        return rows

    def shard_name(self, shard: int) -> str:
        """File name of a shard: ``cf-train-000000.tar``."""
        return shard_name(self.split, shard)

    def missing(self, committed: Container[str]) -> list[int]:
        """The shards whose names are not among `committed`, ascending."""
        return [number for number in self.shards() if self.shard_name(number) not in committed]

    def sample(self, most: int) -> list[PlanRow]:
        """At most `most` rows from shards that lie evenly over the plan; all rows where there are no more.

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
    def summary(self) -> PlanSummary:
        """Counts, attributes and sources of the whole plan; without a pass over the rows unless they are listed."""
        return self._source.summary

    @cached_property
    def digest(self) -> str:
        """sha256 hex of the split and the rows in their shards: known when loaded, else a pass over the rows."""
        return plan_digest(self.split, (part for part, _ in encoded(self._source, self._shards_per_part)))

    def save(self, place: str | Path) -> None:
        """Write ``plan-00000.jsonl`` ... and, last, the header ``plan.json`` into a directory or to a URL.

        A plan without header is no plan. :class:`StorageError` in one line when that fails.
        """
        storage, source = open_storage(place), self._source
        if isinstance(source, LoadedRows) and source.storage == storage:
            source.check()  # it is there; writing it would begin by removing it
            return
        about = {"split": self.split, "samples_per_shard": self.samples_per_shard, "settings": self.settings}
        self.digest = save_plan(storage, source, self._shards_per_part, about, self.summary)

    @classmethod
    def load(cls, place: str | Path) -> Plan:
        """The plan saved in a directory or at a URL; :class:`ShardError` when it is missing, damaged or of another format.

        Only the header is read now; every part is checked when it is read, and by ``check``.
        """
        storage = open_storage(place)
        header = load_header(storage)
        source = LoadedRows(storage, header["parts"], header["summary"])
        plan = cls.drawn(source, header["split"], header["samples_per_shard"], header["settings"])
        plan.digest = header["digest"]
        return plan

    def check(self) -> None:
        """Read every part of a loaded plan; :class:`ShardError` for the first that is missing or damaged."""
        if isinstance(self._source, LoadedRows):
            self._source.check()

    @property
    def _shards_per_part(self) -> int:
        return max(1, ROWS_PER_PART // self.samples_per_shard)


def _holds(numbers: Sequence[int], number: object) -> bool:
    """Whether `number` is one of ascending `numbers`, however many they are."""
    if isinstance(numbers, range) or not isinstance(number, Integral):
        return number in numbers
    at = bisect_left(numbers, int(number))
    return at < len(numbers) and numbers[at] == number


def refuse_wrong_shape(split: object, samples_per_shard: object) -> None:
    """UsageError for an unknown split or a size of shards that is none."""
    if split not in SPLITS:
        raise UsageError(f"expected a split among {', '.join(SPLITS)}, got {split!r}")
    if type(samples_per_shard) is not int or not 1 <= samples_per_shard <= MAX_SAMPLES:
        raise UsageError(f"expected samples_per_shard of 1 to {MAX_SAMPLES}, got {samples_per_shard!r}")
