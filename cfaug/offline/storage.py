"""Where shards and plans live: a flat place of named blobs, a local directory or anything that fsspec reaches.

    storage = open_storage("OUT/shards")        storage = open_storage("s3://bucket/run/shards")
    storage.read("manifest.jsonl"), storage.read_range("cf-train-000000.tar", offset, size)

A blob is written whole or not at all. A name is relative and has at most one ``/``, between a folder and a name. Whatever
goes wrong is an :class:`OSError` in both classes (FileNotFoundError where nothing is there), so callers explain one kind of
error. The order of writes and the rules among several writers are the business of :mod:`cfaug.offline.commit`.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeAlias

from cfaug.data.files import PARTIAL, expand, is_running, partial_name, replace_file, sync_directory
from cfaug.errors import UsageError, one_line
from cfaug.offline.os_errors import explained

LARGEST = 5 * 2**30  # bytes; what one put to S3 can hold
ATTEMPTS = 6  # at one request, with exponential backoff: a store may say 503 for about half a minute
STALE = (
    24 * 3600.0
)  # seconds after which a file that is half done is nobody's, even where its writer cannot be asked for
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
        """A binary stream that reads `name` from its beginning."""
        with (self.path / name).open("rb") as handle:
            yield handle

    def write(self, name: str, content: bytes) -> None:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path / name, content)

    def create(self, name: str, content: bytes) -> None:
        """Like :meth:`write`, but FileExistsError where `name` exists; of several at the same instant one creates it."""
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
        """The synced file `path` of :meth:`workspace` becomes `name`; FileExistsError where that exists, unless `replace`."""
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
        """The names that were created or adopted here survive a power cut from now on."""
        sync_directory(self.path)

    def remove(self, *names: str) -> None:
        """Remove `names`, and a folder that becomes empty; what is absent is fine."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)
        for folder in {name.partition("/")[0] for name in names if "/" in name}:
            with suppress(OSError):
                (self.path / folder).rmdir()

    def sweep(self) -> None:
        """Remove what killed writers left half done: of this host at once, of other hosts when it is a day old."""
        for path in [*self.path.glob(f"*{PARTIAL}"), *self.path.glob(f"*/*{PARTIAL}")]:
            writer, _, number = path.name.removesuffix(PARTIAL).rpartition(".")[0].rpartition(".")
            ours = writer.endswith(f".{socket.gethostname()}") and number.isdecimal()
            with suppress(FileNotFoundError):  # somebody else sweeps
                if (ours and not is_running(int(number))) or time.time() - path.stat().st_mtime > STALE:
                    path.unlink()

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A directory of this machine for files on their way here: the place itself, where adopting copies nothing."""
        self.path.mkdir(parents=True, exist_ok=True)
        yield self.path

    def within(self, folder: str) -> LocalStorage:
        """The place `folder` below this one."""
        return LocalStorage(self.path / folder)


@dataclass(frozen=True)
class FsspecStorage:
    """A place that fsspec reaches (``s3://bucket/run``, ``memory://run``, ...); the methods are those of :class:`LocalStorage`.

    Whatever its packages raise is an OSError here (:func:`_as_os_error`). Credentials, endpoint and region come from the
    environment and its configuration files (``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE``, ``AWS_ENDPOINT_URL``, ...), the
    number of attempts at a request from ``AWS_MAX_ATTEMPTS``.
    """

    url: str

    def _at(self, name: str) -> tuple[Any, str]:
        import fsspec

        try:
            files, path = fsspec.core.url_to_fs(
                f"{self.url.rstrip('/')}/{name}" if name else self.url, **_options(self.url)
            )
        except ImportError as error:
            extra = "s3" if self.url.startswith("s3") else None
            line = f'pip install "cfaug[{extra}]"' if extra else str(error)
            raise UsageError(f"cannot reach {self.url}: its package is not installed; {line}") from None
        except ValueError as error:
            raise UsageError(
                f"cannot reach {self.url}: {error}; write a directory, s3://BUCKET/PATH or memory://PATH"
            ) from None
        if self.url.startswith("s3"):
            # s3fs repeats what botocore has given up on: five times five attempts of a minute each is no answer. But
            # only s3fs repeats an answer that breaks off in the middle. The instance is ours alone (:func:`_options`).
            files.retries = 2
        return files, str(path)

    def read(self, name: str) -> bytes:
        files, path = self._at(name)
        with _as_os_error():
            content: bytes = files.cat_file(path)
        return content

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        files, path = self._at(name)
        with _as_os_error():
            content: bytes = files.cat_file(path, start=offset, end=offset + size) if size else b""
        return content

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        if not names:
            return {}
        files, root = self._at("")
        paths = [f"{root.rstrip('/')}/{name}" for name in names]
        with _as_os_error():
            found = files.cat(paths)  # concurrent where the file system is
        return {name: found[path] for name, path in zip(names, paths)}

    def sizes(self, prefix: str = "") -> dict[str, int]:
        files, folder = self._at(prefix.rpartition("/")[0])
        root = self._at("")[1].rstrip("/") + "/"
        with _as_os_error():
            files.invalidate_cache()
            try:
                found = files.find(folder, maxdepth=1, detail=True)
            except FileNotFoundError:
                return {}
        sizes = {path[len(root) :] if path.startswith(root) else path: info["size"] for path, info in found.items()}
        return {name: size for name, size in sizes.items() if name.startswith(prefix)}

    @contextmanager
    def opened(self, name: str) -> Iterator[BufferedReader]:
        files, path = self._at(name)
        with _as_os_error(), files.open(path, "rb") as handle:
            yield handle

    def write(self, name: str, content: bytes) -> None:
        """One request, so `name` never is half there and no upload in parts is ever left behind, not even by SIGKILL."""
        self._pipe(name, content)

    def create(self, name: str, content: bytes) -> None:
        """Like :meth:`write`, but FileExistsError where `name` exists already.

        At the same instant only one of many creates it (``If-None-Match: *``); a store that refuses the condition
        (501) is asked first instead, which is not the same in the same instant.
        """
        try:
            self._pipe(name, content, mode="create")
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            files, path = self._at(name)
            with _as_os_error():
                if files.exists(path):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name) from None
            self._pipe(name, content)

    def _pipe(self, name: str, content: bytes, **options: str) -> None:
        files, path = self._at(name)
        if self.url.startswith("s3"):
            if len(content) >= LARGEST:
                raise UsageError(
                    f"{name}: expected less than 5 GiB for one upload to {self.url}, got {len(content)} bytes: "
                    "set generate.samples_per_shard lower"
                )
            options["chunksize"] = LARGEST  # type: ignore[assignment]  # below it s3fs makes a single put
        with _as_os_error():
            files.pipe_file(path, content, **options)

    def adopt(self, path: Path, name: str, replace: bool = False) -> None:
        content = path.read_bytes()
        self.write(name, content) if replace else self.create(name, content)

    def sync(self) -> None:
        """Nothing to do: a put that was answered is durable."""

    def remove(self, *names: str) -> None:
        if not names:
            return
        files, root = self._at("")
        paths = [f"{root.rstrip('/')}/{name}" for name in names]
        with _as_os_error():
            if self.url.startswith("s3"):
                files.rm(paths)  # a thousand in a request; what is absent is fine
            else:
                for path in paths:
                    with suppress(FileNotFoundError):
                        files.rm_file(path)

    def sweep(self) -> None:
        """Remove what killed processes of this host had in their :meth:`workspace`: nobody else knows of it."""
        with suppress(OSError):  # a directory that is not ours to list
            for path in Path(tempfile.gettempdir()).glob(f"{_ours()}*"):
                number = path.name.removeprefix(_ours()).partition("-")[0]
                if number.isdecimal() and not is_running(int(number)):
                    shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        self.sweep()  # workers may be on other hosts than the coordinator
        with explained(tempfile.gettempdir(), "a temporary directory"):
            place = tempfile.TemporaryDirectory(prefix=f"{_ours()}{os.getpid()}-", ignore_cleanup_errors=True)
        with place as path:
            yield Path(path)

    def within(self, folder: str) -> FsspecStorage:
        return FsspecStorage(f"{self.url.rstrip('/')}/{folder}")


Storage: TypeAlias = LocalStorage | FsspecStorage


def _ours() -> str:
    return f"cfaug-{socket.gethostname()}-"


def _options(url: str) -> dict[str, Any]:
    """How we want a file system to be made, where the user's fsspec configuration does not say otherwise."""
    if not url.startswith("s3"):
        return {}
    from fsspec.config import conf

    theirs = conf.get("s3", {})
    # 15 s, the default of s3fs, is short for a store that is slow under a thousand writers
    config: dict[str, Any] = {"connect_timeout": 10, "read_timeout": 30}
    if "AWS_RETRY_MODE" not in os.environ:  # exponential backoff with jitter, within a budget; all of 500, 503, resets
        config["retries"] = {"mode": "standard"}
        if "AWS_MAX_ATTEMPTS" not in os.environ:
            config["retries"]["total_max_attempts"] = ATTEMPTS
    config.update(theirs.get("config_kwargs", {}))
    # fsspec hands one instance to everyone that asks with the same options; nobody else asks with our name in them
    config["user_agent_extra"] = f"{config.get('user_agent_extra', '')} cfaug".strip()
    return {"config_kwargs": config, **({} if "use_listings_cache" in theirs else {"use_listings_cache": False})}


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Turn what fsspec, s3fs, botocore and aiohttp raise into an OSError of the right kind; an OSError passes."""
    try:
        yield
    except OSError as error:
        code = _code(error.__cause__)
        if code in ("PreconditionFailed", "412") and not isinstance(error, FileExistsError):
            raise FileExistsError(errno.EEXIST, str(error)) from None
        raise
    except Exception as error:
        kinds = {f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
        if not kinds & {"botocore.BotoCoreError", "botocore.ClientError", "aiohttp.ClientError"}:
            raise
        said = one_line(error)
        if kinds & {"botocore.NoCredentialsError", "botocore.PartialCredentialsError", "botocore.ProfileNotFound"}:
            raise PermissionError(errno.EACCES, f"{said}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from None
        network = kinds & {
            "botocore.ConnectionError", "botocore.HTTPClientError", "botocore.ResponseParserError", "aiohttp.ClientError"
        }  # fmt: skip
        raise OSError(errno.EIO if network else errno.EINVAL, said) from None


def _code(error: BaseException | None) -> str:
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def open_storage(place: str | Path) -> Storage:
    """The storage at a local path, or at a URL of any protocol that fsspec knows (``file://`` is local).

    :class:`UsageError` where the protocol is unknown or its package is missing (with the pip line).
    """
    text = str(place)
    if not text:
        raise UsageError("expected a directory or a URL, got an empty text: write OUT or s3://BUCKET/PATH")
    if re.match(r"[A-Za-z0-9+.-]{2,}:/?[^/]", text) and not Path(text.partition("/")[0]).exists():
        raise UsageError(f"expected a directory or a URL, got {text!r}: a URL has two slashes, s3://BUCKET/PATH")
    if re.match(r"(s3|gs|gcs|abfs|az):///*$", text):
        raise UsageError(f"expected a bucket in {text!r}: write s3://BUCKET/PATH")
    if "://" not in text or text.startswith("file://"):
        return LocalStorage(local_path(text.removeprefix("file://")))
    storage = FsspecStorage(text if text.endswith("://") else text.rstrip("/"))
    storage._at("")
    return storage


def local_path(place: str | Path) -> Path:
    """`place` as an absolute path without ``..``: a worker may run in a different directory."""
    path = expand(place).absolute()
    return path.resolve() if ".." in path.parts else path
