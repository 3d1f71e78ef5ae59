"""index.bin: the columns of all samples in a file, mapped rather than read. It is derived: removing it loses nothing.

    0     8   cfaugidx          16   8   N, the samples                    56  16   xxh3-128 of all the rest, this as zeros
    8     4   1, the layout     24  32   fingerprint of the shards         72  56   zeros
    12    4   which hash `pixel_hashes` are (place in LOOKUPS)             128      the columns of SECTIONS one after another

Numbers are little-endian, digests as they are. The same shards give the same bytes. It is used only with the fingerprint of the
manifest beside it, and after its content was compared with its digest, which is read through a buffer: no page of the map
is touched by that, and processes share those that lookups touch. Whatever else is found is built anew from the indices.
Written whole under a partial name, then renamed; nobody may change a file in place that others have mapped.

A finished run has it beside its shards. Elsewhere (an object store, shards that were copied without it) up to `IN_MEMORY`
samples are held in memory, and more are written to ``$XDG_CACHE_HOME/cfaug`` (``~/.cache/cfaug``), by fingerprint: once,
however many processes of one machine open them together, for the others wait at a lock beside the file (``flock``; where
there is none each builds for itself, which is as right). Nothing removes files of shards that are gone: 60 bytes a sample.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import xxhash

from cfaug.data.files import partial_name, sync_directory
from cfaug.errors import one_line
from cfaug.offline.committed import read_index
from cfaug.offline.format import COLUMNS, IndexRow, ManifestRow
from cfaug.offline.reading.columns import BYTES, LOOKUPS, SECTIONS, Columns, build, fingerprint_of
from cfaug.offline.storage import LocalStorage, Storage
from cfaug.offline.write_shard import removed

log = logging.getLogger(__name__)

MAGIC, LAYOUT, HEADER = b"cfaugidx", 1, 128
IN_MEMORY = 50_000  # samples: 3 MB, and a second or so to build
BUFFER = 1 << 20
_HEAD = struct.Struct("<8sIIQ32s16s56x")


class Unusable(Exception):
    """Why a file of columns is not used, in a few words."""


@dataclass(frozen=True)
class Mapped(Columns):
    """Columns in a file; `digest` is what its header says and its content has."""

    path: Path
    fingerprint: str
    digest: bytes


def columns_of(
    storage: Storage, manifest: Sequence[ManifestRow], sizes: Mapping[str, int], where: Callable[[int], str]
) -> Columns:
    """The columns of the shards in `manifest`: mapped from a file that has them, else built.

    Args:
        sizes: a listing of `storage`.
        where: how an error names a sample.

    Raises:
        ShardError: of the indices, as :func:`~cfaug.offline.reading.columns.build` and `read_index` say.
    """
    fingerprint, count = fingerprint_of(manifest), sum(row.count for row in manifest)
    if isinstance(storage, LocalStorage) and COLUMNS in sizes:
        beside = storage.path / COLUMNS
        try:
            return map_columns(beside, fingerprint)
        except Unusable as reason:
            log.warning("%s is not used, %s: the columns are built from the indices", beside, reason)
    if count <= IN_MEMORY:
        return build(manifest, _reading(storage, sizes), where)
    cached = _cache() / f"index-{fingerprint}.bin"
    try:
        return map_columns(cached, fingerprint)
    except Unusable:
        pass  # looked at again, and told of, once no other process is writing it
    with _alone(cached.with_suffix(".lock")):
        if cached.exists():
            try:
                return map_columns(cached, fingerprint)
            except Unusable as reason:
                log.warning("%s is not used, %s: the columns are built from the indices", cached, reason)
        columns = build(manifest, _reading(storage, sizes), where)
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            write_columns(cached, columns, fingerprint)
            return map_columns(cached, fingerprint)
        except (OSError, Unusable) as error:
            log.warning("%s could not be kept (%s): %d MB stay in memory", cached, one_line(error), count * BYTES >> 20)
    return columns


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process or thread of this machine at a time; all of them where nothing can be locked."""
    held = ExitStack()
    with suppress(OSError):
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = held.enter_context(lock.open("wb"))
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process is building %s: waiting for it", lock.with_suffix(".bin"))
            fcntl.flock(handle, fcntl.LOCK_EX)
        # not by closing alone: a process forked meanwhile has the same open file, and would keep the lock while it lives
        held.callback(fcntl.flock, handle, fcntl.LOCK_UN)
    with held:
        yield


