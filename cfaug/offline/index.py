"""index.npy: what a reader needs of every sample, 64 bytes each, as one structured array that numpy maps into memory.

    the array as numpy saves it | a line of JSON: fingerprint of the shards, kind of pixel hash | a line: xxh3-128 of all before it

The index is derived from the shards' own index files: to remove it loses nothing. A reader uses it only if it was made from the
shards of the manifest and has the digest that it states; otherwise the reader logs why and builds the same array in memory.
The check of a sample has 64 bits (an xxh3-64, or the head of a sha256): enough to notice accidental damage. It does not
protect against whoever can write the directory (see :mod:`cfaug.offline.format`).
"""

from __future__ import annotations

import hashlib
import io
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from cfaug.errors import ShardError, one_line
from cfaug.offline.format import (
    BLOCK,
    INDEX_FILE,
    MAX_IMAGE_BYTES,
    MAX_RECORD_BYTES,
    SHA256,
    SPLITS,
    IndexRow,
    ManifestRow,
    canonical_json,
    padded,
)
from cfaug.offline.read_committed import read_index
from cfaug.offline.storage import LocalStorage, Storage

log = logging.getLogger(__name__)

U64 = npt.NDArray[np.uint64]
NULL, WEBP, XXH3 = 1, 2, 4  # bits of `flags`
LOOKUPS = ("sample_hash", "pixels_hash", "source_digest")
"""What `pixel_hash` is: the first of these that all samples have and that tells all sources apart."""
SAMPLE, PIXELS, DIGEST = LOOKUPS
HEX = 33  # bytes of the last line
STEP = 1 << 14  # entries that are checked at a time
QUIET = 5.0  # seconds between two log lines about a long build


class Entry(NamedTuple):
    """One row of the index."""

    block: int  # where the record begins in the tar, in blocks of 512 bytes
    record_bytes: int
    image_bytes: int
    flags: int
    split: int  # its place in SPLITS; 3: a different one
    key_null: int  # whether row `key_row` is a null intervention
    pixel_null: int  # the same of `pixel_row`
    record_check: int  # the first 8 bytes of the record's sha256
    image_check: int  # xxh3-64 of the image's bytes, or of its sha256 the first 8 bytes
    pixels: int  # the source's pixels_hash, or of its source_digest the first 8 bytes
    # two tables over all rows, each ordered by (hash, null, row):
    key_hash: int  # of a source key, ascending
    pixel_hash: int  # one of LOOKUPS of a source image, ascending
    key_row: int  # the row that this key_hash belongs to
    pixel_row: int  # the row that this pixel_hash belongs to

    @property
    def record_at(self) -> int:
        """The byte offset of the record in its tar."""
        return self.block * BLOCK

    @property
    def image_at(self) -> int:
        """The byte offset of the image in its tar."""
        return self.record_at + padded(self.record_bytes) + BLOCK


ENTRY = np.dtype(list(zip(Entry._fields, ("<u4",) * 3 + ("u1",) * 4 + ("<u8",) * 5 + ("<u4",) * 2, strict=True)))
"""The dtype of a row: 64 bytes, without padding."""


@dataclass(frozen=True)
class Index:
    """`entries` (N,) of dtype ENTRY, and which of LOOKUPS their ``pixel_hash`` is. `path`: the file they are mapped from."""

    entries: npt.NDArray[np.void]
    lookup: str
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def entry(self, i: int) -> Entry:
        """Row `i`, 0 <= i < N."""
        return Entry._make(self.entries.item(i))

    @property
    def nulls(self) -> npt.NDArray[np.bool_]:
        """(N,) which samples are null interventions; a new array."""
        found: npt.NDArray[np.bool_] = (self.entries["flags"] & NULL).astype(np.bool_)
        return found


class Unusable(Exception):
    """Why an index file is not used, in a few words."""


def key_hash(key: str) -> int:
    """The number under which ``by_key`` knows a source key: xxh3-64 of its UTF-8."""
    return int(xxhash.xxh3_64_intdigest(key.encode("utf-8")))


def key_hashes(keys: Iterable[str]) -> U64:
    """:func:`key_hash` of each of `keys`."""
    return np.fromiter((key_hash(key) for key in keys), np.uint64)


def leading(hexadecimal: str) -> int:
    """The first 8 bytes of a sha256 as a number; the hash of a text that is not one."""
    return int(hexadecimal[:16], 16) if SHA256.fullmatch(hexadecimal) else key_hash(hexadecimal)


def agrees(data: bytes, check: int, xxh3: bool = False) -> bool:
    """Whether `data` has the xxh3-64 `check`, or a sha256 that begins with it."""
    if xxh3:
        return int(xxhash.xxh3_64_intdigest(data)) == check
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") == check


