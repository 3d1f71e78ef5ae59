"""Encoding samples and staging a shard: the same samples give the same bytes, under a name nobody trusts yet.

    json = compact ASCII JSON, fields in the order given    png = Pillow, L or RGB, compress_level 6, not optimised
    tar  = USTAR, mtime 0, owner cfaug/cfaug 0/0, mode 0444, members sorted    offset of a payload = its header's + 512

"The same bytes" holds for the same Pillow and zlib; the pixels and the records are the same everywhere.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from cfaug.errors import ShardError, UsageError
from cfaug.offline.explained import explained as explained  # plan.py takes it from here
from cfaug.offline.format import (
    KEY,
    PARTIAL,
    TAR_NAME,
    IndexRow,
    ManifestRow,
    Member,
    Sample,
    canonical_json,
    check_record,
)

BLOCK = 512
# A USTAR name has 100 bytes and can only be longer across a slash, which a key must not have: 95 plus ".json".
# Beyond that webdataset 1.0.2 would write a pax header without a word: it computes its `format` and never passes it on.
MAX_KEY = 95


@dataclass(frozen=True)
class Staged:
    """A complete shard under its partial names, waiting to be committed with `row`."""

    row: ManifestRow
    tar: Path
    index: Path


def encode_sample(sample: Sample) -> dict[str, Any]:
    """The two members of a sample as ``webdataset.TarWriter`` takes them: ``__key__``, ``json``, ``png`` (bytes).

    :class:`ShardError` for a key outside ``[A-Za-z0-9_-]{1,95}`` (a reader must accept 120, a USTAR header cannot hold
    it), an image that is not uint8 with 1 or 3 channels, or a record that is not one of format 1.
    """
    if not KEY.fullmatch(sample.key) or len(sample.key) > MAX_KEY:
        raise ShardError(f"expected a key of 1 to {MAX_KEY} characters from A-Z a-z 0-9 _ -, got {sample.key!r}")
    record = check_record(sample.record, f"sample {sample.key!r}")
    if record["key"] != sample.key:
        raise ShardError(f"sample {sample.key!r}: its record says key {record['key']!r}: they must agree")
    return {"__key__": sample.key, "json": canonical_json(record), "png": _png(sample)}


def stage_shard(
    directory: str | Path,
    name: str,
    samples: Iterable[Sample],
    plan_digest: str,
    model_digest: str,
    environment: Mapping[str, str | int] | None = None,
) -> Staged:
    """Write `samples` as shard `name` (``*.tar``) under partial names and fsync; nothing is committed yet.

    On any failure both partial files are removed. A full disk is a :class:`StorageError` of one line (``full``).
    """
    import webdataset  # the one thing that needs it; heavy

    if not TAR_NAME.fullmatch(name):
        raise UsageError(f"expected a shard name like cf-train-000000.tar, got {name!r}")
    directory, index_name = Path(directory), name.removesuffix(".tar") + ".index.jsonl"
    tar, index = directory / partial_name(name), directory / partial_name(index_name)
    rows: list[IndexRow] = []
    shape_of_first: Any = None
    with explained(directory, name), removed_on_failure(tar, index):
        with tar.open("wb") as handle:
            ledger = _Ledger(handle)
            try:
                writer = webdataset.TarWriter(ledger, "cfaug", "cfaug", 0o444, encoder=False, mtime=0)
                for sample in samples:
                    fields = encode_sample(sample)
                    shape_of_first = _same_fields(sample, shape_of_first, name)
                    rows.append(_index_row(sample, fields, writer.tarstream.offset))
                    writer.write(fields)
                writer.close()
                handle.flush()
                os.fsync(handle.fileno())
            except BaseException:
                ledger.abandoned = True  # tarfile flushes when it is collected; the file is gone by then
                raise
        if not rows or len({row.key for row in rows}) != len(rows):
            raise ShardError(f"{name}: expected at least one sample and no key twice, got {len(rows)} samples")
        content = b"".join(row.line() for row in rows)
        with index.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
    row = ManifestRow(
        name=name, count=len(rows), bytes=ledger.size, sha256=ledger.sha256.hexdigest(),
        index=index_name, index_bytes=len(content), index_sha256=hashlib.sha256(content).hexdigest(),
        plan=plan_digest, model=model_digest, environment=dict(environment or {}),
    )  # fmt: skip
    return Staged(row, tar, index)


class _Ledger:
    """A write-only handle that counts and hashes what passes (the tar never has to be read again)."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.handle, self.size, self.sha256, self.abandoned = handle, 0, hashlib.sha256(), False

    def write(self, data: bytes) -> int:
        if not self.abandoned:
            self.handle.write(data)
            self.sha256.update(data)
            self.size += len(data)
        return len(data)


def _index_row(sample: Sample, fields: Mapping[str, Any], offset: int) -> IndexRow:
    """The index row of the sample whose first header starts at `offset`; each member is a header and whole blocks."""
    members = {}
    for name in ("json", "png"):  # the order in which TarWriter writes: sorted
        data = fields[name]
        members[name] = Member(offset + BLOCK, len(data), hashlib.sha256(data).hexdigest())
        offset += BLOCK + -(-len(data) // BLOCK) * BLOCK
    record = sample.record
    return IndexRow(
        sample.key, record["source_key"], record["source_digest"], record["split"], not record["do"], **members
    )


def _same_fields(sample: Sample, first: Any, name: str) -> Any:
    """Names and types of attributes must not vary in a shard: readers infer them from the first few samples."""
    shape: dict[str, type | None] = {}
    for field in ("attributes", "factual", "quality"):
        for attribute, value in sample.record[field].items():
            shape[f"{field}.{attribute}"] = None if value is None else type(value)
    if first is None:
        return shape
    same = shape.keys() == first.keys()
    same = same and all(None in (shape[k], first[k]) or shape[k] is first[k] for k in shape)
    if not same:
        raise ShardError(
            f"{name}, sample {sample.key!r}: expected the same attributes and types as in the samples before"
        )
    return {k: first[k] or shape[k] for k in shape}


def _png(sample: Sample) -> bytes:
    image = sample.image
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        came = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ShardError(f"sample {sample.key!r}: expected a uint8 image (height, width, 1 or 3), got {came}")
    stream = io.BytesIO()
    pixels = np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image)
    Image.fromarray(pixels).save(stream, "PNG", compress_level=6, optimize=False)
    return stream.getvalue()


def partial_name(name: str) -> str:
    """A name that no other process on any host uses, and that nobody reads."""
    return f"{name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}{PARTIAL}"


@contextmanager
def removed_on_failure(*paths: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise
