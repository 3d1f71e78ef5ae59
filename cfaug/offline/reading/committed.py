"""The committed shards of a place one after another, in memory that does not grow with them: for looking through all of them.

:class:`cfaug.offline.read.ShardReader` is for random access and holds every index; this holds one at a time, and reads
each tar forwards through one open file. Every byte handed out has the sha256 that the index states.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from cfaug.errors import ShardError
from cfaug.offline.format import IndexRow, ManifestRow, Member, Record
from cfaug.offline.os_errors import unreadable
from cfaug.offline.reading.decoders import decode_image, parse_record
from cfaug.offline.reading.manifest import read_manifest
from cfaug.offline.reading.opening import check_size, open_shards, read_index, vouched
from cfaug.offline.storage import Storage


@dataclass(frozen=True)
class OpenSample:
    """One sample of an opened shard: `row` of its index, `where` as errors name it; read while its shard is open."""

    row: IndexRow
    where: str
    _handle: IO[bytes]

    def read(self, member: Member) -> bytes:
        """The payload of ``row.json`` or ``row.image``."""
        try:
            self._handle.seek(member.offset)
            data = self._handle.read(member.size)
        except OSError as error:  # where it is read, not where its shard was opened
            raise unreadable(error, self.where, "generate this shard again") from None
        return vouched(data, member, self.where)

    def record(self) -> Record:
        return parse_record(self.read(self.row.json), self.where)

    def image(self) -> npt.NDArray[np.uint8]:
        """uint8, height x width x channels (1 or 3)."""
        return decode_image(self.read(self.row.image), self.where, self.row.image_field)


class Committed:
    """What is committed at `place` (a run, its shards, or a URL): `storage` and `manifest`.

    :class:`ShardError` when nothing is.
    """

    def __init__(self, place: str | Path) -> None:
        self.storage: Storage
        self.storage, self._sizes = open_shards(place)
        self.manifest: list[ManifestRow] = read_manifest(self.storage)
        if not self.manifest:
            raise ShardError(f"expected committed shards in {self.storage.url}, found none: generate first")

    def samples(self, shard: ManifestRow) -> Iterator[OpenSample]:
        """The samples of one shard, in its order.

        Raises:
            ShardError: naming the shard, and the key of a damaged sample.
            StorageError: the place did not answer (``transient``).
        """
        check_size(shard.name, shard.bytes, self._sizes)
        index = read_index(self.storage, shard, self._sizes)
        try:
            with self.storage.opened(shard.name) as handle:
                for row in index:
                    yield OpenSample(row, f"{shard.name}, sample {row.key!r}", handle)
        except OSError as error:
            raise unreadable(error, shard.name, "generate this shard again") from None
