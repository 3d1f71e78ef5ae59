"""Reading counterfactual shards: the one bridge from generation to training.

    reader = ShardReader("OUT/shards")
    reader.image(i), reader.record(i)        # one checked random read each
    reader.by_source()["img-7.png"]          # the indices of all samples of one source

The manifest, never a directory listing, says what exists, and every byte handed out has the sha256 that the index
states. Only PNG and JSON are decoded; nothing is unpickled and nothing is executed. Needs numpy and Pillow, not torch,
diffusers or webdataset. It does not re-hash whole shards on opening: that is :func:`cfaug.offline.verify`.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cfaug.errors import ShardError
from cfaug.offline.format import (
    FORMAT,
    KEY,
    MANIFEST,
    MAX_PIXELS,
    RECORD_FIELDS,
    IndexRow,
    ManifestRow,
    Member,
    Record,
    Sample,
    check_record,
    find,
    read_manifest,
)

__all__ = ["FORMAT", "KEY", "RECORD_FIELDS", "IndexRow", "ManifestRow", "Record", "Sample", "ShardReader"]


class ShardReader:
    """Every committed sample of a directory of shards, by number 0..len-1, in the order of the manifest's names.

    `directory` is a run's output or its ``shards``. Opening reads the manifest and the indices and compares file sizes;
    a read checks the sha256 of what it read. Plain data inside: picklable, and safe in forked or spawned workers.
    Attributes: `directory`, `manifest` (rows), `index` (one :class:`IndexRow` a sample: key, source_key,
    source_digest, split, null), `keys`.

    :class:`ShardError` names the shard, and the key where one sample is at fault.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = find(directory)
        self.manifest: list[ManifestRow] = read_manifest(self.directory)
        if not self.manifest:
            state = "an empty one" if (self.directory / MANIFEST).exists() else "none"
            raise ShardError(
                f"expected {self.directory / MANIFEST} with committed shards, found {state}: generate first"
            )
        self.index: list[IndexRow] = []
        self._shard: list[int] = []
        for number, row in enumerate(self.manifest):
            check_size(self.directory / row.name, row.bytes)
            rows = read_index(self.directory, row)
            self.index += rows
            self._shard += [number] * len(rows)
        self.keys: list[str] = [row.key for row in self.index]
        if len(set(self.keys)) != len(self.keys):
            raise ShardError(f"{self.directory}: key {_first_repeated(self.keys)!r} occurs in more than one place")

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
        row = self.index[i]
        record = parse_record(self._read(i, row.json), self.where(i))
        if record["key"] != row.key:
            raise ShardError(f"{self.where(i)}: its record says key {record['key']!r}: generate this shard again")
        return record

    def image(self, i: int) -> npt.NDArray[np.uint8]:
        """The image of sample `i`: uint8, height x width x channels (1 or 3), writable."""
        return decode_image(self._read(i, self.index[i].image), self.where(i))

    def sample(self, i: int) -> Sample:
        """Key, image and record of sample `i`."""
        return Sample(self.index[i].key, self.image(i), self.record(i))

    def _read(self, i: int, member: Member) -> bytes:
        path = self.directory / self.manifest[self._shard[i]].name
        try:
            with path.open("rb", buffering=0) as handle:
                return read_member(handle, member, self.where(i))
        except OSError as error:
            raise ShardError(f"{self.where(i)}: cannot read {path}: {error.strerror}") from None


def read_member(handle: io.RawIOBase | io.BufferedReader, member: Member, where: str) -> bytes:
    """The payload of one member, with the sha256 the index states or :class:`ShardError`."""
    handle.seek(member.offset)
    data = handle.read(member.size) or b""
    if hashlib.sha256(data).hexdigest() != member.sha256:
        came = "other bytes" if len(data) == member.size else f"only {len(data)} of {member.size} bytes"
        raise ShardError(
            f"{where}: expected the bytes the index vouches for, found {came}: run cfaug verify, generate again"
        )
    return data


def read_index(directory: Path, row: ManifestRow) -> list[IndexRow]:
    """The index of one shard, checked against its manifest row."""
    path = directory / row.index
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ShardError(
            f"{row.name}: cannot read its index {path}: {error.strerror}: generate this shard again"
        ) from None
    if hashlib.sha256(content).hexdigest() != row.index_sha256:
        raise ShardError(f"{row.name}: its index {row.index} is not the one in the manifest: generate this shard again")
    rows = [IndexRow.parse(line, f"{path} line {n}") for n, line in enumerate(content.splitlines(), 1)]
    if len(rows) != row.count:
        raise ShardError(f"{row.name}: the manifest says {row.count} samples, its index {len(rows)}: generate again")
    return rows


def check_size(path: Path, size: int) -> None:
    """:class:`ShardError` unless `path` has exactly `size` bytes: the cheap half of verification."""
    try:
        found = path.stat().st_size
    except OSError as error:
        raise ShardError(
            f"{path.name}: in the manifest, but not readable: {error.strerror}: generate it again"
        ) from None
    if found != size:
        raise ShardError(f"{path.name}: expected {size} bytes, found {found} (truncated?): generate this shard again")


def parse_record(data: bytes, where: str) -> Record:
    """The record in `data` (UTF-8 JSON), with the fields and types of format 1 or :class:`ShardError`."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        raise ShardError(f"{where}: its record is not JSON: generate this shard again") from None
    return check_record(record, where)


def decode_image(data: bytes, where: str) -> npt.NDArray[np.uint8]:
    """The pixels of a PNG: uint8, height x width x (1 or 3). No other codec is ever tried.

    Pillow without `formats` guesses by content and can reach interpreters of other formats; size is checked before
    decoding, since a few kilobytes can announce gigabytes.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.mode not in ("L", "RGB") or image.width * image.height > MAX_PIXELS:
                raise ShardError(
                    f"{where}: expected an L or RGB image, found {image.mode} {image.width}x{image.height}"
                )
            pixels = np.array(image, dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ShardError(f"{where}: its image is not a readable PNG ({error}): generate this shard again") from None
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _first_repeated(keys: list[str]) -> str:
    seen: set[str] = set()
    return next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
