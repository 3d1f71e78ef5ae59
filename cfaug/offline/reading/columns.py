"""What a reader keeps of every sample: fixed columns, 60 bytes a sample, in memory or mapped from a file.

    sizes    u64   bits 0-20 bytes of the record, 21-47 bytes of the image, 48 null intervention, 49 WebP,
                   50 the image's check is an xxh3, 51-52 split (its place in SPLITS, 3: another)
    json     u64   first 8 bytes of the record's sha256              image  u64  xxh3-64 of the image's bytes, or of its
    pixels   u64   the source's pixels_hash, or the first 8 bytes                sha256 the first 8 bytes
                   of its source_digest
    blocks   u32   offset of the record in the tar, in blocks of 512 bytes
    key_hashes u64, key_rows u32         the samples ordered by (hash of the source's key, null, number)
    pixel_hashes u64, pixel_rows u32     the same by a hash of the source's pixels: whichever of LOOKUPS tells all sources apart

The columns vouch for what a random read hands out, as the index they were built from does, with 64 bits: that tells every
accident. Against who writes the directory nothing here protects (see :mod:`cfaug.offline.format`). Built in bounded memory:
one shard's index, the columns, and about as much again while the tables are sorted (1.6 GB at most for 10 million samples).
"""

from __future__ import annotations

import hashlib
import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from cfaug.errors import ShardError
from cfaug.offline.format import BLOCK, SHA256, SPLITS, IndexRow, ManifestRow

log = logging.getLogger(__name__)

U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]
JSON_BITS, IMAGE_BITS = 21, 27
NULL, WEBP, XXH3, SPLIT = 48, 49, 50, 51  # bits of `sizes`
JSON_MASK, IMAGE_MASK = (1 << JSON_BITS) - 1, (1 << IMAGE_BITS) - 1
SAMPLE, PIXELS, DIGEST = range(3)
LOOKUPS = ("sample_hash", "pixels_hash", "source_digest")
"""What `pixel_hashes` are, by the number in `Columns.lookup`: the first that all rows have and that tells sources apart."""
SECTIONS = (
    ("sizes", "<u8"), ("json", "<u8"), ("image", "<u8"), ("pixels", "<u8"), ("key_hashes", "<u8"),
    ("pixel_hashes", "<u8"), ("blocks", "<u4"), ("key_rows", "<u4"), ("pixel_rows", "<u4"),
)  # fmt: skip
"""Name and type of the columns, in the order of the file."""
BYTES = sum(np.dtype(kind).itemsize for _, kind in SECTIONS)  # a sample
QUIET = 5.0  # seconds between lines about the progress of a long build


def key_hash(key: str) -> int:
    """The number under which ``by_key`` knows a source key: xxh3-64 of its UTF-8."""
    return int(xxhash.xxh3_64_intdigest(key.encode("utf-8")))


def key_hashes(keys: Iterable[str]) -> U64:
    """:func:`key_hash` of each of `keys`."""
    return np.fromiter((key_hash(key) for key in keys), np.uint64)


def leading(hexadecimal: str) -> int:
    """The first 8 bytes of a digest, as a number; of a text that is no sha256, its hash."""
    return int(hexadecimal[:16], 16) if SHA256.fullmatch(hexadecimal) else key_hash(hexadecimal)


def agrees(data: bytes, check: int, xxh3: bool = False) -> bool:
    """Whether `data` has the xxh3-64 `check`, or a sha256 that begins with it."""
    if xxh3:
        return int(xxhash.xxh3_64_intdigest(data)) == check
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") == check


class Found(NamedTuple):
    """Where a source's rows stand in :attr:`SourceTable.rows`: from `start`, `counterfactuals`, then `nulls` of them."""

    start: int
    counterfactuals: int
    nulls: int


