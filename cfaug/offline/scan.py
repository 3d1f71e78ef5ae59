"""The strict walk through one tar, which `verify` also uses, and the scan of a shard without its manifest, in constant memory.

    for sample in scan("cf-train-000000.tar"):        a path, a URL or a binary stream
        sample.key, sample.image, sample.record

Only the name and the size are taken from a header. Its 512 bytes are built again from these two and must agree, so links,
devices, extended headers, compression and flipped bits are all refused in one way. Names and sizes are checked before a
payload is read, and nothing is extracted. Without a manifest there is no hash of a payload: only :class:`ShardReader` and
:func:`verify` see a flipped letter in a record.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from cfaug.errors import ShardError
from cfaug.offline.decoders import FIELDS, decode_image, parse_record
from cfaug.offline.format import BLOCK, IMAGE_FIELDS, KEY, MAX_SAMPLES, Sample, header, padded, tar_size
from cfaug.offline.os_errors import unreadable
from cfaug.offline.storage import open_storage

MEMBER = re.compile(rf"({KEY.pattern})\.([a-z]+)", re.ASCII)
TYPES = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a character device", b"4": "a block device", b"5": "a directory",
    b"6": "a fifo", b"S": "a sparse file", b"L": "a GNU long name", b"K": "a GNU long link", b"x": "a pax header",
    b"g": "a global pax header", b"X": "a Solaris pax header",
}  # fmt: skip


class Readable(Protocol):
    """What a walk needs of a stream: up to `size` bytes, none only at its end."""

    def read(self, size: int, /) -> bytes: ...


class Member(NamedTuple):
    """One member of a tar whose header is sound; its payload is `data`."""

    key: str
    field: str
    data: bytes


def scan(source: str | Path | Readable, name: str | None = None) -> Iterator[Sample]:
    """The samples of one shard, in the order of the tar, decoded.

    Args:
        source: a path, a URL of any protocol that fsspec knows, or a binary stream (read from where it stands, to its
            end; not closed).
        name: how errors name the shard; by default the last part of the path.

    Raises:
        ShardError: at the first thing that format 1 does not allow, naming the shard and the sample; also where the
            shard cannot be read. Samples that came before it are sound in form.
        StorageError: the place did not answer (``transient``).
        UsageError: a URL of an unknown protocol, or of one whose package is not installed.
    """
    shard = name or (str(source).rstrip("/").rpartition("/")[2] if isinstance(source, str | Path) else "the shard")
    try:
        with _opened(source) as stream:
            yield from samples_of(walk(stream, shard), shard)
    except OSError as error:
        raise unreadable(error, shard, "check the path") from None


def read_exactly(stream: Readable, size: int) -> bytes:
    """`size` bytes of `stream`, fewer only at its end: raw streams and sockets return less than was asked for."""
    data = stream.read(size) or b""
    if len(data) == size or not data:
        return data
    parts, have = [data], len(data)
    while have < size and (more := stream.read(size - have)):
        parts.append(more)
        have += len(more)
    return b"".join(parts)


def samples_of(members: Iterator[Member], shard: str) -> Iterator[Sample]:
    """The decoded samples of the members of a tar."""
    seen: set[str] = set()
    image_field = ""
    for first in members:
        where = f"{shard}, sample {first.key!r}"
        if first.key in seen:
            raise ShardError(f"{where}: the key occurs twice; generate this shard again")
        if len(seen) == MAX_SAMPLES:
            raise ShardError(f"{where}: expected at most {MAX_SAMPLES} samples in a shard; plan smaller shards")
        seen.add(first.key)
        second = next(members, None)
        found = (first.field, second.field if second and second.key == first.key else "")
        if found[0] != "json" or found[1] not in IMAGE_FIELDS or second is None:
            raise ShardError(
                f"{where}: expected {first.key}.json and then its image, got .{found[0]}, then "
                f"{'the end' if second is None else f'{second.key}.{second.field}'}; generate this shard again"
            )
        image_field = image_field or second.field
        if second.field != image_field:
            raise ShardError(f"{where}: expected {image_field} as in the samples before, got {second.field}")
        record = parse_record(first.data, where)
        if record["key"] != first.key:
            raise ShardError(f"{where}: its record says key {record['key']!r:.140}; generate this shard again")
        yield Sample(first.key, decode_image(second.data, where, second.field, vouched=False), record)
    if not seen:
        raise ShardError(f"{shard}: expected at least one sample, got none; generate this shard again")


def walk(stream: Readable, shard: str) -> Iterator[Member]:
    """The members, each read whole; ends only after the two zero blocks, the padding and the end of the stream."""
    at, last = 0, "at its beginning"
    while True:
        block = read_exactly(stream, BLOCK)
        if len(block) < BLOCK:
            raise ShardError(f"{shard}, {last}: it ends after {at + len(block)} bytes (truncated?); {_AGAIN}")
        if not any(block):
            break
        key, field, size = _header_fields(block, f"{shard}, {last}")
        where = f"{shard}, sample {key!r}"
        data = read_exactly(stream, padded(size))
        at += BLOCK + len(data)
        if len(data) < padded(size):
            raise ShardError(f"{where}: its {field} ends before {size} bytes and their padding (truncated?); {_AGAIN}")
        if any(data[size:]):
            raise ShardError(f"{where}: the padding after its {field} is not zero; {_AGAIN}")
        yield Member(key, field, data[:size])
        last = f"after sample {key!r}"
    rest = tar_size(at) - at - BLOCK
    end = read_exactly(stream, rest + 1)
    if len(end) != rest or any(end):
        got = "more" if len(end) > rest else "fewer" if len(end) < rest else "other bytes"
        raise ShardError(f"{shard}, {last}: expected {rest} more zero bytes and the end, got {got}; {_AGAIN}")


def _header_fields(block: bytes, where: str) -> tuple[str, str, int]:
    """Key, field and size of a header; :class:`ShardError` unless its 512 bytes are those that we write."""
    try:
        member = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    except (tarfile.HeaderError, ValueError):
        raise ShardError(f"{where}: expected the header of a member, got something else; {_AGAIN}") from None
    if member.type != tarfile.REGTYPE:
        kind = TYPES.get(member.type, f"type {member.type!r}")
        raise ShardError(f"{where}: expected a regular file, got {kind} {member.name[:120]!r}; {_AGAIN}")
    named = MEMBER.fullmatch(member.name)
    if named is None or named[2] not in FIELDS:
        raise ShardError(
            f"{where}: expected a member KEY.json, KEY.png or KEY.webp with a key of A-Z a-z 0-9 _ -, got "
            f"{member.name[:120]!r}; {_AGAIN}"
        )
    key, field = named.groups()
    if not 0 < member.size <= FIELDS[field]:
        raise ShardError(
            f"{where}: expected 1 to {FIELDS[field]} bytes in {member.name!r}, its header says {member.size}; {_AGAIN}"
        )
    if header(member.name, member.size) != block:
        raise ShardError(f"{where}: the header of {member.name!r} is not one of shard format 1; {_AGAIN}")
    return key, field, member.size


@contextmanager
def _opened(source: str | Path | Readable) -> Iterator[Readable]:
    if not isinstance(source, str | Path):
        yield source
        return
    place, _, name = str(source).rpartition("/")
    with open_storage(place or ("/" if str(source).startswith("/") else ".")).opened(name) as stream:
        yield stream


_AGAIN = "generate this shard again"
