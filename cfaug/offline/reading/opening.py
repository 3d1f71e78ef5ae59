"""Opening a place of shards, and what is checked before a byte of it is believed: sizes, digests, the layout of a tar."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from cfaug.errors import ShardError, UsageError
from cfaug.offline.format import BLOCK, MANIFEST, IndexRow, ManifestRow, Member, padded, tar_size
from cfaug.offline.os_errors import unreadable
from cfaug.offline.reading.manifest import COMMITS
from cfaug.offline.reading.plain import parse_row
from cfaug.offline.storage import Storage, open_storage


def open_shards(place: str | Path) -> tuple[Storage, dict[str, int]]:
    """The storage that holds the manifest, `place` itself or its ``shards``, and the sizes of the blobs there."""
    if not isinstance(place, str | PathLike):
        raise UsageError(f"shards: expected a path or a URL, came {type(place).__name__}")
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
    """`data` itself when it has the sha256 that the index states, else :class:`ShardError`."""
    if hashlib.sha256(data).hexdigest() != member.sha256:
        raise altered(data, member.size, where)
    return data


def altered(data: bytes, size: int, where: str) -> ShardError:
    """What is wrong with `data` that is not the `size` bytes that were written."""
    came = "other bytes" if len(data) == size else f"only {len(data)} of {size} bytes"
    return ShardError(
        f"{where}: expected the bytes the index vouches for, found {came}: run cfaug verify, generate again"
    )


def read_index(storage: Storage, row: ManifestRow, sizes: Mapping[str, int]) -> list[IndexRow]:
    """The index of one shard, checked against its manifest row, and its offsets against the layout of a tar of ours.

    `sizes` is a listing of `storage`: an index is read only when it has the size that the manifest states.

    Raises:
        ShardError: it is not what the manifest vouches for, or cannot be read.
        StorageError: the place did not answer (``transient``).
    """
    check_size(row.index, row.index_bytes, sizes, f"{row.name}: its index ")
    try:
        content = storage.read(row.index)
    except OSError as error:
        raise unreadable(error, f"{row.name}, its index {row.index}", "generate this shard again") from None
    lines = index_lines(content, row)
    if len(lines) != row.count:
        raise ShardError(f"{row.name}: the manifest says {row.count} samples, its index {len(lines)}: generate again")
    rows = [parse_row(line, f"{row.name}, {row.index} line {n}") for n, line in enumerate(lines, 1)]
    at = 0
    for sample in rows:
        image = sample.json.offset + padded(sample.json.size) + BLOCK
        if (sample.json.offset, sample.image.offset) != (at + BLOCK, image):
            raise ShardError(
                f"{row.name}, sample {sample.key!r}: expected its bytes right behind those of the sample before, found "
                "them elsewhere in the tar: generate this shard again"
            )
        if sample.image_field != rows[0].image_field:
            raise ShardError(
                f"{row.name}, sample {sample.key!r}: expected {rows[0].image_field} as in the samples before"
            )
        at = image + padded(sample.image.size)
    if tar_size(at) != row.bytes:
        raise ShardError(f"{row.name}: its samples make a tar of {tar_size(at)} bytes, the manifest says {row.bytes}")
    return rows


def index_lines(content: bytes, row: ManifestRow) -> list[bytes]:
    """The lines of a shard's index; :class:`ShardError` unless `content` has the sha256 that the manifest states."""
    if hashlib.sha256(content).hexdigest() != row.index_sha256:
        raise ShardError(f"{row.name}: its index {row.index} is not the one in the manifest: generate this shard again")
    return content.splitlines()


def check_size(name: str, size: int, sizes: Mapping[str, int], what: str = "") -> None:
    """:class:`ShardError` unless `sizes` has `name` with exactly `size` bytes: the cheap half of verification."""
    found = sizes.get(name)
    if found is None:
        raise ShardError(f"{what}{name}: in the manifest, but not there: generate it again")
    if found != size:
        raise ShardError(f"{what}{name}: expected {size} bytes, found {found} (truncated?): generate this shard again")
