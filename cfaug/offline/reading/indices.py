"""The shards' index files, read when a row is asked for: the few that were used last are kept, as lines, not as objects."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, Generic, TypeVar, overload

from cfaug.errors import CfaugError
from cfaug.offline.committed import index_lines
from cfaug.offline.format import KEY, IndexRow, ManifestRow
from cfaug.offline.os_errors import unreadable
from cfaug.offline.reading.latest import Latest
from cfaug.offline.reading.plain import parse_row
from cfaug.offline.storage import Storage

KEPT = 1 << 26  # bytes of index files; at least one file is kept
_START = b'{"key":"'
T = TypeVar("T")


class Indices:
    """The index rows of all samples, by number; every file has the sha256 of the manifest."""

    def __init__(self, storage: Storage, manifest: Sequence[ManifestRow]) -> None:
        self.storage, self.manifest = storage, manifest
        self.starts = [0, *accumulate(row.count for row in manifest)]
        """Number of the first sample of each shard; the last entry is how many there are."""
        self._kept: Latest[int, list[bytes]] = Latest(
            KEPT, partial(_lines, storage, manifest), lambda shard: manifest[shard].index_bytes
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.storage, self.manifest)

    def shard_of(self, i: int) -> int:
        """Place in the manifest of the shard of sample `i`, 0 <= i < len."""
        return bisect_right(self.starts, i) - 1

    def row(self, i: int) -> IndexRow:
        """The index row of sample `i`, 0 <= i < len; ShardError, StorageError where its file cannot be read."""
        shard = self.shard_of(i)
        return parse_row(self._line(i, shard), f"{self.manifest[shard].name}, its index")

    def key(self, i: int) -> str:
        """The key of sample `i`: its line begins with it, as cfaug writes it."""
        line = self._line(i, self.shard_of(i))
        if line.startswith(_START):
            text = line[len(_START) : line.find(b'"', len(_START))].decode("ascii")
            if KEY.fullmatch(text):  # hence nothing that JSON would write otherwise
                return text
        return self.row(i).key

    def where(self, i: int) -> str:
        """How an error names sample `i`: shard and key, or its number where the index is gone too."""
        shard = self.shard_of(i)
        try:
            return f"{self.manifest[shard].name}, sample {self.key(i)!r}"
        except CfaugError:
            return f"{self.manifest[shard].name}, sample number {i - self.starts[shard]}"

    def _line(self, i: int, shard: int) -> bytes:
        return self._kept.get(shard)[i - self.starts[shard]]


def _lines(storage: Storage, manifest: Sequence[ManifestRow], number: int) -> list[bytes]:
    shard = manifest[number]
    try:
        content = storage.read_range(shard.index, 0, shard.index_bytes)
    except OSError as error:
        raise unreadable(error, f"{shard.name}, its index {shard.index}", "generate this shard again") from None
    return index_lines(content, shard)


class Lazy(Sequence[T], Generic[T]):
    """`length` things that are made when they are asked for; equal to a list of equal things."""

    def __init__(self, length: int, at: Callable[[int], T]) -> None:
        self._length, self._at = length, at

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, i: int) -> T: ...
    @overload
    def __getitem__(self, i: slice) -> list[T]: ...
    def __getitem__(self, i: int | slice) -> T | list[T]:
        if isinstance(i, slice):
            return [self._at(n) for n in range(*i.indices(self._length))]
        return self._at(place(i, self._length))

    def __iter__(self) -> Iterator[T]:
        return map(self._at, range(self._length))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Lazy | list):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


def place(i: int, length: int) -> int:
    """`i` counted from 0, where it may count from the end; IndexError outside."""
    if not -length <= i < length:
        raise IndexError(f"expected a number below {length}, got {i}")
    return i if i >= 0 else i + length