class SourceTable:
    """The samples of each source, found by a 64-bit hash of it.

    `rows` (N,) uint32: those of one source stand together, ``rows[start : start + counterfactuals]`` its counterfactuals,
    ascending, then `nulls` null interventions, ascending.
    """

    def __init__(self, hashes: U64, rows: U32, sizes: U64) -> None:
        self.rows = rows
        self._hashes, self._sizes = hashes, sizes
        # views that hand out plain integers: between two images numpy's own ways are no longer in the processor's caches,
        # and a search by them takes 100 us where this takes 15
        self._views = tuple(memoryview(column) for column in (hashes, rows, sizes))  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._hashes, self.rows, self._sizes)

    def find(self, hash: int) -> Found:
        """Where the rows of the source are; (0, 0, 0) for a hash that no source has."""
        hashes, rows, sizes = self._views
        start = end = bisect_left(hashes, hash)
        nulls = 0
        while end < len(hashes) and hashes[end] == hash:
            nulls += sizes[rows[end]] >> NULL & 1
            end += 1
        return Found(start, end - start - nulls, nulls) if end > start else Found(0, 0, 0)

    def find_many(self, hashes: U64) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(M,) hashes -> start, counterfactuals, nulls, (M,) int64 each: :meth:`find` of each."""
        wanted = np.asarray(hashes, np.uint64)
        start, end = self._hashes.searchsorted(wanted), self._hashes.searchsorted(wanted, "right")
        low, high = start.copy(), end.copy()  # the first null intervention is sought by halves, for all at once
        while (open_ := np.flatnonzero(low < high)).size:
            middle = (low[open_] + high[open_]) // 2
            null = _bit(self._sizes[self.rows[middle]], NULL)
            high[open_] = np.where(null, middle, high[open_])
            low[open_] = np.where(null, low[open_], middle + 1)
        known = start < end
        found = (start, low - start, end - low)
        start, counterfactuals, nulls = (np.where(known, part, 0).astype(np.int64) for part in found)
        return start, counterfactuals, nulls


@dataclass(frozen=True)
class Columns:
    """The columns of N samples, each (N,); see the module. `lookup`: which of LOOKUPS `pixel_hashes` are."""

    lookup: int
    sizes: U64
    json: U64
    image: U64
    pixels: U64
    key_hashes: U64
    pixel_hashes: U64
    blocks: U32
    key_rows: U32
    pixel_rows: U32

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def nulls(self) -> npt.NDArray[np.bool_]:
        """(N,) which samples are null interventions; a new array."""
        return _bit(self.sizes, NULL)

    @property
    def splits(self) -> npt.NDArray[np.uint8]:
        """(N,) places in SPLITS; 3 for a split that is none of them. A new array."""
        return (self.sizes >> np.uint64(SPLIT)).astype(np.uint8) & np.uint8(3)

    @cached_property
    def by_key(self) -> SourceTable:
        return SourceTable(self.key_hashes, self.key_rows, self.sizes)

    @cached_property
    def by_pixels(self) -> SourceTable:
        return SourceTable(self.pixel_hashes, self.pixel_rows, self.sizes)


def fingerprint_of(manifest: Sequence[ManifestRow]) -> str:
    """sha256 (hex) over name, sha256 and index_sha256 of every shard in `manifest`: what the columns were made from."""
    lines = (f"{row.name} {row.sha256} {row.index_sha256}\n" for row in manifest)
    return hashlib.sha256("".join(lines).encode("ascii")).hexdigest()


def build(
    manifest: Sequence[ManifestRow], rows_of: Callable[[ManifestRow], list[IndexRow]], where: Callable[[int], str]
) -> Columns:
    """The columns of the shards in `manifest`.

    Args:
        rows_of: the checked index of a shard.
        where: how an error names a sample.

    Raises:
        ShardError: a key occurs twice; two sources share a hash, or one key has sources of different pixels.
    """
    parts, total, began = [], sum(row.count for row in manifest), time.monotonic()
    told = began
    for number, shard in enumerate(manifest):
        parts.append(_part(rows_of(shard), shard.name))
        if time.monotonic() - told > QUIET:
            told = time.monotonic()
            log.info("reading the indices: %d of %d shards, %.0f s", number + 1, len(manifest), told - began)
    if total >= 1 << 32:
        raise ShardError(
            f"expected fewer than {1 << 32} samples in one place, found {total}: read them as several runs"
        )
    held = _Parts(parts)
    sizes = held.take("sizes")
    _refuse_repeated(held.take("keys"), manifest, rows_of, where)
    hashed = bool(_bit(sizes, XXH3).all())
    pixels, other = held.take("pixels"), held.take("digest_start")
    if not hashed:  # some rows only have the sha256 of their source: then it is taken of all of them
        pixels, other = other, held.take("digest_rest")
    nulls = _bit(sizes, NULL)
    by_key = _table(held.take("source_keys"), nulls)
    if (two := _different(*by_key, pixels)) is not None:
        raise _shared(two, "key", manifest, rows_of)
    lookup, by_pixels = DIGEST, None
    if hashed:
        lookup, by_pixels = SAMPLE, _table(held.take("samples"), nulls)
        if _different(*by_pixels, pixels) is not None:  # two images with the same grid: all pixels are looked at then
            lookup, by_pixels = PIXELS, None
    if by_pixels is None:
        by_pixels = _table(pixels, nulls)
    if (two := _different(pixels[by_pixels[1]], by_pixels[1], other)) is not None:
        raise _shared(two, "pixels", manifest, rows_of)
    return Columns(
        lookup, sizes, held.take("json"), held.take("image"), pixels, by_key[0], by_pixels[0], held.take("blocks").astype(np.uint32, copy=False),
        by_key[1], by_pixels[1],
    )  # fmt: skip


class _Parts:
    """The columns of each shard; a column is put together when it is taken, and its parts are let go."""

    def __init__(self, parts: list[dict[str, npt.NDArray[np.generic]]]) -> None:
        self._columns = {name: [part.pop(name) for part in parts] for name in list(parts[0])}

    def take(self, name: str) -> U64:
        column: U64 = np.concatenate(self._columns.pop(name))  # type: ignore[arg-type]
        return column


def _part(rows: list[IndexRow], shard: str) -> dict[str, npt.NDArray[np.generic]]:
    sizes, digests = [], [row.source_digest for row in rows]
    for row in rows:
        split = SPLITS.index(row.split) if row.split in SPLITS else len(SPLITS)
        flags = row.null << NULL | (row.webp is not None) << WEBP | (row.xxh3 is not None) << XXH3 | split << SPLIT
        sizes.append(row.json.size | row.image.size << JSON_BITS | flags)
    blocks = [row.json.offset // BLOCK for row in rows]
    if blocks and blocks[-1] >= 1 << 32:
        raise ShardError(f"{shard}: expected a shard of less than 2 TiB, found a larger one: generate smaller shards")
    quick = [row.xxh3 for row in rows]
    found: dict[str, list[int]] = {
        "sizes": sizes,
        "json": [int(row.json.sha256[:16], 16) for row in rows],
        "image": [int(row.image.sha256[:16] if row.xxh3 is None else row.xxh3.image, 16) for row in rows],
        "pixels": [0 if one is None else int(one.pixels, 16) for one in quick],
        "samples": [0 if one is None else int(one.sample, 16) for one in quick],
        "digest_start": [leading(text) for text in digests],
        "digest_rest": [leading(text[16:32].ljust(64, "0")) for text in digests],
        "keys": [key_hash(row.key) for row in rows],
        "source_keys": [key_hash(row.source_key) for row in rows],
    }
    return {"blocks": np.array(blocks, np.uint32), **{name: np.array(of, np.uint64) for name, of in found.items()}}


def _bit(sizes: U64, bit: int) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = (sizes & np.uint64(1 << bit)) != 0
    return found


def _table(hashes: U64, nulls: npt.NDArray[np.bool_]) -> tuple[U64, U32]:
    """Sorted hashes, and the rows in the order of (hash, null, row)."""
    arranged = np.concatenate([np.flatnonzero(~nulls), np.flatnonzero(nulls)]).astype(np.uint32)
    hashes = hashes[arranged]
    order = np.argsort(hashes, kind="stable")
    return hashes[order], arranged[order]


def _different(hashes: U64, rows: U32, pixels: U64) -> tuple[int, int] | None:
    """Two rows of equal hashes but of sources with different `pixels`; None where there are none."""
    of = pixels[rows]
    apart = np.flatnonzero((hashes[1:] == hashes[:-1]) & (of[1:] != of[:-1]))
    return (int(rows[apart[0]]), int(rows[apart[0] + 1])) if apart.size else None


def _refuse_repeated(
    hashes: U64,
    manifest: Sequence[ManifestRow],
    rows_of: Callable[[ManifestRow], list[IndexRow]],
    where: Callable[[int], str],
) -> None:
    """:class:`ShardError` for a key in two places: equal hashes propose, the texts decide."""
    ordered = np.sort(hashes)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not twice.size:
        return
    seen: set[str] = set()
    for i, row in _rows_at(np.flatnonzero(np.isin(hashes, twice)), manifest, rows_of):
        if row.key in seen:
            raise ShardError(f"{where(i)}: the key is also in another place: generate with --overwrite")
        seen.add(row.key)


def _shared(
    two: tuple[int, int], what: str, manifest: Sequence[ManifestRow], rows_of: Callable[[ManifestRow], list[IndexRow]]
) -> ShardError:
    """What is wrong where two rows have one hash of their source's `what` and sources of different pixels."""
    names = [repr(row.source_key) for _, row in _rows_at(np.sort(np.array(two)), manifest, rows_of)]
    if names[0] == names[1]:
        return ShardError(
            f"source {names[0]}: expected all of its samples to be made from one image, found two different ones: "
            "keep the images unchanged and generate with --overwrite"
        )
    return ShardError(
        f"sources {names[0]} and {names[1]}: expected different hashes of their {what}, found the same: leave one of them out"
    )


def _rows_at(
    numbers: npt.NDArray[np.int64], manifest: Sequence[ManifestRow], rows_of: Callable[[ManifestRow], list[IndexRow]]
) -> Iterator[tuple[int, IndexRow]]:
    """The index rows of some samples, given ascending."""
    starts = np.cumsum([0, *(row.count for row in manifest)])
    shards = np.searchsorted(starts, numbers, "right") - 1
    for shard in np.unique(shards):
        rows = rows_of(manifest[shard])
        for i in numbers[shards == shard].tolist():
            yield i, rows[i - int(starts[shard])]
