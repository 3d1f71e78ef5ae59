"""Verification: does every committed shard hold exactly what was written, and nothing else?

Each tar is read once by the strict walk of :mod:`cfaug.offline.scan`: every header, payload and padding must be what format 1
demands and what the index says; each sample is decoded and compared with index and manifest; the whole has the manifest's sha256.
What is wrong is named by shard and key. With the plan (given, or found beside the shards) the report also says what is missing.
Verification repairs nothing, and it cannot tell a good counterfactual from a bad one.

Memory: one shard's index, about 2 KB per shard for manifest and listing, and 16 bytes per sample for the keys and the sources
(1.6 GB for 100 million samples). The report has at most `MOST` lines per shard and `TOLD` lines in all; the rest is counted.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from cfaug.data.files import PARTIAL
from cfaug.errors import ShardError, StorageError
from cfaug.offline.decoders import decode_image, parse_record
from cfaug.offline.format import (
    CARD,
    INDEX,
    INDEX_FILE,
    MANIFEST,
    PLAN_HEADER,
    TAR,
    IndexRow,
    ManifestRow,
)
from cfaug.offline.index import Unusable, agrees, published_index
from cfaug.offline.os_errors import unreadable
from cfaug.offline.plan import Plan
from cfaug.offline.read_committed import COMMITS, check_size, open_shards, read_index, read_manifest, vouched
from cfaug.offline.scan import read_exactly, scan, walk
from cfaug.offline.storage import Storage, open_storage

MOST = 20  # lines about one shard, and about any one other thing
TOLD = 1000  # lines about shards


@dataclass(frozen=True)
class VerifyReport:
    """`ok` when there are no `problems` (one line each, naming shard and key).

    `counts`: shards, samples, null (interventions among the samples), sources, bytes (of the tars).
    `leftovers`: partial files in a directory, of a run that was killed or that is running. Nobody reads them, and the next
    run that nobody else writes beside removes them; an object store has none. `notes` say what could not be checked.
    """

    problems: tuple[str, ...]
    counts: dict[str, int] = field(default_factory=dict)
    leftovers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        notes = [*(f"leftover: {name}" for name in self.leftovers), *self.notes]
        return "\n".join([f"{'ok' if self.ok else 'NOT ok'}: {counts}", *self.problems, *notes])


def verify(directory: str | Path, plan: Plan | None = None) -> VerifyReport:
    """Verify a run's output or its ``shards`` (a path or a URL); `plan` defaults to the one beside the shards, if any.

    Damage is reported, not raised, and so is a shard that could not be read because the place did not answer.

    Raises:
        ShardError: there is no manifest to verify.
        StorageError: not even the manifest could be read (``transient``).
    """
    storage, sizes = open_shards(directory)
    if MANIFEST not in sizes and not storage.sizes(COMMITS):
        raise ShardError(
            f"expected {storage.url}/{MANIFEST}, got none: is this a cfaug run, and has it generated anything?"
        )
    problems: list[str] = []
    counts = {"shards": 0, "samples": 0, "null": 0, "sources": 0, "bytes": 0}
    leftovers = tuple(sorted(name for name in sizes if name.endswith(PARTIAL)))
    keys, sources = array("q"), array("q")  # hash() is salted in each process: nobody can aim at a collision
    try:
        manifest = read_manifest(storage)
    except ShardError as error:
        return VerifyReport((str(error),), counts, leftovers)
    untold = 0
    for row in manifest:
        counts["shards"] += 1
        counts["bytes"] += row.bytes
        found, index = _of_shard(storage, row, sizes)
        room = TOLD - len(problems)
        problems += found[:room]
        untold += len(found[room:])
        counts["samples"] += len(index)
        counts["null"] += sum(sample.null for sample in index)
        keys.extend(hash(sample.key) for sample in index)
        sources.extend(hash(sample.source_key) for sample in index)
    if untold:
        problems.append(f"and {untold} more lines about shards like these")
    problems += _most(_repeated(storage, manifest, sizes, keys), "and {} more about keys")
    counts["sources"] = len(np.unique(np.frombuffer(sources, np.int64))) if sources else 0
    expected = {name for row in manifest for name in (row.name, row.index)}
    strays = (name for name in sorted(sizes) if name.endswith((TAR, INDEX)) and name not in expected)
    problems += _most(
        (f"{name}: not in the manifest, so nobody vouches for it: generate again, or remove it" for name in strays),
        "and {} more files that are not in the manifest",
    )
    if plan is None:
        plan, unreadable_plan = _plan_beside(storage)
        problems += unreadable_plan
    if plan is not None:
        problems += _against_plan(sizes, manifest, plan)
    notes = _index_notes(storage, manifest, sizes)
    if plan is not None or CARD in sizes:  # the card comes with the last shard
        return VerifyReport(tuple(problems), counts, leftovers, notes)
    if MANIFEST not in sizes:  # an object store gets it with the last shard
        problems.append(f"the run is not finished, {len(manifest)} shards are committed so far: generate again")
    note = f"no plan beside the shards and no {CARD}: whether shards are missing is not known; give the run's directory"
    return VerifyReport(tuple(problems), counts, leftovers, (*notes, note))


def _of_shard(storage: Storage, row: ManifestRow, sizes: dict[str, int]) -> tuple[list[str], list[IndexRow]]:
    """What is wrong with one shard, and its index: empty where that is of no use."""
    more = f"{row.name}: {{}} more problems like these"
    try:
        index = read_index(storage, row, sizes)
    except ShardError as error:
        return _most([str(error), *_without_index(storage, row, sizes)], more), []
    except StorageError as error:  # which says nothing of the shard
        return [str(error)], []
    return _most(_shard_problems(storage, row, index, sizes), more), index


def _shard_problems(storage: Storage, row: ManifestRow, index: list[IndexRow], sizes: dict[str, int]) -> Iterator[str]:
    try:
        check_size(row.name, row.bytes, sizes)
    except ShardError as error:
        yield str(error)
        if row.name not in sizes:
            return
    try:
        with storage.opened(row.name) as stream:
            yield from _tar_problems(_Hashed(stream), row, index)
    except OSError as error:
        yield str(unreadable(error, row.name, "generate this shard again"))


class _Hashed:
    """A stream that hashes what passes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.sha256, self.size = stream, hashlib.sha256(), 0

    def read(self, size: int) -> bytes:
        data = read_exactly(self.stream, size)
        self.sha256.update(data)
        self.size += len(data)
        return data


def _tar_problems(stream: _Hashed, row: ManifestRow, index: list[IndexRow]) -> Iterator[str]:
    """Every member of the tar against what the index says stands there, and the whole against the manifest."""
    members, where = walk(stream, row.name), row.name
    try:
        for sample in index:
            where = f"{row.name}, sample {sample.key!r}"
            payloads = []
            for field_, vouching in (("json", sample.json), (sample.image_field, sample.image)):
                member = next(members, None)
                if member is None or (member.key, member.field, len(member.data)) != (
                    sample.key,
                    field_,
                    vouching.size,
                ):
                    name = "the end" if member is None else f"{member.key}.{member.field} of {len(member.data)} bytes"
                    yield f"{where}: expected its {field_} of {vouching.size} bytes, got {name}: generate this shard again"
                    return
                payloads.append(member.data)
            yield from _sample_problems(row, sample, payloads, where)
        where = row.name
        for member in members:
            yield f"{row.name}: expected the end after its last sample, got {member.key}.{member.field}: generate it again"
            return
    except ShardError as error:  # behind it nothing can be told apart
        yield f"{where}: {str(error).partition(': ')[2]}" if where not in str(error) else str(error)
        return
    found = stream.sha256.hexdigest()
    if (stream.size, found) != (row.bytes, row.sha256):
        yield (
            f"{row.name}: expected {row.bytes} bytes with sha256 {row.sha256[:12]}..., got {stream.size} with {found[:12]}...: "
            "remove this file and generate again"
        )


