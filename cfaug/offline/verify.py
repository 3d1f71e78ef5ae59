"""Verification: does every committed shard hold exactly what was written, and nothing else?

Re-hashes each file, walks each tar header by header, re-reads and decodes each sample, compares tar, index, records and
manifest with one another, and names the shard and the key of what is wrong. With the plan (given, or found beside the
shards) it also says what is still missing. It repairs nothing, and it cannot tell a good counterfactual from a bad one.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cfaug.errors import ShardError
from cfaug.offline.format import CARD, MANIFEST, PARTIAL, IndexRow, ManifestRow, find, read_manifest
from cfaug.offline.plan import HEADER, Plan
from cfaug.offline.shards import check_size, decode_image, parse_record, read_index, read_member
from cfaug.offline.writer import stray_shards


@dataclass(frozen=True)
class VerifyReport:
    """`ok` when there are no `problems` (one line each, naming shard and key).

    `counts`: shards, samples, null (interventions among the samples), sources, bytes (of the tars).
    `leftovers`: partial files of a run that was killed or is running; nobody reads them and the next run removes them.
    """

    problems: tuple[str, ...]
    counts: dict[str, int] = field(default_factory=dict)
    leftovers: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        notes = [f"leftover: {name}" for name in self.leftovers]
        return "\n".join([f"{'ok' if self.ok else 'NOT ok'}: {counts}", *self.problems, *notes])


def verify(directory: str | Path, plan: Plan | None = None) -> VerifyReport:
    """Verify a run's output or its ``shards``; `plan` defaults to the one saved beside the shards, if there is one.

    Damage is reported, not raised; :class:`ShardError` only where there is no manifest to verify.
    """
    shards = find(directory)
    if not (shards / MANIFEST).exists():
        raise ShardError(
            f"expected {shards / MANIFEST}, found none: is this a cfaug run, and has it generated anything?"
        )
    problems: list[str] = []
    counts = {"shards": 0, "samples": 0, "null": 0, "sources": 0, "bytes": 0}
    keys: dict[str, str] = {}
    sources: set[str] = set()
    try:
        manifest = read_manifest(shards)
    except ShardError as error:
        return VerifyReport((str(error),), counts, _leftovers(shards))
    for row in manifest:
        counts["shards"] += 1
        counts["bytes"] += row.bytes
        try:
            index = read_index(shards, row)
        except ShardError as error:
            problems += [str(error), *_whole_file(shards, row)]
            continue
        problems += _shard_problems(shards, row, index)
        counts["samples"] += len(index)
        for sample in index:
            counts["null"] += sample.null
            sources.add(sample.source_key)
            other = keys.setdefault(sample.key, row.name)
            if other != row.name:
                problems.append(f"{row.name}, sample {sample.key!r}: the key is also in {other}")
    counts["sources"] = len(sources)
    vouched = frozenset(name for row in manifest for name in (row.name, row.index))
    problems += [
        f"{path.name}: not in the manifest, so nobody vouches for it: generate again, or remove it"
        for path in stray_shards(shards, vouched)
    ]
    problems += _against_plan(shards, manifest, plan)
    return VerifyReport(tuple(problems), counts, _leftovers(shards))


def _shard_problems(directory: Path, row: ManifestRow, index: list[IndexRow]) -> list[str]:
    problems = _whole_file(directory, row)
    path = directory / row.name
    damaged: list[str] = []
    try:
        with path.open("rb", buffering=0) as handle:
            for sample in index:
                where = f"{row.name}, sample {sample.key!r}"
                try:
                    record = parse_record(read_member(handle, sample.json, where), where)
                    decode_image(read_member(handle, sample.image, where), where)
                    said = (
                        record["key"],
                        record["source_key"],
                        record["source_digest"],
                        record["split"],
                        not record["do"],
                    )
                    if said != (sample.key, sample.source_key, sample.source_digest, sample.split, sample.null):
                        raise ShardError(f"{where}: its record and the index disagree: generate this shard again")
                    if record["model"] != row.model:
                        raise ShardError(f"{where}: its record names another model than the manifest: generate again")
                except ShardError as error:
                    damaged.append(str(error))
    except OSError:
        return problems  # the whole file's problem says it
    if problems and not damaged:
        problems.append(
            f"{row.name}: every sample is whole: the damage is in tar headers or padding: generate it again"
        )
    problems += damaged
    for found, expected in zip(_members(path), _expected(index), strict=False):
        if found != expected:
            problems.append(f"{row.name}: expected tar member {expected}, found {found}: other readers will stumble")
            break
    return problems


def _whole_file(directory: Path, row: ManifestRow) -> list[str]:
    path = directory / row.name
    try:
        check_size(path, row.bytes)
        with path.open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
    except ShardError as error:
        return [str(error)]
    except OSError as error:
        return [f"{row.name}: cannot read it: {error.strerror}"]
    if found != row.sha256:
        return [
            f"{row.name}: expected sha256 {row.sha256[:12]}..., found {found[:12]}...: remove this file and generate again"
        ]
    return []


Entry = tuple[str, int, int] | None  # name, offset of the payload, size; None: the end


def _members(path: Path) -> Iterator[Entry]:
    """What an ordinary tar reader sees; anything but a plain file appears under its name with size -1."""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                yield member.name, member.offset_data, member.size if member.isreg() else -1
    except (tarfile.TarError, OSError, EOFError):
        pass
    yield None


def _expected(index: list[IndexRow]) -> Iterator[Entry]:
    for sample in index:
        yield f"{sample.key}.json", sample.json.offset, sample.json.size
        yield f"{sample.key}.{sample.image_field}", sample.image.offset, sample.image.size
    yield None


def _leftovers(directory: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in directory.glob(f"*{PARTIAL}")))


def _against_plan(directory: Path, manifest: list[ManifestRow], plan: Plan | None) -> list[str]:
    beside = directory.parent / "plan"
    if plan is None:
        if not (beside / HEADER).exists():
            return []
        try:
            plan = Plan.load(beside)
        except ShardError as error:
            return [str(error)]
    if manifest and manifest[0].plan != plan.digest:
        return ["the shards were generated from another plan than the one beside them: generate with --overwrite"]
    problems = []
    committed = {row.name: row for row in manifest}
    missing = [plan.shard_name(shard) for shard in plan.shards() if plan.shard_name(shard) not in committed]
    if missing:
        problems.append(
            f"{len(missing)} of {len(plan.shards())} shards are not there yet ({missing[0]}): generate again"
        )
    elif not (directory / CARD).exists():
        problems.append(f"{CARD} is missing: generate again")
    return problems
