"""The plan: one row per counterfactual image, and the only source of randomness in generation.

    row = (key, source_key, do, seed, shard, replica)        image = model(source, do, seed)

    plan.json                 format, rows, shards, split, samples_per_shard, settings, digest
    plan-00000.jsonl, ...     the rows, 100 000 per file, one JSON object per line
    digest = sha256("cfaug plan 3 SPLIT", then the lines of all files)

In memory a plan is a few arrays, about 25 bytes per row; a :class:`PlanRow` exists only while somebody looks at it. The header
is written last: files without a header are not a plan. The digests promise no authenticity: whoever can write the place can
write a consistent plan. A plan does not promise that the decoder obeys; the stages check that the label may be kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cfaug.causal.intervention import Intervention, Value
from cfaug.errors import ShardError, UsageError, one_line, shown
from cfaug.offline.format import MAX_SAMPLES, PLAN_HEADER, SPLITS, canonical_json, shard_name
from cfaug.offline.os_errors import explained, unreadable
from cfaug.offline.plan_columns import Columns, Filling, numbered
from cfaug.offline.storage import Storage, open_storage

PLAN_FORMAT = 3
ROWS_PER_FILE = 100_000  # 13 MB of text
_RUN = 1000  # rows that are Python objects at a time: more are slower to parse

T = TypeVar("T")


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
        for row in rows:
            if row.do.changes:
                raise UsageError(f"plan row {row.key!r}: expected values in do, got {row.do}; set a value instead")
        filled = Filling(len(rows), split, sorted({name for row in rows for name in row.do.names}))
        filled.add(
            [
                {
                    "key": row.key, "source_key": row.source_key, "do": row.do.assignments, "seed": row.seed,
                    "shard": row.shard, "replica": row.replica,
                }
                for row in rows
            ]
        )  # fmt: skip
        self._set(filled.columns(), split, samples_per_shard, settings or {})

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
        self._numbers, self._starts, sizes = np.unique(columns.shard, return_index=True, return_counts=True)
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
        sha256 = _begun(self.split)
        for content in self._files():
            sha256.update(content)
        return sha256.hexdigest()

    # --- rows and lines
    def _rows(self, start: int, stop: int) -> list[PlanRow]:
        sources = self._columns.sources
        return [
            PlanRow(key, sources[source], act, seed, shard, replica)
            for key, source, act, seed, shard, replica in self._fields(start, stop, lambda act: act)
        ]

    def _files(self) -> Iterator[bytes]:
        """The content of ``plan-00000.jsonl`` and the files after it."""
        sources = [json.dumps(key) for key in self._columns.sources]

        def text(act: Intervention) -> str:
            return canonical_json(dict(act.assignments)).decode("ascii")

        for start in range(0, len(self), ROWS_PER_FILE):
            yield "".join(
                [
                    f'{{"key":"{key}","source_key":{sources[source]},"do":{act},"seed":{seed},"shard":{shard},"replica":{replica}}}\n'
                    for key, source, act, seed, shard, replica in self._fields(start, start + ROWS_PER_FILE, text)
                ]
            ).encode("ascii")

    def _fields(
        self, start: int, stop: int, told: Callable[[Intervention], T]
    ) -> Iterator[tuple[str, int, T, int, int, int]]:
        """(key, number of the source, `told` its intervention, seed, shard, replica) of each row; equal do() share one."""
        held, rows = self._columns, slice(start, min(stop, len(self)))

        @cache
        def act(codes: tuple[int, ...]) -> T:
            pairs = ((name, levels[code]) for (name, levels), code in zip(held.levels.items(), codes) if code >= 0)
            return told(Intervention(tuple(pairs)))

        keys = numbered(self.split, rows, len(self)) if held.keys is None else held.keys[rows]
        return zip(
            keys, held.source[rows].tolist(), map(act, map(tuple, held.codes[:, rows].T.tolist())),
            held.seed[rows].tolist(), held.shard[rows].tolist(), held.replica[rows].tolist(),
        )  # fmt: skip

    # --- on disk
    def save(self, place: str | Path) -> None:
        """Write the rows and, last, the header into a directory or to a URL, in place of what is there.

        :class:`StorageError` in one line where that fails; what is left then is not a plan.
        """
        storage, sha256 = open_storage(place), _begun(self.split)
        with explained(storage.url, "the plan"):
            storage.remove(PLAN_HEADER)
            for old in storage.sizes("plan-"):
                storage.remove(old)
            for number, content in enumerate(self._files()):
                sha256.update(content)
                storage.write(_file_name(number), content)
            self.digest = sha256.hexdigest()
            header = {
                "format": PLAN_FORMAT, "rows": len(self), "shards": len(self._numbers), "split": self.split,
                "samples_per_shard": self.samples_per_shard, "attributes": list(self._columns.levels),
                "settings": self.settings, "digest": self.digest,
            }  # fmt: skip
            header["sha256"] = _sealed(header)
            storage.write(PLAN_HEADER, json.dumps(header, indent=1, allow_nan=False).encode() + b"\n")

    @classmethod
    def load(cls, place: str | Path) -> Plan:
        """The plan saved in a directory or at a URL; all of it is checked against its digest.

        :class:`ShardError` in one line where it is missing, damaged or of a different format.
        """
        storage = open_storage(place)
        where = f"{storage.url.rstrip('/')}/{PLAN_HEADER}"
        content = _read(storage, PLAN_HEADER)
        try:
            header = json.loads(content)
            if header["format"] != PLAN_FORMAT:
                raise ShardError(
                    f"{where}: expected plan format {PLAN_FORMAT}, got {shown(header['format'])}; plan again, or use the "
                    "cfaug that wrote it"
                )
            if header["sha256"] != _sealed(header):
                raise ShardError(f"{where}: the header does not have the digest it states; plan again")
            rows, split, sha256 = int(header["rows"]), str(header["split"]), _begun(header["split"])
            filled = Filling(rows, split, header["attributes"])
            for number in range(-(-rows // ROWS_PER_FILE)):
                content = _read(storage, _file_name(number))
                sha256.update(content)
                lines = content.splitlines()
                for start in range(0, len(lines), _RUN):
                    filled.add(json.loads(b"[" + b",".join(lines[start : start + _RUN]) + b"]"))
            if sha256.hexdigest() != header["digest"]:
                raise ShardError(f"{where}: the rows do not have the digest that the header states; plan again")
            plan = cls.of_columns(filled.columns(), split, header["samples_per_shard"], header["settings"])
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ShardError(
                f"{where}: the plan is damaged ({type(error).__name__}: {one_line(error, 80)}); plan again"
            ) from None
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
    return tuple(sorted(used, key=lambda value: (isinstance(value, str), value)))


def _begun(split: str) -> hashlib._Hash:
    return hashlib.sha256(f"cfaug plan {PLAN_FORMAT} {split}\n".encode())


def _sealed(header: Mapping[str, Any]) -> str:
    """The digest of a header's other fields: what the digest of the rows does not cover."""
    return hashlib.sha256(canonical_json({name: header[name] for name in header if name != "sha256"})).hexdigest()


def _file_name(number: int) -> str:
    return f"plan-{number:05d}.jsonl"


def _read(storage: Storage, name: str) -> bytes:
    try:
        return storage.read(name)
    except OSError as error:
        raise unreadable(error, f"{storage.url.rstrip('/')}/{name}", "plan first") from None
