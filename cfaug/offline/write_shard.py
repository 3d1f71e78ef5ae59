"""Samples are encoded, and a shard is staged: written and synced under partial names, which no reader trusts.

    json = compact ASCII JSON, fields in the order given    png = Pillow, L or RGB, compress_level 6, not optimised, marked
    tar  = USTAR, mtime 0, owner cfaug/cfaug 0/0, mode 0444, members sorted    offset of a payload = its header's + 512

The same samples give the same bytes with the same versions of Pillow and zlib; pixels and records are the same with all.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from PIL import Image

from cfaug.data.files import partial_name
from cfaug.errors import ShardError, UsageError
from cfaug.offline.format import (
    BLOCK,
    IMAGES,
    KEY,
    MAX_INDEX_BYTES,
    MAX_KEY,
    MAX_LINE,
    MAX_PIXELS,
    MAX_RECORD_BYTES,
    MAX_SAMPLES,
    TAR_NAME,
    IndexRow,
    ManifestRow,
    Member,
    Quick,
    Sample,
    canonical_json,
    check_record,
    header,
    index_name,
    padded,
    parse_object,
    tar_size,
)
from cfaug.offline.marks import marked
from cfaug.offline.os_errors import explained, failure
from cfaug.offline.stored_png import stored_png

FLUSH = 1 << 20  # bytes after which the disk is asked to begin
BUFFER = 1 << 17  # bytes that are collected for one write


@dataclass(frozen=True)
class Staged:
    """A complete shard under its partial names, to be committed with `row`."""

    row: ManifestRow
    tar: Path
    index: Path


def encode_sample(sample: Sample, image: str = "png") -> dict[str, Any]:
    """The two members of a sample as ``webdataset`` has them: ``__key__``, ``json`` and ``png`` or ``webp`` (bytes).

    `image` is ``png``, ``png-stored`` (a PNG that is not compressed: larger, and quick to read) or ``webp`` (lossless, RGB).
    :class:`UsageError` for a different `image`. :class:`ShardError` for a key outside ``[A-Za-z0-9_-]{1,95}`` (a reader
    accepts up to 120 characters, which a USTAR header cannot hold), an image that is not uint8 with 1 or 3 channels, or a
    record that is not one of format 1.
    """
    if not KEY.fullmatch(sample.key) or len(sample.key) > MAX_KEY:
        raise ShardError(f"expected a key of 1 to {MAX_KEY} characters from A-Z a-z 0-9 _ -, got {sample.key!r}")
    record = check_record(sample.record, f"sample {sample.key!r}")
    if record["key"] != sample.key:
        raise ShardError(
            f"sample {sample.key!r}: expected its own key in its record, got {record['key']!r}; make them equal"
        )
    text = canonical_json(record)
    if b"\\u" in text or len(text) > MAX_RECORD_BYTES:  # a reader would refuse half a surrogate pair, for example
        parse_object(text, MAX_RECORD_BYTES, f"sample {sample.key!r}: its record")
    return {"__key__": sample.key, "json": text, field_of(image): encode_image(sample, image)}


def field_of(image: str) -> str:
    """The field of images stored as `image`, ``png`` or ``webp``; UsageError unless it is one of ``IMAGES``."""
    if image not in IMAGES:
        raise UsageError(f"image: expected one of {', '.join(IMAGES)}, got {image!r}; say how images are to be stored")
    return IMAGES[image]


def stage_shard(
    directory: str | Path,
    name: str,
    samples: Iterable[Sample],
    plan_digest: str,
    model_digest: str,
    environment: Mapping[str, str | int] | None = None,
    image: str = "png",
) -> Staged:
    """Write `samples` as shard `name` (``*.tar``) under partial names and fsync; nothing is committed yet.

    On any failure both partial files are removed. A full disk is a :class:`StorageError` of one line (``full``). Errors of
    `samples` pass unchanged.
    """
    if not TAR_NAME.fullmatch(name):
        raise UsageError(f"expected a shard name like cf-train-000000.tar, got {name!r}")
    directory, beside = Path(directory), index_name(name)
    tar, index = directory / partial_name(name), directory / partial_name(beside)
    field = field_of(image)
    lines: list[bytes] = []  # not rows, because thousands of small objects would keep the garbage collector busy
    keys: set[str] = set()
    shape_of_first: dict[str, Any] | None = None
    with removed(tar, index, on_success=False):
        with closing(TarFile(tar, name)) as writer:
            for sample in samples:
                fields = encode_sample(sample, image)
                shape_of_first = _same_fields(sample, shape_of_first, name)
                lines.append(_index_row(sample, fields, writer.size, field).line())
                keys.add(sample.key)
                # sorted by name, as webdataset writes them
                writer.add([(f"{sample.key}.json", fields["json"]), (f"{sample.key}.{field}", fields[field])])
            writer.finish()
        if not lines or len(keys) != len(lines):
            raise ShardError(
                f"{name}: expected samples with keys that differ, got {len(lines)} samples with {len(keys)} keys; correct them"
            )
        content = b"".join(lines)
        if len(lines) > MAX_SAMPLES or len(content) > MAX_INDEX_BYTES or max(map(len, lines)) > MAX_LINE:
            raise ShardError(
                f"{name}: expected at most {MAX_SAMPLES} samples and {MAX_LINE} bytes for one in the index, which readers "
                f"accept, got {len(lines)} and {max(map(len, lines))}; plan smaller shards, or shorten the source keys"
            )
        with explained(directory, name), index.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
    row = ManifestRow(
        name=name, count=len(lines), bytes=writer.size, sha256=writer.sha256.hexdigest(),
        index=beside, index_bytes=len(content), index_sha256=hashlib.sha256(content).hexdigest(),
        plan=plan_digest, model=model_digest, environment=dict(environment or {}),
    )  # fmt: skip
    return Staged(row, tar, index)


class TarFile:
    """A USTAR file that is counted and hashed as it is written, so that it need not be read again.

    The bytes are those of ``webdataset.TarWriter(handle, "cfaug", "cfaug", 0o444, mtime=0)`` (a test compares them). tarfile
    makes one header, and from member to member only name, size and checksum are replaced. To build each header anew, as
    tarfile and webdataset do, takes four times as long, which is more than encoding a small image takes.

    An OSError of a write becomes a :class:`~cfaug.errors.StorageError` for the shard `name`.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name, self.size, self.sha256, self._sent = path, name, 0, hashlib.sha256(), 0
        any_header = header("", 0)
        self._fixed = any_header[100:124], any_header[136:148], any_header[156:]
        self._sum = sum(map(sum, self._fixed)) + 8 * ord(" ")  # the checksum counts as eight spaces
        with explained(path.parent, name):
            self._handle = path.open("wb", buffering=BUFFER)

    def add(self, members: Iterable[tuple[str, bytes]]) -> None:
        """Append (name, content) of one sample."""
        before, middle, after = self._fixed
        parts: list[bytes] = []
        for name, data in members:
            path, size = name.encode("ascii"), b"%011o\0" % len(data)
            checksum = b"%06o\0 " % (self._sum + sum(path) + sum(size))
            parts += path.ljust(100, b"\0"), before, size, middle, checksum, after, data, bytes(-len(data) % BLOCK)
        self._write(b"".join(parts))

    def finish(self) -> None:
        """Write the end and sync the file."""
        self._write(bytes(tar_size(self.size) - self.size))
        with explained(self.path.parent, self.name):
            self._handle.flush()
            os.fsync(self._handle.fileno())

    def close(self) -> None:
        with suppress(OSError):  # after finish nothing is left to be written; without it the file is removed
            self._handle.close()

    def _write(self, data: bytes) -> None:
        self.sha256.update(data)
        self.size += len(data)
        try:
            self._handle.write(data)
            if self.size - self._sent >= FLUSH and hasattr(os, "posix_fadvise"):
                # This lets the disk begin while the next images are encoded, so that fsync has less to wait for: Linux
                # starts to write back the pages that it is told will not be read again.
                self._handle.flush()
                os.posix_fadvise(self._handle.fileno(), self._sent, self.size - self._sent, os.POSIX_FADV_DONTNEED)
                self._sent = self.size
        except OSError as error:
            raise failure(error, self.path.parent, self.name) from None


