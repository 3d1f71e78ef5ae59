"""Verification: whether every committed shard holds exactly what was written, and nothing else.

Each tar is read once by the strict walk of :mod:`cfaug.offline.scan`. Every header, payload and padding must be what format 1
demands and what the index says, each sample is decoded and compared with index and manifest, and the whole must have the
manifest's sha256. The report names what is wrong by shard and key. With the plan (given, or found beside the shards) it also
says which shards are missing. Verification repairs nothing, and it does not judge whether a counterfactual is a good one.

Memory: one shard's index, about 2 KB per shard for manifest and listing, and 16 bytes per sample for the keys and the sources
(1.6 GB for 100 million samples). The report has at most `MOST` lines per shard and `LISTED` in all; the rest is counted.
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

MOST = 20  # lines about one shard, and about one kind of file or key
LISTED = 1000  # lines about shards


@dataclass(frozen=True)
class VerifyReport:
    """`ok` when there are no `problems` (one line each, naming shard and key).

    `counts`: shards, samples, null (interventions among the samples), sources, bytes (of the tars).
    `leftovers`: partial files in a directory, of a run that was killed or that is running. Nobody reads them, and the next
    run removes those of writers that have ended; an object store has none. `notes` say what could not be checked.
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
    """Verify a run's output or its ``shards`` (a path or a URL). `plan` defaults to the plan beside the shards, if there is one.

    Damage is reported, not raised; so is a shard that could not be read because the place did not answer.

    Raises:
        ShardError: there is no manifest to verify.
        StorageError: not even the manifest could be read (``transient``).
    """
    storage, sizes = open_shards(directory)
    if MANIFEST not in sizes and not storage.sizes(COMMITS):
        raise ShardError(
            f"expected {storage.url}/{MANIFEST}, got none; give the directory of a cfaug run that has generated shards"
        )
    problems: list[str] = []
    counts = {"shards": 0, "samples": 0, "null": 0, "sources": 0, "bytes": 0}
    leftovers = tuple(sorted(name for name in sizes if name.endswith(PARTIAL)))
    keys, sources = array("q"), array("q")  # hash() is salted in each process, so nobody can provoke a collision
    try:
        manifest = read_manifest(storage)
    except ShardError as error:
        return VerifyReport((str(error),), counts, leftovers)
    unlisted = 0
    for row in manifest:
        counts["shards"] += 1
        counts["bytes"] += row.bytes
        found, index = _of_shard(storage, row, sizes)
        room = LISTED - len(problems)
        problems += found[:room]
        unlisted += len(found[room:])
        counts["samples"] += len(index)
        counts["null"] += sum(sample.null for sample in index)
        keys.extend(hash(sample.key) for sample in index)
        sources.extend(hash(sample.source_key) for sample in index)
    if unlisted:
        problems.append(f"and {unlisted} more lines about shards like these")
    problems += _most(_repeated(storage, manifest, sizes, keys), "and {} more about keys")
    counts["sources"] = len(np.unique(np.frombuffer(sources, np.int64))) if sources else 0
    expected = {name for row in manifest for name in (row.name, row.index)}
    strays = (name for name in sorted(sizes) if name.endswith((TAR, INDEX)) and name not in expected)
    problems += _most(
        (f"{name}: expected only files of the manifest, got this one; generate again, or remove it" for name in strays),
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
        problems.append(f"expected a finished run, got {len(manifest)} committed shards so far; generate again")
    note = f"got no plan beside the shards and no {CARD}, so missing shards cannot be seen; give the run's directory"
    return VerifyReport(tuple(problems), counts, leftovers, (*notes, note))


def _of_shard(storage: Storage, row: ManifestRow, sizes: dict[str, int]) -> tuple[list[str], list[IndexRow]]:
    """What is wrong with one shard, and its index, which is empty where it cannot be used."""
    more = f"{row.name}: {{}} more problems like these"
    try:
        index = read_index(storage, row, sizes)
    except ShardError as error:
        return _most([str(error), *_without_index(storage, row, sizes)], more), []
    except StorageError as error:  # it says nothing about the shard
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
    """A stream that hashes and counts what is read from it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.sha256, self.size = stream, hashlib.sha256(), 0

    def read(self, size: int) -> bytes:
        data = read_exactly(self.stream, size)
        self.sha256.update(data)
        self.size += len(data)
        return data


def _tar_problems(stream: _Hashed, row: ManifestRow, index: list[IndexRow]) -> Iterator[str]:
    """Compare every member of the tar with what the index says, and the whole tar with the manifest."""
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
                    yield f"{where}: expected its {field_} of {vouching.size} bytes, got {name}; generate this shard again"
                    return
                payloads.append(member.data)
            yield from _sample_problems(row, sample, payloads, where)
        where = row.name
        for member in members:
            yield f"{row.name}: expected the end after its last sample, got {member.key}.{member.field}; generate it again"
            return
    except ShardError as error:  # what follows it cannot be read reliably
        yield f"{where}: {str(error).partition(': ')[2]}" if where not in str(error) else str(error)
        return
    found = stream.sha256.hexdigest()
    if (stream.size, found) != (row.bytes, row.sha256):
        yield (
            f"{row.name}: expected {row.bytes} bytes with sha256 {row.sha256[:12]}..., got {stream.size} with {found[:12]}...; "
            "remove this file and generate again"
        )


def _sample_problems(row: ManifestRow, sample: IndexRow, payloads: list[bytes], where: str) -> Iterator[str]:
    try:
        record = parse_record(vouched(payloads[0], sample.json, where), where)
        said = (record["key"], record["source_key"], record["source_digest"], record["split"], not record["do"])
        if said != (sample.key, sample.source_key, sample.source_digest, sample.split, sample.null):
            yield f"{where}: expected the record that the index describes, got a different one; generate this shard again"
        if record["model"] != row.model:
            yield f"{where}: expected the manifest's model in its record, got a different one; generate again"
    except ShardError as error:
        yield str(error)
    try:
        image = vouched(payloads[1], sample.image, where)
        if sample.xxh3 is not None and not agrees(image, int(sample.xxh3.image, 16), xxh3=True):
            yield f"{where}: expected an image with the xxh3 of the index, got a different one; generate this shard again"
        decode_image(image, where, sample.image_field)
    except ShardError as error:
        yield str(error)


def _without_index(storage: Storage, row: ManifestRow, sizes: dict[str, int]) -> list[str]:
    """What is wrong with a tar whose index cannot be used."""
    try:
        check_size(row.name, row.bytes, sizes)
        with storage.opened(row.name) as stream:
            hashed = _Hashed(stream)
            for _ in scan(hashed, row.name):
                pass
        if hashed.sha256.hexdigest() != row.sha256:
            return [
                f"{row.name}: expected the sha256 of the manifest, got a different one too; generate this shard again"
            ]
    except (ShardError, StorageError) as error:
        return [str(error)]
    except OSError as error:
        return [str(unreadable(error, row.name, "generate this shard again"))]
    return []


def _index_notes(storage: Storage, manifest: list[ManifestRow], sizes: dict[str, int]) -> tuple[str, ...]:
    """A note where index.npy cannot be used. It is derived, so nothing is lost."""
    if INDEX_FILE not in sizes or not manifest:
        return ()
    try:
        published_index(storage, manifest)
        return ()
    except Unusable as reason:
        return (f"{INDEX_FILE}: {reason}, so readers do without it; remove it and generate again to have a new one",)


def _most(problems: Iterable[str], more: str) -> list[str]:
    """The first `MOST` problems, and a line `more` with the number of the rest."""
    remaining = iter(problems)
    listed = list(islice(remaining, MOST))
    unlisted = sum(1 for _ in remaining)
    return [*listed, more.format(unlisted)] if unlisted else listed


def _repeated(storage: Storage, manifest: list[ManifestRow], sizes: dict[str, int], keys: array[int]) -> Iterator[str]:
    """Keys that occur more than once. Keys with equal hashes are read again, so a collision is not reported."""
    if not keys:
        return
    hashes = np.frombuffer(keys, np.int64)  # sorted in place, without a copy
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
    """The plan beside the shards, if there is one, and what is wrong with it."""
    beside = f"{storage.url.rstrip('/').rpartition('/')[0] or '..'}/plan"
    try:
        if PLAN_HEADER not in open_storage(beside).sizes(PLAN_HEADER):
            return None, []
        plan = Plan.load(beside)
        if plan.recomputed_digest() != plan.digest:
            return None, [f"{beside}: expected lines and arrays of one plan, got those of different plans; plan again"]
        return plan, []
    except (ShardError, StorageError) as error:
        return None, [str(error)]
    except OSError as error:
        return None, [str(unreadable(error, f"the plan {beside}", "check the path"))]


def _against_plan(sizes: dict[str, int], manifest: list[ManifestRow], plan: Plan) -> list[str]:
    if manifest and manifest[0].plan != plan.digest:
        return ["expected shards of the plan beside them, got those of a different plan; generate with --overwrite"]
    if missing := plan.missing({row.name for row in manifest}):
        first = plan.shard_name(missing[0])
        return [f"expected {len(plan.shards())} shards, got {len(missing)} that are missing ({first}); generate again"]
    return [] if CARD in sizes else [f"expected {CARD}, got none; generate again"]
