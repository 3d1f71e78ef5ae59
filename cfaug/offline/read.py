"""Reading counterfactual shards: the one bridge from generation to training.

    reader = ShardReader("OUT/shards")       # or a URL: s3://bucket/run/shards
    reader.picture(i), reader.record(i)      # one checked random read each
    reader.by_key.find(key_hash("img-7.png"))          # where the samples of one source are

The manifest, never a directory listing, says what exists, and every byte that is handed out agrees with 64 bits of the hash
that the index states (:mod:`cfaug.offline.index`). Only PNG, WebP and JSON are decoded; nothing is unpickled and nothing is
executed. The module needs numpy and Pillow, not torch, diffusers or webdataset. Opening does not hash whole shards: that is
:func:`cfaug.offline.verify`.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property, lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from cfaug.data.images import pixel_digest
from cfaug.data.pixel_hashes import Picture, has_pixels, pixels_hash, sample_hash
from cfaug.errors import CfaugError, ShardError
from cfaug.offline.decoders import parse_record, picture_of, pixels_of
from cfaug.offline.format import MANIFEST, SPLITS, TRAIN, IndexRow, ManifestRow, Record, Sample, SourceHashes
from cfaug.offline.index import (
    DIGEST,
    SAMPLE,
    U64,
    WEBP,
    XXH3,
    Entry,
    Unusable,
    agrees,
    fingerprint_of,
    key_hash,
    key_hashes,
    leading,
    number,
    open_index,
    published_index,
)
from cfaug.offline.os_errors import unreadable
from cfaug.offline.read_committed import altered, check_size, index_lines, open_shards, read_manifest
from cfaug.offline.storage import LocalStorage

__all__ = [
    "SPLITS",
    "TRAIN",
    "Found",
    "IndexRow",
    "ManifestRow",
    "Record",
    "Sample",
    "ShardReader",
    "SourceHashes",
    "SourceTable",
    "key_hash",
    "key_hashes",
]

OPEN_FILES = 128  # of one reader; a process may have 1024 by default
INDEX_FILES = 16  # that are kept in memory when single rows are asked for
RESIZED = "cfaug: resized"  # in the info of a picture that need not have the size of its source
MADE_ANEW = ("_starts", "_lines", "_opened", "by_key", "by_pixels")  # by each process


class Found(NamedTuple):
    """Where a source's rows stand in :attr:`SourceTable.rows`: from `start`, `counterfactuals`, then `nulls` of them."""

    start: int
    counterfactuals: int
    nulls: int


class SourceTable:
    """The samples of each source, found by a 64-bit hash of it.

    `rows` (N,) uint32: those of one source stand together, ``rows[start : start + counterfactuals]`` its counterfactuals,
    ascending, then `nulls` null interventions, ascending. `hashes` (N,) and `null` (N,) belong to `rows`.
    """

    def __init__(self, hashes: U64, rows: npt.NDArray[np.uint32], null: npt.NDArray[np.uint8]) -> None:
        self.rows, self._hashes, self._null = rows, hashes, null
        # a search through numpy takes 100 us where the processor's caches are cold, one through these views 15
        self._views: tuple[Any, ...] = (memoryview(hashes), memoryview(null))  # type: ignore[arg-type]

    def find(self, hash: int) -> Found:
        """Where the rows of the source are; (0, 0, 0) for a hash that no source has."""
        hashes, null = self._views
        start = end = bisect_left(hashes, hash)
        nulls = 0
        while end < len(hashes) and hashes[end] == hash:
            nulls += null[end]
            end += 1
        return Found(start, end - start - nulls, nulls) if end > start else Found(0, 0, 0)

    def find_many(self, hashes: U64) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """:meth:`find` of each of `hashes` (M,): start, counterfactuals and nulls, each (M,) int64."""
        ordered = np.ascontiguousarray(self._hashes)
        start, end = (np.searchsorted(ordered, hashes, side) for side in ("left", "right"))
        before = np.concatenate([[0], np.cumsum(self._null, dtype=np.int64)])
        nulls = before[end] - before[start]
        return np.where(start < end, start, 0), end - start - nulls, nulls