def publish_columns(storage: LocalStorage, manifest: Sequence[ManifestRow]) -> None:
    """Write index.bin beside the shards of a finished run, unless it is there; a disk that cannot take it is told of.

    :class:`ShardError` for what a reader of these shards would refuse.
    """
    path, fingerprint = storage.path / COLUMNS, fingerprint_of(manifest)
    try:
        map_columns(path, fingerprint)
        return
    except Unusable:
        pass
    sizes = storage.sizes()
    columns = build(manifest, _reading(storage, sizes), lambda i: f"{storage.url}, sample number {i}")
    try:
        write_columns(path, columns, fingerprint)
    except OSError as error:
        log.warning("%s could not be written (%s): readers will build their own", path, one_line(error))


def write_columns(path: Path, columns: Columns, fingerprint: str) -> None:
    """Write the file whole or not at all; OSError where it cannot be."""
    arrays = [np.ascontiguousarray(getattr(columns, name), kind).view(np.uint8) for name, kind in SECTIONS]
    digest = xxhash.xxh3_128(_head(columns.lookup, len(columns), fingerprint, bytes(16)))
    for array in arrays:
        digest.update(array.data)
    partial = path.with_name(partial_name(path.name))
    with removed(partial):
        with partial.open("wb") as handle:
            handle.write(_head(columns.lookup, len(columns), fingerprint, digest.digest()))
            for array in arrays:
                handle.write(array.data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(partial, path)
    sync_directory(path.parent)


def map_columns(path: Path, fingerprint: str, digest: bytes | None = None) -> Mapped:
    """Map the file; with the `digest` that it was found to have before, without comparing its content again.

    :class:`Unusable` where it cannot be read, is of other shards or damaged.
    """
    try:
        with path.open("rb", buffering=0) as handle:
            head = handle.read(HEADER)
            if len(head) < HEADER:
                raise Unusable("its header is cut off")
            magic, layout, lookup, count, of, stated = _HEAD.unpack(head)
            if (magic, layout) != (MAGIC, LAYOUT) or lookup >= len(LOOKUPS):
                raise Unusable("its layout is another")
            if of.hex() != fingerprint:
                raise Unusable("it was made of other shards")
            if os.fstat(handle.fileno()).st_size != HEADER + count * BYTES or not count:
                raise Unusable("its size is not what its header says")
            if digest is None:
                _check(handle, _head(lookup, count, fingerprint, bytes(16)), count, stated)
            elif digest != stated:
                raise Unusable("it has changed")
            held = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise Unusable(one_line(error.strerror or error)) from None
    arrays, at = {}, HEADER
    for name, kind in SECTIONS:
        arrays[name] = np.frombuffer(held, kind, count, at)
        at += arrays[name].nbytes
    return Mapped(lookup, **arrays, path=path, fingerprint=fingerprint, digest=stated)


def _reading(storage: Storage, sizes: Mapping[str, int]) -> Callable[[ManifestRow], list[IndexRow]]:
    return lambda row: read_index(storage, row, sizes)


def _head(lookup: int, count: int, fingerprint: str, digest: bytes) -> bytes:
    return _HEAD.pack(MAGIC, LAYOUT, lookup, count, bytes.fromhex(fingerprint), digest)


def _check(handle: IO[bytes], head: bytes, count: int, stated: bytes) -> None:
    """:class:`Unusable` unless what follows the header has its digest, and no row is one that is not there."""
    digest, buffer = xxhash.xxh3_128(head), bytearray(BUFFER)
    whole = memoryview(buffer)
    sound = True
    for name, kind in SECTIONS:
        left = count * np.dtype(kind).itemsize
        while left:
            got = handle.readinto(whole[: min(left, BUFFER)])  # type: ignore[attr-defined]
            if not got:
                raise Unusable("it is cut off")
            digest.update(whole[:got])
            if name.endswith("_rows"):
                sound = sound and int(np.frombuffer(buffer, kind, got // 4).max(initial=0)) < count
            left -= got
    if digest.digest() != stated or not sound:
        raise Unusable("its content does not have its digest")


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cfaug"
