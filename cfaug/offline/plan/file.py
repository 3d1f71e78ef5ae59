"""Plan format 2: a header and parts. Nothing ever holds all rows, and no row is used before its part is checked.

    plan.json                 format, rows, shards, split, samples_per_shard, settings, digest, summary, parts, sha256
    plan-00000.jsonl, ...     the rows of whole consecutive shards, about 50 000, one JSON object a line
    digest = sha256("cfaug plan 2", split, sha256 of each part)

The header is written last: a plan without header is no plan. Its own ``sha256`` is that of its other fields as canonical
JSON. It promises no authenticity: whoever can write the place can write a consistent plan.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from cfaug.causal.intervention import Intervention
from cfaug.errors import CfaugError, ShardError
from cfaug.offline.format import MAX_SEED, PLAN_HEADER, SPLITS, canonical_json
from cfaug.offline.os_errors import explained, unreadable
from cfaug.offline.plan.rows import PlanRow, PlanSummary, RowSource
from cfaug.offline.storage import Storage

PLAN_FORMAT = 2
HEADER_FIELDS = (
    "format", "rows", "shards", "split", "samples_per_shard", "settings", "digest", "summary", "parts", "sha256",
)  # fmt: skip


class Part(NamedTuple):
    """One file of a plan: `shards` consecutive shards from `first_shard` on, `rows` lines, what vouches for its bytes."""

    name: str
    first_shard: int
    shards: int
    rows: int
    bytes: int
    sha256: str

    @property
    def numbers(self) -> range:
        return range(self.first_shard, self.first_shard + self.shards)


def plan_digest(split: str, parts: Iterable[Part]) -> str:
    """sha256 hex of the split and the parts."""
    sha256 = hashlib.sha256(f"cfaug plan {PLAN_FORMAT} {split}\n".encode())
    for part in parts:
        sha256.update(f"{part.sha256}\n".encode())
    return sha256.hexdigest()


def encoded(source: RowSource, shards_per_part: int) -> Iterator[tuple[Part, bytes]]:
    """The parts of a plan and their bytes, one after the other."""
    for number, shards in enumerate(source.parts(shards_per_part)):
        content = source.lines(shards)
        name = f"plan-{number:05d}.jsonl"
        digest = hashlib.sha256(content).hexdigest()
        yield Part(name, shards.start, len(shards), content.count(b"\n"), len(content), digest), content


def save_plan(
    storage: Storage, source: RowSource, shards_per_part: int, about: Mapping[str, Any], summary: PlanSummary
) -> str:
    """Write the parts and, last, the header; its digest. `about`: split, samples_per_shard, settings.

    :class:`CfaugError` in one line for a full disk or a place that cannot be written.
    """
    with explained(storage.url, "the plan"):
        storage.remove(PLAN_HEADER)
        for old in storage.sizes("plan-"):
            storage.remove(old)
        parts = []
        for part, content in encoded(source, shards_per_part):
            storage.write(part.name, content)
            parts.append(part)
        digest = plan_digest(about["split"], parts)
        header = {
            "format": PLAN_FORMAT, "rows": len(source), "shards": len(source.shards), **about, "digest": digest,
            "summary": summary.to_json(), "parts": [part._asdict() for part in parts],
        }  # fmt: skip
        header["sha256"] = _header_digest(header)
        storage.write(PLAN_HEADER, json.dumps(header, indent=1, allow_nan=False).encode() + b"\n")
    return digest


def load_header(storage: Storage) -> dict[str, Any]:
    """The checked header of the plan in `storage`, ``parts`` as :class:`Part`, ``summary`` as :class:`PlanSummary`.

    :class:`ShardError` in one line when it is missing, damaged or of another format.
    """
    where = f"{storage.url.rstrip('/')}/{PLAN_HEADER}"
    try:
        header = json.loads(storage.read(PLAN_HEADER))
        if header["format"] != PLAN_FORMAT:
            raise ShardError(
                f"{where}: plan format {header['format']!r}, this cfaug reads {PLAN_FORMAT}: plan again, "
                "or use the cfaug that wrote it"
            )
        if set(header) != set(HEADER_FIELDS) or header["sha256"] != _header_digest(header):
            raise ShardError(f"{where}: the header does not have the digest it states: plan again")
        parts = [Part(**part) for part in header["parts"]]
        counts = [header["rows"], header["shards"], header["samples_per_shard"]]
        counts += [n for part in parts for n in (part.first_shard, part.shards, part.rows, part.bytes)]
        after = [0, *(part.first_shard + part.shards for part in parts)]
        sound = (
            all(type(n) is int and n >= 0 for n in counts)
            and all(start <= part.first_shard for start, part in zip(after, parts))
            and all("/" not in part.name and "\\" not in part.name and part.shards for part in parts)
            and (sum(part.rows for part in parts), sum(part.shards for part in parts)) == (counts[0], counts[1])
            and header["split"] in SPLITS
        )
        if not sound or plan_digest(header["split"], parts) != header["digest"]:
            raise ShardError(f"{where}: the plan does not have the digest its header states: plan again")
        return {**header, "parts": parts, "summary": PlanSummary.from_json(header["summary"])}
    except OSError as error:
        raise _unread(storage, PLAN_HEADER, error) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ShardError(f"{where}: the plan is damaged ({type(error).__name__}: {error}): plan again") from None


class LoadedRows:
    """Rows of a saved plan: small, whatever the plan is; the bytes of the last part are kept by each process."""

    def __init__(self, storage: Storage, parts: Sequence[Part], summary: PlanSummary) -> None:
        self.storage = storage
        self._parts = tuple(parts)
        self.summary = summary
        self._first_shards = [part.first_shard for part in parts]
        self._starts = [0, *accumulate(part.rows for part in parts)]
        self.shards: Sequence[int] = _joined([part.numbers for part in parts])
        self._last: tuple[int, list[bytes]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_last": None}

    def __len__(self) -> int:
        return self._starts[-1]

    def shard_of(self, i: int) -> tuple[int, int]:
        number = bisect_right(self._starts, i) - 1
        lines, place = self._lines(number), i - self._starts[number]
        shard = _shard(lines[place])
        return shard, place - bisect_left(lines, shard, key=_shard)

    def parts(self, shards_per_part: int) -> Iterator[range]:
        return (part.numbers for part in self._parts)

    def rows(self, shards: range) -> Sequence[PlanRow]:
        number = bisect_right(self._first_shards, shards.start) - 1
        lines = self._lines(number)
        known: dict[str, Intervention] = {}
        try:
            some = lines[bisect_left(lines, shards.start, key=_shard) : bisect_left(lines, shards.stop, key=_shard)]
            found = [PlanRow.parse(line, known) for line in some]
            if not all(0 <= row.seed < MAX_SEED and row.shard in shards for row in found):
                raise ValueError("a seed or a shard is out of range")
            return found
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            part = self._parts[number].name
            raise ShardError(
                f"{self.storage.url}/{part}: no plan rows ({type(error).__name__}: {error}): plan again"
            ) from None

    def lines(self, shards: range) -> bytes:
        return b"".join(self._lines(bisect_right(self._first_shards, shards.start) - 1))

    def check(self) -> None:
        for number in range(len(self._parts)):
            self._lines(number)

    def _lines(self, number: int) -> list[bytes]:
        """The checked lines of one part."""
        if self._last is not None and self._last[0] == number:
            return self._last[1]
        part = self._parts[number]
        self._last = None  # one part in memory, not two
        try:
            content = self.storage.read(part.name)
        except OSError as error:
            raise _unread(self.storage, part.name, error) from None
        if len(content) != part.bytes or hashlib.sha256(content).hexdigest() != part.sha256:
            raise ShardError(
                f"{self.storage.url}/{part.name}: the part does not have the digest its header states: plan again"
            )
        lines = content.splitlines(keepends=True)
        if len(lines) != part.rows:
            raise ShardError(f"{self.storage.url}/{part.name}: expected {part.rows} rows, got {len(lines)}: plan again")
        self._last = number, lines
        return lines


def _shard(line: bytes) -> int:
    """The shard of a line without parsing all of it: "shard" and "replica" are its last fields, and both are numbers."""
    start = line.rfind(b'"shard":') + 8
    return int(line[start : line.index(b",", start)])


def _joined(runs: Sequence[range]) -> Sequence[int]:
    if all(before.stop == after.start for before, after in pairwise(runs)):
        return range(runs[0].start, runs[-1].stop) if runs else range(0)
    return [number for numbers in runs for number in numbers]


def _header_digest(header: Mapping[str, Any]) -> str:
    return hashlib.sha256(
        canonical_json({name: header[name] for name in HEADER_FIELDS if name != "sha256"})
    ).hexdigest()


def _unread(storage: Storage, name: str, error: OSError) -> CfaugError:
    return unreadable(error, f"{storage.url.rstrip('/')}/{name}", "plan first")