class ShardReader:
    """Every committed sample of a directory of shards, by number 0..len-1, in the order of the shards' names.

    `place` is a run's output or its ``shards``, a path or a URL. Opening reads the manifest, compares file sizes and maps
    ``index.npy``, or builds the same index in memory from the shards' index files. A read checks the bytes that it read. A reader
    is picklable and safe in threads and in forked or spawned workers: files stay open and are read by ``pread``, so nobody shares
    a position. Attributes: `directory` (where the shards are: a path, or the URL), `storage`, `manifest` (rows), `fingerprint`
    (sha256 over the names and digests of the shards), `resized` (whether the sources were brought to a working size, which the
    samples have; they are known by their pixels before that).

    :class:`ShardError` names the shard, and the key where one sample is at fault; :class:`StorageError` (``transient``)
    where the place did not answer. :class:`UsageError` for a URL whose protocol or package is missing.
    """

    def __init__(self, place: str | Path) -> None:
        self.storage, sizes = open_shards(place)
        url = self.storage.url
        self.directory: str | Path = url if "://" in url else Path(url)  # what `place` was, or its shards
        self.manifest: list[ManifestRow] = read_manifest(self.storage)
        if not self.manifest:
            if isinstance(self.storage, LocalStorage) and not self.storage.path.exists():
                raise ShardError(
                    f"{self.directory}: expected committed shards, there is no such directory; check the path or generate first"
                )
            state = "an empty one" if MANIFEST in sizes else "none"
            raise ShardError(f"expected {self.directory}/{MANIFEST} with committed shards, got {state}; generate first")
        for row in self.manifest:
            check_size(row.name, row.bytes, sizes)
            check_size(row.index, row.index_bytes, sizes, f"{row.name}: its index ")
        self.fingerprint = fingerprint_of(self.manifest)
        self.resized = "size" in self.manifest[0].environment
        self._index = open_index(self.storage, self.manifest, sizes)
        self._prepare()

    def _prepare(self) -> None:
        """What every process makes for itself."""
        self._starts = [0, *accumulate(row.count for row in self.manifest)]
        self._lines = lru_cache(INDEX_FILES)(lambda shard: index_lines(self.storage, self.manifest[shard]))
        self._opened = None
        if isinstance(self.storage, LocalStorage):
            self._opened = lru_cache(OPEN_FILES)(partial(_OpenFile, self.storage.path))

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name not in MADE_ANEW}
        if self._index.path is not None:  # a copy maps the same file
            state["_index"] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._index is None:
            try:
                self._index = published_index(self.storage, self.manifest, checked=True)
            except Unusable:  # it was removed or replaced meanwhile
                self._index = open_index(self.storage, self.manifest, self.storage.sizes())
        self._prepare()

    def __len__(self) -> int:
        return len(self._index)

    @property
    def index(self) -> Sequence[IndexRow]:
        """One :class:`IndexRow` per sample (key, source_key, source_digest, split, null, image_field, image), read when it is
        asked for; going through them in order reads each shard's index file once."""
        return _IndexRows(self)

    @property
    def keys(self) -> list[str]:
        """The samples' keys: reads every index file."""
        return [row.key for row in self.index]

    @property
    def nulls(self) -> npt.NDArray[np.bool_]:
        """(N,) which samples are null interventions; a new array."""
        return self._index.nulls

    @property
    def splits(self) -> npt.NDArray[np.uint8]:
        """(N,) the samples' splits as places in ``SPLITS`` ("train", "val", "test"); 3: a different one. A new array."""
        return self._index.entries["split"].copy()

    @cached_property
    def by_key(self) -> SourceTable:
        """The samples of a source by :func:`key_hash` of its key."""
        return SourceTable(*(self._index.entries[name] for name in ("key_hash", "key_row", "key_null")))

    @cached_property
    def by_pixels(self) -> SourceTable:
        """The samples of a source by :meth:`lookup` of its image."""
        return SourceTable(*(self._index.entries[name] for name in ("pixel_hash", "pixel_row", "pixel_null")))

    def lookup(self, image: Picture) -> int:
        """The hash under which :attr:`by_pixels` knows `image`, if it is a source's: PIL, or uint8 (H, W) or (H, W, C).

        It only proposes: :meth:`confirms` decides. Which hash it is depends on the shards: the quickest that all of them
        have and that tells their sources apart. UsageError for anything but an 8-bit image.
        """
        if self._index.lookup == SAMPLE:
            return sample_hash(image)
        return leading(_digest(image)) if self._index.lookup == DIGEST else pixels_hash(image)

    def confirms(self, i: int, image: Picture) -> bool:
        """Whether the source of sample `i` has exactly the pixels of `image`, or had them after it was resized."""
        expected = self._index.entry(i).pixels
        same = leading(_digest(image)) == expected if self._index.lookup == DIGEST else has_pixels(image, expected)
        return same or (self.resized and self.record(i).get("working_digest") == _digest(image))

    def where(self, i: int) -> str:
        """How an error names sample `i`: shard and key, or its number in the shard where the index file is gone too."""
        i = _counted(i, len(self))
        try:
            return f"{self.manifest[self._shard_of(i)].name}, sample {self.index[i].key!r}"
        except CfaugError:
            return number(self.manifest, i)

    def record(self, i: int) -> Record:
        """The JSON record of sample `i` (fields: ``RECORD_FIELDS``)."""
        i = _counted(i, len(self))
        entry = self._index.entry(i)
        return self._record(i, entry, self._read(i, entry.record_at, entry.record_bytes))

    def picture(self, i: int) -> Image.Image:
        """The image of sample `i`, mode L or RGB, decoded."""
        i = _counted(i, len(self))
        entry = self._index.entry(i)
        return self._picture(i, entry, self._read(i, entry.image_at, entry.image_bytes))

    def image(self, i: int) -> npt.NDArray[np.uint8]:
        """The image of sample `i`: uint8, height x width x channels (1 or 3), writable."""
        return pixels_of(self.picture(i))

    def sample(self, i: int) -> Sample:
        """Key, image and record of sample `i`, in one read."""
        i = _counted(i, len(self))
        entry = self._index.entry(i)
        skipped = entry.image_at - entry.record_at
        data = self._read(i, entry.record_at, skipped + entry.image_bytes)
        record = self._record(i, entry, data[: entry.record_bytes])
        return Sample(record["key"], pixels_of(self._picture(i, entry, data[skipped:])), record)

    def _record(self, i: int, entry: Entry, data: bytes) -> Record:
        if not agrees(data, entry.record_check):
            raise altered(data, entry.record_bytes, self.where(i))
        try:
            return parse_record(data, "")
        except ShardError:
            return parse_record(
                data, self.where(i)
            )  # the same error, named: to name each record would read the index files

    def _picture(self, i: int, entry: Entry, data: bytes) -> Image.Image:
        if not agrees(data, entry.image_check, bool(entry.flags & XXH3)):
            raise altered(data, entry.image_bytes, self.where(i))
        picture = picture_of(data, partial(self.where, i), "webp" if entry.flags & WEBP else "png")
        if self.resized:
            picture.info[RESIZED] = True
        return picture

    def _shard_of(self, i: int) -> int:
        return bisect_right(self._starts, i) - 1

    def _read(self, i: int, offset: int, size: int) -> bytes:
        name = self.manifest[self._shard_of(i)].name
        try:
            if self._opened is None:
                return self.storage.read_range(name, offset, size)
            file = self._opened(name)  # held by this name, so that no other thread's reads close it meanwhile
            return os.pread(file.descriptor, size, offset)
        except FileNotFoundError:
            raise ShardError(
                f"{self.where(i)}: the shard was there when {self.directory} was opened and is gone now; put it back or "
                "generate it again, then start again"
            ) from None
        except OSError as error:
            raise unreadable(error, self.where(i), "run cfaug verify, generate again") from None


