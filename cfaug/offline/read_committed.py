"""What is committed at a place: its manifest, its indices, and its samples one after another.

    manifest.jsonl                  one line per committed shard
    commits/<shard name>.json       the same line, one file per shard, until ``manifest.jsonl`` lists it

Readers take the union of both, so a run that has not ended is readable. Nothing is used before its size and sha256 agree with
the row that vouches for it. :class:`cfaug.offline.read.ShardReader` is for random access; :class:`Committed` reads each tar
forwards through one open file, in memory that does not grow with the number of shards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from cfaug.errors import ShardError, UsageError
from cfaug.offline.decoders import decode_image, parse_record
from cfaug.offline.format import (
    BLOCK,
    CARD,
    INDEX_FILE,
    MANIFEST,
    IndexRow,
    ManifestRow,
    Member,
    Record,
    padded,
    tar_size,
)
from cfaug.offline.os_errors import unreadable
from cfaug.offline.storage import Storage, open_storage

COMMITS = "commits/"
PUBLISHED = (CARD, INDEX_FILE)
"""The files beside the shards of a finished run, which are removed with them."""
Identity = dict[str, str | int]


def read_manifest(storage: Storage) -> list[ManifestRow]:
    """The committed shards, sorted by name. A last line without a newline was never committed and is ignored.

    Raises:
        ShardError: for a damaged line, a shard listed twice, or shards of different plans, models or environments.
        StorageError: where the place did not answer (``transient``); trying again may help.
    """
    where = f"{storage.url.rstrip('/')}/{MANIFEST}"
    try:
        try:
            committed = _commits(storage)
        except FileNotFoundError:  # the run was published between the listing and the reading
            committed = _commits(storage)
        try:  # read after the commits, because those are removed only once the manifest is written
            content = storage.read(MANIFEST)
        except FileNotFoundError:
            content = b""
    except OSError as error:
        raise unreadable(error, where, "check the path and its permissions") from None
    lines = content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]
    rows = [ManifestRow.parse(line, f"{where} line {number}") for number, line in enumerate(lines, 1)]
    listed = {row.name for row in rows}
    rows += [row for row in committed if row.name not in listed]
    check_rows(rows, where)
    return sorted(rows, key=lambda row: row.name)


def check_rows(rows: Iterable[ManifestRow], where: str) -> None:
    """:class:`ShardError` for a shard listed twice, and for rows of different runs."""
    seen: set[str] = set()
    identity: Identity | None = None
    for row in rows:
        found = identity_of(row)
        if row.name in seen:
            raise ShardError(
                f"{where}: expected each shard once, got {row.name} twice; generate again with --overwrite"
            )
        if identity is not None and found != identity:
            raise ShardError(
                f"{where}: expected shards of one run, got {row.name} of a different run than those before; generate with --overwrite"
            )
        identity = found
        seen.add(row.name)


def identity_of(row: ManifestRow) -> Identity:
    """What a shard's bytes depend on: ``plan``, ``model`` and the environment's names."""
    return {"plan": row.plan, "model": row.model, **row.environment}


def commit_name(shard: str) -> str:
    """The name of the blob whose existence commits a shard."""
    return f"{COMMITS}{shard}.json"


def parse_commit(content: bytes, name: str) -> ManifestRow:
    """The row of one commit file; :class:`ShardError` unless it is one whole line about the shard it is named after."""
    if not content.endswith(b"\n"):
        raise ShardError(f"{name}: expected one manifest row, got {len(content)} bytes; generate with --overwrite")
    row = ManifestRow.parse(content[:-1], name)
    if commit_name(row.name) != name:
        raise ShardError(
            f"{name}: expected the row of the shard it is named after, got {row.name}; generate with --overwrite"
        )
    return row


def _commits(storage: Storage) -> list[ManifestRow]:
    names = sorted(name for name in storage.sizes(COMMITS) if name.endswith(".tar.json"))
    return [parse_commit(content, name) for name, content in storage.read_many(names).items()]


def open_shards(place: str | Path) -> tuple[Storage, dict[str, int]]:
    """The storage that holds the manifest (`place` itself or its ``shards``), and the sizes of the blobs there."""
    if not isinstance(place, str | PathLike):
        raise UsageError(f"shards: expected a path or a URL, got {type(place).__name__}; write the directory as a text")
    try:
        storage = open_storage(place)
        sizes = storage.sizes()
        if MANIFEST not in sizes and not storage.sizes(COMMITS):
            inside = storage.within("shards")
            found = inside.sizes()
            if found or inside.sizes(COMMITS):
                return inside, found
        return storage, sizes
    except OSError as error:
        raise unreadable(error, str(place), "check the path") from None


def vouched(data: bytes, member: Member, where: str) -> bytes:
    """`data` unchanged where it has the sha256 that the index states, else :class:`ShardError`."""
    if hashlib.sha256(data).hexdigest() != member.sha256:
        raise altered(data, member.size, where)
    return data


def altered(data: bytes, size: int, where: str) -> ShardError:
    """The error for `data` which is not the `size` bytes that were written."""
    got = "different bytes" if len(data) == size else f"only {len(data)} of {size} bytes"
    return ShardError(
        f"{where}: expected the bytes the index vouches for, got {got}; run cfaug verify and generate again"
    )


def read_index(storage: Storage, row: ManifestRow, sizes: Mapping[str, int]) -> list[IndexRow]:
    """The index of one shard, checked against its manifest row, and its offsets against the layout of a tar of ours.

    `sizes` is a listing of `storage`: an index is read only when it has the size that the manifest states.

    Raises:
        ShardError: it is not what the manifest vouches for, or cannot be read.
        StorageError: the place did not answer (``transient``).
    """
    check_size(row.index, row.index_bytes, sizes, f"{row.name}: its index ")
    lines = index_lines(storage, row)
    if len(lines) != row.count:
        raise ShardError(f"{row.name}: expected {row.count} samples in its index, got {len(lines)}; generate again")
    rows = [IndexRow.parse(line, f"{row.name}, {row.index} line {n}") for n, line in enumerate(lines, 1)]
    at = 0
    for sample in rows:
        image = sample.json.offset + padded(sample.json.size) + BLOCK
        if (sample.json.offset, sample.image.offset) != (at + BLOCK, image):
            raise ShardError(
                f"{row.name}, sample {sample.key!r}: expected its bytes right after those of the sample before it, got them "
                "elsewhere in the tar; generate this shard again"
            )
        if sample.image_field != rows[0].image_field:
            raise ShardError(
                f"{row.name}, sample {sample.key!r}: expected {rows[0].image_field} as in the samples before it, got "
                f"{sample.image_field}; generate this shard again"
            )
        at = image + padded(sample.image.size)
    if tar_size(at) != row.bytes:
        raise ShardError(
            f"{row.name}: expected samples that make a tar of {row.bytes} bytes, got {tar_size(at)}; generate this shard again"
        )
    return rows


def index_lines(storage: Storage, row: ManifestRow) -> list[bytes]:
    """The lines of one shard's index file; :class:`ShardError` unless it has the sha256 that the manifest states."""
    try:
        content = storage.read_range(row.index, 0, row.index_bytes)
    except OSError as error:
        raise unreadable(error, f"{row.name}, its index {row.index}", "generate this shard again") from None
    if hashlib.sha256(content).hexdigest() != row.index_sha256:
        raise ShardError(
            f"{row.name}: expected the index that the manifest vouches for, got a different {row.index}; generate this shard again"
        )
    return content.splitlines()