def fingerprint_of(manifest: Sequence[ManifestRow]) -> str:
    """sha256 (hex) over name, sha256 and index_sha256 of every shard in `manifest`: what an index was made from."""
    lines = (f"{row.name} {row.sha256} {row.index_sha256}\n" for row in manifest)
    return hashlib.sha256("".join(lines).encode("ascii")).hexdigest()


def open_index(storage: Storage, manifest: Sequence[ManifestRow], sizes: Mapping[str, int]) -> Index:
    """The index of the shards in `manifest`: the published one, mapped from a directory or read from an object store, or a new one.

    `sizes` is a listing of `storage`. ShardError, StorageError: as :func:`build_index`.
    """
    if INDEX_FILE in sizes:
        try:
            return published_index(storage, manifest)
        except Unusable as reason:
            log.warning("%s/%s is not used (%s); the index is built in memory", storage.url, INDEX_FILE, reason)
    return build_index(storage, manifest, sizes)


def published_index(storage: Storage, manifest: Sequence[ManifestRow], checked: bool = False) -> Index:
    """The index that is published beside the shards; `checked`: its bytes were compared with their digest before.

    :class:`Unusable` where it cannot be read, is damaged or was made from different shards.
    """
    count, fingerprint = sum(row.count for row in manifest), fingerprint_of(manifest)
    try:
        if isinstance(storage, LocalStorage):
            path = storage.path / INDEX_FILE
            with path.open("rb") as handle:
                offset, lookup = _checked(handle, count, fingerprint, checked)
            # not mapped as a memmap: a plain array is quicker to take a row of
            entries = np.asarray(np.memmap(path, ENTRY, "r", offset, (count,)))
            return Index(entries, lookup, path)
        content = storage.read(INDEX_FILE)
        offset, lookup = _checked(io.BytesIO(content), count, fingerprint, checked)
        return Index(np.frombuffer(content, ENTRY, count, offset), lookup)
    except OSError as error:
        raise Unusable(one_line(error.strerror or error)) from None


def publish_index(storage: Storage, manifest: Sequence[ManifestRow]) -> None:
    """Write index.npy beside the shards of a finished run unless it is there; where it cannot be written, that is logged.

    :class:`ShardError` for what a reader of these shards would refuse.
    """
    with suppress(Unusable):
        published_index(storage, manifest)
        return
    index = build_index(storage, manifest, storage.sizes())
    try:
        storage.write(INDEX_FILE, content_of(index, fingerprint_of(manifest)))
    except OSError as error:
        log.warning(
            "%s/%s could not be written (%s); readers build their own", storage.url, INDEX_FILE, one_line(error)
        )