def _index_row(sample: Sample, fields: Mapping[str, Any], offset: int, field: str) -> IndexRow:
    """The index row of the sample whose first header starts at `offset`; each member is a header and whole blocks."""
    members = {}
    for name in ("json", field):  # the order in which they are written
        data = fields[name]
        members[name] = Member(offset + BLOCK, len(data), hashlib.sha256(data).hexdigest())
        offset += BLOCK + padded(len(data))
    record, quick = sample.record, None
    if sample.source is not None:
        hashes = (xxhash.xxh3_64_intdigest(fields[field]), *sample.source)
        quick = Quick(*(f"{one:016x}" for one in hashes))
    return IndexRow(
        sample.key, record["source_key"], record["source_digest"], record["split"], not record["do"], **members,
        xxh3=quick,
    )  # fmt: skip


def _same_fields(sample: Sample, first: dict[str, Any] | None, name: str) -> dict[str, Any]:
    """Names and types of attributes must not vary in a shard: readers infer them from the first few samples."""
    shape = {
        f"{field}.{attribute}": None if value is None else type(value)
        for field in ("attributes", "factual", "quality")
        for attribute, value in sample.record[field].items()
    }
    first = shape if first is None else first
    if shape.keys() != first.keys() or any(None not in (shape[k], first[k]) and shape[k] != first[k] for k in shape):
        raise ShardError(
            f"{name}, sample {sample.key!r}: expected the attributes and types of the samples before it, got different ones; "
            "give all samples of a shard the same"
        )
    return {k: first[k] or shape[k] for k in shape}


def _pixels(sample: Sample) -> npt.NDArray[np.uint8]:
    image = sample.image
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        came = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ShardError(
            f"sample {sample.key!r}: expected a uint8 image (height, width, 1 or 3), got {came}; convert it"
        )
    if not 0 < image.shape[0] * image.shape[1] <= MAX_PIXELS:
        raise ShardError(
            f"sample {sample.key!r}: expected 1 to {MAX_PIXELS} pixels, which readers accept, got {image.shape[0]}x{image.shape[1]}; "
            "resize the image"
        )
    return np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image)


def encode_image(sample: Sample, image: str) -> bytes:
    """The image file of a sample, marked as generated; ShardError for pixels that no reader would accept."""
    pixels = _pixels(sample)
    if image == "png-stored":
        return marked(stored_png(pixels), "png", sample.source_type)
    if image == "webp" and pixels.ndim == 2:
        raise ShardError(
            f"sample {sample.key!r}: expected an RGB image for webp, got a grey one; set generate.image=png"
        )
    webp, png = {"lossless": True, "quality": 75, "method": 4}, {"compress_level": 6, "optimize": False}
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, IMAGES[image], **(webp if image == "webp" else png))
    return marked(stream.getvalue(), IMAGES[image], sample.source_type)


@contextmanager
def removed(*paths: Path, on_success: bool = True) -> Iterator[None]:
    """Remove `paths` afterwards; with ``on_success=False`` only when something went wrong."""
    done = False
    try:
        yield
        done = True
    finally:
        if on_success or not done:
            for path in paths:
                path.unlink(missing_ok=True)