def _sample_problems(row: ManifestRow, sample: IndexRow, payloads: list[bytes], where: str) -> Iterator[str]:
    try:
        record = parse_record(vouched(payloads[0], sample.json, where), where)
        said = (record["key"], record["source_key"], record["source_digest"], record["split"], not record["do"])
        if said != (sample.key, sample.source_key, sample.source_digest, sample.split, sample.null):
            yield f"{where}: its record and the index disagree: generate this shard again"
        if record["model"] != row.model:
            yield f"{where}: its record names a different model than the manifest: generate again"
    except ShardError as error:
        yield str(error)
    try:
        image = vouched(payloads[1], sample.image, where)
        if sample.xxh3 is not None and not agrees(image, int(sample.xxh3.image, 16), xxh3=True):
            yield f"{where}: its image does not have the xxh3 that the index states: generate this shard again"
        decode_image(image, where, sample.image_field)
    except ShardError as error:
        yield str(error)


def _without_index(storage: Storage, row: ManifestRow, sizes: dict[str, int]) -> list[str]:
    """What can be said of a tar whose index is of no use."""
    try:
        check_size(row.name, row.bytes, sizes)
        with storage.opened(row.name) as stream:
            hashed = _Hashed(stream)
            for _ in scan(hashed, row.name):
                pass
        if hashed.sha256.hexdigest() != row.sha256:
            return [f"{row.name}: it does not have the sha256 of the manifest either: generate it again"]
    except (ShardError, StorageError) as error:
        return [str(error)]
    except OSError as error:
        return [str(unreadable(error, row.name, "generate this shard again"))]
    return []


def _index_notes(storage: Storage, manifest: list[ManifestRow], sizes: dict[str, int]) -> tuple[str, ...]:
    """A note where index.npy is of no use; it is derived, so nothing is lost."""
    if INDEX_FILE not in sizes or not manifest:
        return ()
    try:
        published_index(storage, manifest)
        return ()
    except Unusable as reason:
        return (f"{INDEX_FILE}: {reason}: readers do without it; remove it, and generate again writes it anew",)


def _most(problems: Iterable[str], more: str) -> list[str]:
    """The first `MOST`, and in a line `more` how many there are beside them."""
    remaining = iter(problems)
    told = list(islice(remaining, MOST))
    untold = sum(1 for _ in remaining)
    return [*told, more.format(untold)] if untold else told


def _repeated(storage: Storage, manifest: list[ManifestRow], sizes: dict[str, int], keys: array[int]) -> Iterator[str]:
    """Keys in more than one place: those whose hashes are equal are read again, so no collision is taken for one."""
    if not keys:
        return
    hashes = np.frombuffer(keys, np.int64)  # sorted in place: no second copy
    hashes.sort()
    suspects = frozenset(np.unique(hashes[1:][hashes[1:] == hashes[:-1]])[:MOST].tolist())
    if not suspects:
        return
    seen: dict[str, str] = {}
    for row in manifest:
        try:
            index = read_index(storage, row, sizes)
        except ShardError:
            continue  # reported already
        except StorageError as error:
            yield str(error)
            continue
        for key in (sample.key for sample in index if hash(sample.key) in suspects):
            if key in seen:
                yield f"{row.name}, sample {key!r}: the key is also in {seen[key]}"
            seen[key] = row.name


def _plan_beside(storage: Storage) -> tuple[Plan | None, list[str]]:
    """The plan of the run whose shards these are, if it lies beside them; and what is wrong with it."""
    beside = f"{storage.url.rstrip('/').rpartition('/')[0] or '..'}/plan"
    try:
        if PLAN_HEADER not in open_storage(beside).sizes(PLAN_HEADER):
            return None, []
        plan = Plan.load(beside)
        if plan.recomputed_digest() != plan.digest:
            return None, [f"{beside}: its lines and its arrays are those of different plans: plan again"]
        return plan, []
    except (ShardError, StorageError) as error:
        return None, [str(error)]
    except OSError as error:
        return None, [str(unreadable(error, f"the plan {beside}", "check the path"))]


def _against_plan(sizes: dict[str, int], manifest: list[ManifestRow], plan: Plan) -> list[str]:
    if manifest and manifest[0].plan != plan.digest:
        return ["the shards were generated from a different plan than the one beside them: generate with --overwrite"]
    if missing := plan.missing({row.name for row in manifest}):
        first = plan.shard_name(missing[0])
        return [f"{len(missing)} of {len(plan.shards())} shards are not there yet ({first}): generate again"]
    return [] if CARD in sizes else [f"{CARD} is missing: generate again"]
