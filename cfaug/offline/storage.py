"""Where shards and plans live: a flat place of named blobs, a local directory or anything that fsspec reaches.

    storage = open_storage("OUT/shards")        storage = open_storage("s3://bucket/run/shards")
    storage.read("manifest.jsonl"), storage.read_range("cf-train-000000.tar", offset, size)

A blob is written whole or not at all. A name is relative and has at most one ``/``, between a folder and a name. Both classes
raise an :class:`OSError` for everything that goes wrong (FileNotFoundError where nothing is there), so callers explain one
kind of error. The order of writes and the rules among several writers are in :mod:`cfaug.offline.commit`.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TypeAlias

from cfaug.data.files import PARTIAL, expand, is_running, partial_name, replace_file, sync_directory
from cfaug.errors import UsageError
from cfaug.offline.object_storage import FsspecStorage

STALE = (
    24 * 3600.0
)  # seconds after which the writer of a file that is half done is taken for dead, on whichever host it ran
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)  # what file systems without hard links answer


@dataclass(frozen=True)
class LocalStorage:
    """A directory of this machine, or of a file system mounted on it. Two are equal when they are the same directory."""

    path: Path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalStorage) and os.path.realpath(self.path) == os.path.realpath(other.path)

    def __hash__(self) -> int:
        return hash(os.path.realpath(self.path))

    @property
    def url(self) -> str:
        return str(self.path)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`; fewer where the blob ends before."""
        with (self.path / name).open("rb", buffering=0) as handle:
            handle.seek(offset)
            return handle.read(size) or b""

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """Name -> content, in the order of `names`."""
        return {name: self.read(name) for name in names}

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Name -> bytes of every blob whose name starts with `prefix`, in one listing; an absent place is empty."""
        below = prefix.rpartition("/")[0]
        start = f"{below}/" if below else ""
        try:
            with os.scandir(self.path / below) as entries:  # tens of thousands of shards: half the time of pathlib
                files = [(start + entry.name, entry) for entry in entries if entry.is_file()]
                return {name: entry.stat().st_size for name, entry in files if name.startswith(prefix)}
        except FileNotFoundError:
            return {}

    @contextmanager
    def opened(self, name: str) -> Iterator[BufferedReader]:
        """A binary stream of `name`, from its beginning."""
        with (self.path / name).open("rb") as handle:
            yield handle

    def write(self, name: str, content: bytes) -> None:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path / name, content)

    def create(self, name: str, content: bytes) -> None:
        """Like :meth:`write`, but FileExistsError where `name` exists. Of several writers at the same instant one creates it."""
        partial = self.path / partial_name(name)
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
            self.adopt(partial, name)
        finally:
            partial.unlink(missing_ok=True)

    def adopt(self, path: Path, name: str, replace: bool = False) -> None:
        """Make the synced file `path` of :meth:`workspace` the blob `name`; FileExistsError where that exists, unless `replace`."""
        target = self.path / name
        if replace:
            return os.replace(path, target)
        try:
            os.link(path, target)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            if target.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name) from None
            os.replace(path, target)

    def sync(self) -> None:
        """Make the names that were created or adopted here survive a power cut."""
        sync_directory(self.path)

    def remove(self, *names: str) -> None:
        """Remove `names`, and a folder that becomes empty. Absent names are fine."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)
        for folder in {name.partition("/")[0] for name in names if "/" in name}:
            with suppress(OSError):
                (self.path / folder).rmdir()

    def sweep(self) -> None:
        """Remove what killed writers left half done: that of this host at once, that of other hosts when it is a day old."""
        for path in [*self.path.glob(f"*{PARTIAL}"), *self.path.glob(f"*/*{PARTIAL}")]:
            writer, _, number = path.name.removesuffix(PARTIAL).rpartition(".")[0].rpartition(".")
            ours = writer.endswith(f".{socket.gethostname()}") and number.isdecimal()
            with suppress(FileNotFoundError):  # a different process removes it at the same time
                if (ours and not is_running(int(number))) or time.time() - path.stat().st_mtime > STALE:
                    path.unlink()

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A directory of this machine to write files in before they are adopted: the place itself, so adopting copies nothing."""
        self.path.mkdir(parents=True, exist_ok=True)
        yield self.path

    def within(self, folder: str) -> LocalStorage:
        """The place `folder` below this one."""
        return LocalStorage(self.path / folder)


Storage: TypeAlias = LocalStorage | FsspecStorage


def open_storage(place: str | Path) -> Storage:
    """The storage at a local path, or at a URL of any protocol that fsspec knows (``file://`` is local).

    :class:`UsageError` where the protocol is unknown or its package is missing (with the pip line).
    """
    text = str(place)
    if not text:
        raise UsageError("expected a directory or a URL, got an empty text; write OUT or s3://BUCKET/PATH")
    if re.match(r"[A-Za-z0-9+.-]{2,}:/?[^/]", text) and not Path(text.partition("/")[0]).exists():
        raise UsageError(f"expected a directory or a URL, got {text!r}; write two slashes, s3://BUCKET/PATH")
    if re.match(r"(s3|gs|gcs|abfs|az):///*$", text):
        raise UsageError(f"expected a bucket in the URL, got {text!r}; write s3://BUCKET/PATH")
    if "://" not in text or text.startswith("file://"):
        return LocalStorage(local_path(text.removeprefix("file://")))
    storage = FsspecStorage(text if text.endswith("://") else text.rstrip("/"))
    storage._at("")
    return storage


def local_path(place: str | Path) -> Path:
    """`place` as an absolute path without ``..``, because a worker may run in a different directory."""
    path = expand(place).absolute()
    return path.resolve() if ".." in path.parts else path