def content_of(index: Index, fingerprint: str) -> bytes:
    """The bytes of index.npy: the same shards give the same."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(index.entries))
    parts = [stream.getvalue(), index.entries.tobytes(), _tail(fingerprint, index.lookup)]
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part)
    return b"".join([*parts, digest.hexdigest().encode("ascii"), b"\n"])


def _tail(fingerprint: str, lookup: str) -> bytes:
    return canonical_json({"shards": fingerprint, "lookup": lookup}) + b"\n"


def _checked(handle: IO[bytes], count: int, fingerprint: str, checked: bool) -> tuple[int, str]:
    """The offset of the array and the kind of lookup; :class:`Unusable` unless the whole file is as it was written."""
    try:
        np.lib.format.read_magic(handle)
        shape, fortran, kind = np.lib.format.read_array_header_1_0(handle)
    except Exception:  # numpy parses the header as Python's literals, and its failures are of many kinds
        raise Unusable("it is not an array of numpy's") from None
    if (shape, fortran, kind) != ((count,), False, ENTRY):
        raise Unusable("it has a different layout, or a different number of samples")
    offset = handle.tell()
    handle.seek(offset + count * ENTRY.itemsize)
    end = handle.read(1000)
    lookup = {_tail(fingerprint, kind): kind for kind in LOOKUPS}.get(end[:-HEX])
    if lookup is None:
        raise Unusable("it was made from different shards, or is cut off")
    if checked:
        return offset, lookup
    handle.seek(0)
    digest, sound, left = xxhash.xxh3_128(handle.read(offset)), True, count
    while left:
        chunk = handle.read(min(left, STEP) * ENTRY.itemsize)  # not through the map: no page of it is touched by that
        digest.update(chunk)
        some = np.frombuffer(chunk, ENTRY)
        sound = sound and int(max(some["key_row"].max(), some["pixel_row"].max())) < count
        sound = (
            sound and some["record_bytes"].max() <= MAX_RECORD_BYTES and some["image_bytes"].max() <= MAX_IMAGE_BYTES
        )
        left -= len(some)
    digest.update(end[:-HEX])
    if not sound or end[-HEX:] != digest.hexdigest().encode("ascii") + b"\n":
        raise Unusable("its content does not have the digest that it states")
    return offset, lookup


def build_index(storage: Storage, manifest: Sequence[ManifestRow], sizes: Mapping[str, int]) -> Index:
    """The index of the shards in `manifest`, from their own index files; `sizes` is a listing of `storage`.

    Memory: 64 bytes a sample, and about as much again while it is built.

    Raises:
        ShardError: an index file is not what the manifest vouches for; a key occurs twice; the samples of one source key were made
            from different images.
        StorageError: the place did not answer (``transient``).
    """
    count, at = sum(row.count for row in manifest), 0
    if count >= 1 << 32:
        raise ShardError(f"expected fewer than {1 << 32} samples in one place, got {count}; read them as several runs")
    entries = np.zeros(count, ENTRY)
    keys, sources, samples, digests = (np.zeros(count, np.uint64) for _ in range(4))
    began = told = time.monotonic()
    for shard in manifest:
        rows, part = read_index(storage, shard, sizes), slice(at, at + shard.count)
        if rows and rows[-1].json.offset // BLOCK >= 1 << 32:
            raise ShardError(
                f"{shard.name}: expected a shard of less than 2 TiB, got a larger one; generate smaller shards"
            )
        _fill(entries[part], rows)
        keys[part], sources[part] = key_hashes(row.key for row in rows), key_hashes(row.source_key for row in rows)
        digests[part] = [leading(row.source_digest) for row in rows]
        samples[part] = [int(row.xxh3.sample, 16) if row.xxh3 else 0 for row in rows]
        at += shard.count
        if (now := time.monotonic()) - told > QUIET:
            told = now
            log.info("reading the index files: %d of %d samples, %.0f s", at, count, now - began)
    hashed = bool((entries["flags"] & XXH3).all())
    if not hashed:  # some rows have only the sha256 of their source: it is used for all of them
        entries["pixels"] = digests
    if (two := _unequal(keys, None)) is not None:
        raise ShardError(
            f"{number(manifest, two[1])}: its key is also that of {number(manifest, two[0])}; generate with --overwrite"
        )
    if (two := _unequal(sources, entries["pixels"])) is not None:
        raise ShardError(
            f"{number(manifest, two[0])} and {number(manifest, two[1])}: expected samples of one source key to be made from one "
            "image, got two different ones; keep the images unchanged and generate with --overwrite"
        )
    lookup, hashes = (SAMPLE, samples) if hashed else (DIGEST, digests)
    if hashed and _unequal(samples, entries["pixels"]) is not None:  # two images with the same grid: all pixels count
        lookup, hashes = PIXELS, entries["pixels"]
    _table(entries, "key", sources)
    _table(entries, "pixel", hashes)
    return Index(entries, lookup)


def number(manifest: Sequence[ManifestRow], i: int) -> str:
    """How an error names sample `i` where its key cannot be read."""
    for row in manifest:
        if i < row.count:
            return f"{row.name}, sample number {i}"
        i -= row.count
    raise IndexError(f"expected the number of a sample, got {i} more than there are")


def _fill(entries: npt.NDArray[np.void], rows: Sequence[IndexRow]) -> None:
    entries["block"] = [row.json.offset // BLOCK for row in rows]
    entries["record_bytes"] = [row.json.size for row in rows]
    entries["image_bytes"] = [row.image.size for row in rows]
    entries["flags"] = [NULL * row.null | WEBP * (row.webp is not None) | XXH3 * (row.xxh3 is not None) for row in rows]
    entries["split"] = [SPLITS.index(row.split) if row.split in SPLITS else len(SPLITS) for row in rows]
    entries["record_check"] = [int(row.json.sha256[:16], 16) for row in rows]
    entries["image_check"] = [int(row.xxh3.image if row.xxh3 else row.image.sha256[:16], 16) for row in rows]
    entries["pixels"] = [int(row.xxh3.pixels, 16) if row.xxh3 else 0 for row in rows]


def _table(entries: npt.NDArray[np.void], name: str, hashes: U64) -> None:
    """Fill one of the two tables: hashes ascending, of equal ones the null interventions last, then by row."""
    null = entries["flags"] & NULL
    order = np.lexsort((null, hashes))  # stable, so rows ascend
    entries[f"{name}_hash"], entries[f"{name}_row"], entries[f"{name}_null"] = hashes[order], order, null[order]


def _unequal(hashes: U64, of: U64 | None) -> tuple[int, int] | None:
    """Two rows with equal `hashes` but unequal `of` (any two where it is None), the lower first; None where there are none."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    same = ordered[1:] == ordered[:-1]
    if of is not None and same.any():
        same &= of[order[1:]] != of[order[:-1]]
    at = np.flatnonzero(same)
    return (int(order[at[0]]), int(order[at[0] + 1])) if at.size else None