class _OpenFile:
    """A file that stays open for ``pread`` until nobody holds it: to open one costs more than to read a small image from it."""

    def __init__(self, directory: Path, name: str) -> None:
        self.descriptor = os.open(directory / name, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class _IndexRows(Sequence[IndexRow]):
    """The index rows of all samples of a reader, each parsed when it is asked for."""

    def __init__(self, reader: ShardReader) -> None:
        self._reader = reader

    def __len__(self) -> int:
        return len(self._reader)

    @overload
    def __getitem__(self, i: int) -> IndexRow: ...
    @overload
    def __getitem__(self, i: slice) -> list[IndexRow]: ...
    def __getitem__(self, i: int | slice) -> IndexRow | list[IndexRow]:
        if isinstance(i, slice):
            return [self[n] for n in range(*i.indices(len(self)))]
        reader, i = self._reader, _counted(i, len(self))
        shard = reader._shard_of(i)
        line = reader._lines(shard)[i - reader._starts[shard]]
        return IndexRow.parse(line, f"{reader.manifest[shard].name}, its index")


def _counted(i: int, length: int) -> int:
    """`i` counted from 0, where it may count from the end; IndexError outside."""
    if not -length <= i < length:
        raise IndexError(f"expected a number below {length}, got {i}")
    return int(i) if i >= 0 else int(i) + length


def _digest(image: Picture) -> str:
    if isinstance(image, Image.Image):
        image = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    return pixel_digest(image)