def check_size(name: str, size: int, sizes: Mapping[str, int], what: str = "") -> None:
    """:class:`ShardError` unless `sizes` has `name` with exactly `size` bytes: the cheap half of verification."""
    found = sizes.get(name)
    if found is None:
        raise ShardError(
            f"{what}{name}: expected it, as it is in the manifest, got no such file; generate this shard again"
        )
    if found != size:
        raise ShardError(f"{what}{name}: expected {size} bytes, got {found} (truncated?); generate this shard again")


@dataclass(frozen=True)
class OpenSample:
    """One sample of an opened shard: its index `row`, and `where` as errors name it. It is read while its shard is open."""

    row: IndexRow
    where: str
    _handle: IO[bytes]

    def read(self, member: Member) -> bytes:
        """The payload of ``row.json`` or ``row.image``."""
        try:
            self._handle.seek(member.offset)
            data = self._handle.read(member.size)
        except OSError as error:  # of reading the sample, not of opening its shard
            raise unreadable(error, self.where, "generate this shard again") from None
        return vouched(data, member, self.where)

    def record(self) -> Record:
        return parse_record(self.read(self.row.json), self.where)

    def image(self) -> npt.NDArray[np.uint8]:
        """uint8, height x width x channels (1 or 3)."""
        return decode_image(self.read(self.row.image), self.where, self.row.image_field)


class Committed:
    """What is committed at `place` (a run, its shards, or a URL): `storage` and `manifest`.

    :class:`ShardError` where nothing is committed.
    """

    def __init__(self, place: str | Path) -> None:
        self.storage: Storage
        self.storage, self._sizes = open_shards(place)
        self.manifest: list[ManifestRow] = read_manifest(self.storage)
        if not self.manifest:
            raise ShardError(f"expected committed shards in {self.storage.url}, got none; generate first")

    def samples(self, shard: ManifestRow) -> Iterator[OpenSample]:
        """The samples of one shard, in its order.

        Raises:
            ShardError: naming the shard, and the key of a damaged sample.
            StorageError: the place did not answer (``transient``).
        """
        check_size(shard.name, shard.bytes, self._sizes)
        index = read_index(self.storage, shard, self._sizes)
        try:
            with self.storage.opened(shard.name) as handle:
                for row in index:
                    yield OpenSample(row, f"{shard.name}, sample {row.key!r}", handle)
        except OSError as error:
            raise unreadable(error, shard.name, "generate this shard again") from None
