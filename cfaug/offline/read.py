"""Reading counterfactual shards: the one bridge from generation to training.

    reader = ShardReader("OUT/shards")       # or a URL: s3://bucket/run/shards
    reader.picture(i), reader.record(i)      # one checked random read each
    reader.by_key.find(key_hash("img-7.png"))          # where the samples of one source are

The manifest, never a directory listing, says what exists, and every byte handed out agrees with 64 bits of the hash that
the index states (:mod:`cfaug.offline.reading.columns`). Only PNG, WebP and JSON are decoded; nothing is unpickled and
nothing is executed. Needs numpy and Pillow, not torch, diffusers or webdataset. It does not re-hash whole shards on
opening: that is :func:`cfaug.offline.verify`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cfaug.data.images import pixel_digest
from cfaug.data.lookup import Picture, has_pixels, pixels_hash, sample_hash
from cfaug.errors import ShardError
from cfaug.offline.committed import altered, check_size, open_shards, read_index, read_manifest
from cfaug.offline.decoders import decode_image, parse_record, picture_of, pixels_of
from cfaug.offline.format import (
    BLOCK,
    FORMAT,
    KEY,
    MANIFEST,
    RECORD_FIELDS,
    SPLITS,
    TRAIN,
    IndexRow,
    ManifestRow,
    Record,
    Sample,
    SourceHashes,
    padded,
)
from cfaug.offline.os_errors import unreadable
from cfaug.offline.reading.column_file import Mapped, Unusable, columns_of, map_columns
from cfaug.offline.reading.columns import (
    DIGEST,
    IMAGE_MASK,
    JSON_BITS,
    JSON_MASK,
    PIXELS,
    SAMPLE,
    WEBP,
    XXH3,
    Found,
    SourceTable,
    agrees,
    fingerprint_of,
    key_hash,
    key_hashes,
    leading,
)
from cfaug.offline.reading.descriptors import Descriptors
from cfaug.offline.reading.indices import Indices, Lazy
from cfaug.offline.reading.indices import place as place_of
from cfaug.offline.storage import LocalStorage

__all__ = [
    "FORMAT",
    "KEY",
    "RECORD_FIELDS",
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
    "decode_image",
    "key_hash",
    "key_hashes",
    "open_shards",
    "parse_record",
    "read_index",
]


class ShardReader:
    """Every committed sample of a directory of shards, by number 0..len-1, in the order of the manifest's names.

    `place` is a run's output or its ``shards``, a path or a URL. Opening reads the manifest, compares file sizes and
    maps the samples' columns from ``index.bin``, building them from the indices where there is none
    (:mod:`cfaug.offline.reading.column_file`); a read checks the bytes that it read. Picklable, and safe
    in threads and in forked or spawned workers: files stay open, in each process, and are read by ``pread``.
    Attributes: `directory` (where the shards are: a path, or the URL), `storage`, `manifest` (rows), `fingerprint` (sha256
    over the names and digests of the shards), `by_key` and `by_pixels` (the samples of a source, see :class:`SourceTable`).

    :class:`ShardError` names the shard, and the key where one sample is at fault; :class:`StorageError` (``transient``)
    where the place did not answer. :class:`UsageError` for a URL whose protocol or package is missing.
    """

    def __init__(self, place: str | Path) -> None:
        self.storage, sizes = open_shards(place)
        self.directory: str | Path = (
            self.storage.url if "://" in self.storage.url else Path(self.storage.url)
        )  # what `place` was, or its shards
        self.manifest: list[ManifestRow] = read_manifest(self.storage)
        if not self.manifest:
            if isinstance(self.storage, LocalStorage) and not self.storage.path.exists():
                raise ShardError(
                    f"{self.directory}: expected committed shards, there is no such directory: check the path or generate first"
                )
            state = "an empty one" if MANIFEST in sizes else "none"
            raise ShardError(
                f"expected {self.directory}/{MANIFEST} with committed shards, found {state}: generate first"
            )
        for row in self.manifest:
            check_size(row.name, row.bytes, sizes)
            check_size(row.index, row.index_bytes, sizes, f"{row.name}: its index ")
        self.fingerprint = fingerprint_of(self.manifest)
        self._indices = Indices(self.storage, self.manifest)
        self._files = Descriptors(self.storage.path) if isinstance(self.storage, LocalStorage) else None
        self._columns = columns_of(self.storage, self.manifest, sizes, self.where)

    def __getstate__(self) -> dict[str, Any]:
        if isinstance(self._columns, Mapped):  # a copy maps the same file, without reading it
            mapped = self._columns
            return {**self.__dict__, "_columns": (mapped.path, mapped.fingerprint, mapped.digest)}
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self._columns, tuple):
            try:
                self._columns = map_columns(*self._columns)
            except Unusable:  # removed meanwhile
                self._columns = columns_of(self.storage, self.manifest, self.storage.sizes(), self.where)

    def __len__(self) -> int:
        return self._indices.starts[-1]

    @property
    def index(self) -> Sequence[IndexRow]:
        """One :class:`IndexRow` a sample (key, source_key, source_digest, split, null, image_field, image), read when it
        is asked for; going through them in order reads each shard's index once."""
        return Lazy(len(self), self._indices.row)

    @property
    def keys(self) -> Sequence[str]:
        """The samples' keys, likewise."""
        return Lazy(len(self), self._indices.key)

    @property
    def nulls(self) -> npt.NDArray[np.bool_]:
        """(N,) which samples are null interventions; a new array."""
        return self._columns.nulls

    @property
    def splits(self) -> npt.NDArray[np.uint8]:
        """(N,) the samples' splits as places in ``SPLITS`` ("train", "val", "test"); 3: another. A new array."""
        return self._columns.splits

    @property
    def by_key(self) -> SourceTable:
        """The samples of a source by :func:`key_hash` of its key."""
        return self._columns.by_key

    @property
    def by_pixels(self) -> SourceTable:
        """The samples of a source by :meth:`lookup` of its image."""
        return self._columns.by_pixels

    def by_source(self) -> dict[str, list[int]]:
        """Source key -> the indices of its samples, ascending; null interventions are among them (`index[i].null`).

        Objects for every sample: for small sets; :attr:`by_key` needs none.
        """
        found: dict[str, list[int]] = {}
        for i, row in enumerate(self.index):
            found.setdefault(row.source_key, []).append(i)
        return found

    def lookup(self, image: Picture) -> int:
        """The hash under which :attr:`by_pixels` knows `image`, if it is a source's: PIL, or uint8 (H, W) or (H, W, C).

        It only proposes: :meth:`confirms` decides. Which hash it is depends on the shards: the quickest that all of them
        have and that tells their sources apart. UsageError for anything but an 8-bit image.
        """
        if self._columns.lookup == SAMPLE:
            return sample_hash(image)
        return pixels_hash(image) if self._columns.lookup == PIXELS else leading(_digest(image))

    def confirms(self, i: int, image: Picture) -> bool:
        """Whether the source of sample `i` has exactly the pixels of `image`."""
        expected = self._columns.pixels.item(i)
        if self._columns.lookup == DIGEST:
            return leading(_digest(image)) == expected
        return has_pixels(image, expected)

    def where(self, i: int) -> str:
        """How an error names sample `i`: shard and key."""
        return self._indices.where(place_of(i, len(self)))

    def record(self, i: int) -> Record:
        """The JSON record of sample `i` (fields: ``RECORD_FIELDS``)."""
        i = place_of(i, len(self))
        columns = self._columns
        return self._record(i, self._read(i, columns.blocks.item(i) * BLOCK, columns.sizes.item(i) & JSON_MASK))

    def picture(self, i: int) -> Image.Image:
        """The image of sample `i`, mode L or RGB, decoded."""
        i = place_of(i, len(self))
        columns = self._columns
        sizes = columns.sizes.item(i)
        offset = columns.blocks.item(i) * BLOCK + padded(sizes & JSON_MASK) + BLOCK
        return self._picture(i, sizes, self._read(i, offset, sizes >> JSON_BITS & IMAGE_MASK))

    def image(self, i: int) -> npt.NDArray[np.uint8]:
        """The image of sample `i`: uint8, height x width x channels (1 or 3), writable."""
        return pixels_of(self.picture(i))

    def sample(self, i: int) -> Sample:
        """Key, image and record of sample `i`, in one read."""
        i = place_of(i, len(self))
        columns = self._columns
        sizes = columns.sizes.item(i)
        skipped = padded(sizes & JSON_MASK) + BLOCK
        data = self._read(i, columns.blocks.item(i) * BLOCK, skipped + (sizes >> JSON_BITS & IMAGE_MASK))
        record = self._record(i, data[: sizes & JSON_MASK])
        return Sample(record["key"], pixels_of(self._picture(i, sizes, data[skipped:])), record)

    def _record(self, i: int, data: bytes) -> Record:
        if not agrees(data, self._columns.json.item(i)):
            raise self._altered(i, data, self._columns.sizes.item(i) & JSON_MASK)
        key = self._indices.key(i)
        where = f"{self.manifest[self._indices.shard_of(i)].name}, sample {key!r}"
        record = parse_record(data, where)
        if record["key"] != key:
            raise ShardError(f"{where}: its record says key {record['key']!r:.140}: generate this shard again")
        return record

    def _picture(self, i: int, sizes: int, data: bytes) -> Image.Image:
        if not agrees(data, self._columns.image.item(i), bool(sizes >> XXH3 & 1)):
            raise self._altered(i, data, sizes >> JSON_BITS & IMAGE_MASK)
        return picture_of(data, partial(self.where, i), "webp" if sizes >> WEBP & 1 else "png")

    def _altered(self, i: int, data: bytes, size: int) -> ShardError:
        return altered(data, size, self.where(i))

    def _read(self, i: int, offset: int, size: int) -> bytes:
        name = self.manifest[self._indices.shard_of(i)].name
        try:
            if self._files is not None:
                return self._files.read(name, offset, size)
            return self.storage.read_range(name, offset, size)
        except FileNotFoundError:
            raise ShardError(
                f"{self.where(i)}: the shard was there when {self.directory} was opened and is gone now: put it back or "
                "generate it again, then start again"
            ) from None
        except OSError as error:
            raise unreadable(error, self.where(i), "run cfaug verify, generate again") from None


def _digest(image: Picture) -> str:
    if isinstance(image, Image.Image):
        image = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    return pixel_digest(image)
