"""Where shards and plans live: a flat place of named blobs, a local directory or anything that fsspec reaches.

    storage = open_storage("OUT/shards")        storage = open_storage("s3://bucket/run/shards")
    storage.read("manifest.jsonl"), storage.read_range("cf-train-000000.tar", offset, size)

A blob is written whole or not at all. Names are relative, with ``/`` at most between a folder and a name. What goes wrong
is an :class:`OSError` whatever the place is (FileNotFoundError where nothing is there), so callers explain one kind of error.
It promises no order and no exclusion among writers: that is the destination's part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from cfaug.data.files import replace_file
from cfaug.errors import UsageError


class Storage(Protocol):
    """A place of named blobs. Picklable; `url` is how messages name it."""

    @property
    def url(self) -> str: ...

    def read(self, name: str) -> bytes: ...

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`; fewer where the blob ends before."""
        ...

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Name -> bytes of every blob whose name starts with `prefix`, in one listing; an absent place is empty."""
        ...

    def opened(self, name: str) -> Any:
        """Context manager: a binary stream to read `name` from its beginning."""
        ...

    def write(self, name: str, content: bytes) -> None: ...

    def put(self, source: Path, name: str) -> None:
        """Store the local file `source` as `name`, whole or not at all; `source` stays."""
        ...

    def remove(self, name: str) -> None:
        """Remove `name`; nothing there is fine."""
        ...

    def within(self, folder: str) -> Storage:
        """The place `folder` below this one."""
        ...


@dataclass(frozen=True)
class LocalStorage:
    """A directory of this machine, or of a file system mounted on it."""

    path: Path

    @property
    def url(self) -> str:
        return str(self.path)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        with (self.path / name).open("rb", buffering=0) as handle:
            handle.seek(offset)
            return handle.read(size) or b""

    def sizes(self, prefix: str = "") -> dict[str, int]:
        folder = self.path / prefix.rpartition("/")[0]
        try:
            entries = [(entry.relative_to(self.path).as_posix(), entry) for entry in folder.iterdir()]
            return {
                name: entry.stat().st_size for name, entry in entries if name.startswith(prefix) and entry.is_file()
            }
        except FileNotFoundError:
            return {}

    @contextmanager
    def opened(self, name: str) -> Iterator[IO[bytes]]:
        with (self.path / name).open("rb") as handle:
            yield handle

    def write(self, name: str, content: bytes) -> None:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path / name, content)

    def put(self, source: Path, name: str) -> None:
        self.write(name, source.read_bytes())

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def within(self, folder: str) -> LocalStorage:
        return LocalStorage(self.path / folder)


@dataclass(frozen=True)
class FsspecStorage:
    """A place that fsspec reaches: ``s3://bucket/run``, ``memory://run``, ..."""

    url: str

    def _at(self, name: str) -> tuple[Any, str]:
        import fsspec

        try:
            files, path = fsspec.core.url_to_fs(f"{self.url.rstrip('/')}/{name}" if name else self.url)
        except ImportError as error:
            extra = "s3" if self.url.startswith("s3") else None
            line = f'pip install "cfaug[{extra}]"' if extra else str(error)
            raise UsageError(f"cannot reach {self.url}: its package is not installed; {line}") from None
        except ValueError as error:
            raise UsageError(
                f"cannot reach {self.url}: {error}; write a directory, s3://BUCKET/PATH or memory://PATH"
            ) from None
        return files, str(path)

    def read(self, name: str) -> bytes:
        files, path = self._at(name)
        content: bytes = files.cat_file(path)
        return content

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        files, path = self._at(name)
        content: bytes = files.cat_file(path, start=offset, end=offset + size) if size else b""
        return content

    def sizes(self, prefix: str = "") -> dict[str, int]:
        files, folder = self._at(prefix.rpartition("/")[0])
        root = self._at("")[1].rstrip("/") + "/"
        files.invalidate_cache()
        try:
            found = files.find(folder, maxdepth=1, detail=True)
        except FileNotFoundError:
            return {}
        sizes = {path[len(root) :] if path.startswith(root) else path: info["size"] for path, info in found.items()}
        return {name: size for name, size in sizes.items() if name.startswith(prefix)}

    @contextmanager
    def opened(self, name: str) -> Iterator[IO[bytes]]:
        files, path = self._at(name)
        with files.open(path, "rb") as handle:
            yield handle

    def write(self, name: str, content: bytes) -> None:
        files, path = self._at(name)
        files.pipe_file(path, content)

    def put(self, source: Path, name: str) -> None:
        self.write(name, source.read_bytes())

    def remove(self, name: str) -> None:
        files, path = self._at(name)
        with suppress(FileNotFoundError):
            files.rm_file(path)

    def within(self, folder: str) -> FsspecStorage:
        return FsspecStorage(f"{self.url.rstrip('/')}/{folder}")


def open_storage(place: str | Path) -> LocalStorage | FsspecStorage:
    """The storage at a local path, or at a URL of any protocol that fsspec knows (``file://`` is local).

    :class:`UsageError` where the protocol is unknown or its package is missing (with the pip line).
    """
    text = str(place)
    if "://" not in text:
        return LocalStorage(Path(place))
    if text.startswith("file://"):
        return LocalStorage(Path(text.removeprefix("file://")))
    storage = FsspecStorage(text)
    storage._at("")
    return storage
