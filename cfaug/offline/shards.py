"""Reading counterfactual shards: the one bridge from generation to training.

    reader = ShardReader("OUT/shards")       # or a URL: s3://bucket/run/shards
    reader.image(i), reader.record(i)        # one checked random read each
    reader.by_source()["img-7.png"]          # the indices of all samples of one source

The manifest, never a directory listing, says what exists, and every byte handed out has the sha256 that the index
states. Only PNG, WebP and JSON are decoded; nothing is unpickled and nothing is executed. Needs numpy and Pillow, not
torch, diffusers or webdataset. It does not re-hash whole shards on opening: that is :func:`cfaug.offline.verify`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cfaug.errors import ShardError
from cfaug.offline.destinations.explained import unreadable
from cfaug.offline.destinations.storage import Storage, open_storage
from cfaug.offline.format import (
    BLOCK,
    FORMAT,
    KEY,
    MANIFEST,
    RECORD_FIELDS,
    IndexRow,
    ManifestRow,
    Member,
    Record,
    Sample,
    padded,
    tar_size,
)
from cfaug.offline.reading.decoders import decode_image, parse_record
from cfaug.offline.reading.manifest import COMMITS, read_manifest

__all__ = [
    "FORMAT",
    "KEY",
    "RECORD_FIELDS",
    "IndexRow",
    "ManifestRow",
    "Record",
    "Sample",
    "ShardReader",
    "decode_image",
    "open_shards",
    "parse_record",
    "read_index",
]


class ShardReader:
    """Every committed sample of a directory of shards, by number 0..len-1, in the order of the manifest's names.

    `place` is a run's output or its ``shards``, a path or a URL. Opening reads the manifest and the indices and
    compares file sizes; a read checks the sha256 of what it read. Plain data inside: picklable, and safe in forked or
    spawned workers. Memory: about 1 KB a sample, for the index.
    Attributes: `directory` (where the shards are: a path, or the URL), `storage`, `manifest` (rows), `index` (one
    :class:`IndexRow` a sample: key, source_key, source_digest, split, null, image_field, image), `keys`.

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
            state = "an empty one" if MANIFEST in sizes else "none"
            raise ShardError(
                f"expected {self.directory}/{MANIFEST} with committed shards, found {state}: generate first"
            )
        self.index: list[IndexRow] = []
        self._shard: list[int] = []
        for number, row in enumerate(self.manifest):
            check_size(row.name, row.bytes, sizes)
            rows = read_index(self.storage, row, sizes)
            self.index += rows
            self._shard += [number] * len(rows)
        self.keys: list[str] = [row.key for row in self.index]
        if len(set(self.keys)) != len(self.keys):
            where = self.where(_first_repeated(self.keys))
            raise ShardError(f"{where}: the key is also in another place: generate with --overwrite")

    def __len__(self) -> int:
        return len(self.index)

    def by_source(self) -> dict[str, list[int]]:
        """Source key -> the indices of its samples, ascending; null interventions are among them (`index[i].null`)."""
        found: dict[str, list[int]] = {}
        for i, row in enumerate(self.index):
            found.setdefault(row.source_key, []).append(i)
        return found

    def where(self, i: int) -> str:
        """How an error names sample `i`: shard and key."""
        return f"{self.manifest[self._shard[i]].name}, sample {self.index[i].key!r}"

    def record(self, i: int) -> Record:
        """The JSON record of sample `i` (fields: ``RECORD_FIELDS``)."""
        member = self.index[i].json
        return self._record(i, self._read(i, member.offset, member.size))

    def image(self, i: int) -> npt.NDArray[np.uint8]:
        """The image of sample `i`: uint8, height x width x channels (1 or 3), writable."""
        member = self.index[i].image
        return self._image(i, self._read(i, member.offset, member.size))

    def sample(self, i: int) -> Sample:
        """Key, image and record of sample `i`, in one read."""
        row = self.index[i]
        first, skipped = row.json.offset, row.image.offset - row.json.offset
        data = self._read(i, first, skipped + row.image.size)
        record = self._record(i, data[: row.json.size])
        return Sample(row.key, self._image(i, data[skipped:]), record)

    def _record(self, i: int, data: bytes) -> Record:
        row, where = self.index[i], self.where(i)
        record = parse_record(vouched(data, row.json, where), where)
        if record["key"] != row.key:
            raise ShardError(f"{where}: its record says key {record['key']!r:.140}: generate this shard again")
        return record

    def _image(self, i: int, data: bytes) -> npt.NDArray[np.uint8]:
        row, where = self.index[i], self.where(i)
        return decode_image(vouched(data, row.image, where), where, row.image_field)

    def _read(self, i: int, offset: int, size: int) -> bytes:
        try:
            return self.storage.read_range(self.manifest[self._shard[i]].name, offset, size)
        except OSError as error:
            raise unreadable(error, self.where(i), "run cfaug verify, generate again") from None


def open_shards(place: str | Path) -> tuple[Storage, dict[str, int]]:
    """The storage that holds the manifest, `place` itself or its ``shards``, and the sizes of the blobs there."""
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
        came = "other bytes" if len(data) == member.size else f"only {len(data)} of {member.size} bytes"
        raise ShardError(
            f"{where}: expected the bytes the index vouches for, found {came}: run cfaug verify, generate again"
        )
    return data


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
    if hashlib.sha256(content).hexdigest() != row.index_sha256:
        raise ShardError(f"{row.name}: its index {row.index} is not the one in the manifest: generate this shard again")
    lines = content.splitlines()
    if len(lines) != row.count:
        raise ShardError(f"{row.name}: the manifest says {row.count} samples, its index {len(lines)}: generate again")
    rows = [IndexRow.parse(line, f"{row.name}, {row.index} line {n}") for n, line in enumerate(lines, 1)]
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


def check_size(name: str, size: int, sizes: Mapping[str, int], what: str = "") -> None:
    """:class:`ShardError` unless `sizes` has `name` with exactly `size` bytes: the cheap half of verification."""
    found = sizes.get(name)
    if found is None:
        raise ShardError(f"{what}{name}: in the manifest, but not there: generate it again")
    if found != size:
        raise ShardError(f"{what}{name}: expected {size} bytes, found {found} (truncated?): generate this shard again")


def _first_repeated(keys: list[str]) -> int:
    seen: set[str] = set()
    return next(i for i, key in enumerate(keys) if key in seen or seen.add(key))  # type: ignore[func-returns-value]
