"""An object store, or any other place that fsspec reaches, as a flat place of named blobs; see :mod:`cfaug.offline.storage`."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from cfaug.data.files import is_running
from cfaug.errors import UsageError, one_line
from cfaug.offline.os_errors import explained

LARGEST = 5 * 2**30  # bytes that one put to S3 can hold
ATTEMPTS = 6  # at one request, with exponential backoff: a store may answer 503 for about half a minute


@dataclass(frozen=True)
class FsspecStorage:
    """A place that fsspec reaches (``s3://bucket/run``, ``memory://run``, ...); the methods are those of LocalStorage.

    Every error of its packages becomes an OSError (:func:`_as_os_error`). Credentials, endpoint and region come from the
    environment and its configuration files (``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE``, ``AWS_ENDPOINT_URL``, ...), and the
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
            line = 'pip install "cfaug[s3]"' if self.url.startswith("s3") else str(error)
            raise UsageError(f"cannot reach {self.url}, its package is not installed; {line}") from None
        except ValueError as error:
            raise UsageError(
                f"cannot reach {self.url}: {error}; write a directory, s3://BUCKET/PATH or memory://PATH"
            ) from None
        if self.url.startswith("s3"):
            # s3fs repeats what botocore has given up on, which would make five times five attempts of up to a minute. But
            # only s3fs repeats a request whose answer breaks off in the middle. The instance is ours alone (:func:`_options`).
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
        """Write `name` in one request, so it is never half there, and not even SIGKILL leaves parts of an upload behind."""
        self._pipe(name, content)

    def create(self, name: str, content: bytes) -> None:
        """Like :meth:`write`, but FileExistsError where `name` exists already.

        Of many writers at the same instant only one creates it (``If-None-Match: *``). A store that refuses the condition
        (501) is asked first instead, which does not decide between two writers of one instant.
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
                    f"{name}: expected less than 5 GiB for one upload to {self.url}, got {len(content)} bytes; "
                    "set generate.samples_per_shard lower"
                )
            options["chunksize"] = LARGEST  # type: ignore[assignment]  # below it s3fs makes a single put
        with _as_os_error():
            files.pipe_file(path, content, **options)

    def adopt(self, path: Path, name: str, replace: bool = False) -> None:
        content = path.read_bytes()
        self.write(name, content) if replace else self.create(name, content)

    def sync(self) -> None:
        """Nothing needs to be done: a put that was answered is durable."""

    def remove(self, *names: str) -> None:
        if not names:
            return
        files, root = self._at("")
        paths = [f"{root.rstrip('/')}/{name}" for name in names]
        with _as_os_error():
            if self.url.startswith("s3"):
                files.rm(paths)  # a thousand names per request; absent names are fine
            else:
                for path in paths:
                    with suppress(FileNotFoundError):
                        files.rm_file(path)

    def sweep(self) -> None:
        """Remove what killed processes of this host left in their :meth:`workspace`, which no other host can see."""
        with suppress(OSError):  # a directory that we may not list
            for path in Path(tempfile.gettempdir()).glob(f"{_ours()}*"):
                number = path.name.removeprefix(_ours()).partition("-")[0]
                if number.isdecimal() and not is_running(int(number)):
                    shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        self.sweep()  # workers may run on different hosts than the coordinator
        with explained(tempfile.gettempdir(), "a temporary directory"):
            place = tempfile.TemporaryDirectory(prefix=f"{_ours()}{os.getpid()}-", ignore_cleanup_errors=True)
        with place as path:
            yield Path(path)

    def within(self, folder: str) -> FsspecStorage:
        return FsspecStorage(f"{self.url.rstrip('/')}/{folder}")


def _ours() -> str:
    return f"cfaug-{socket.gethostname()}-"


def _options(url: str) -> dict[str, Any]:
    """The options of a new file system; the user's own fsspec configuration takes precedence."""
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
    # fsspec gives one instance to all callers with the same options; with our name in them it is ours alone
    config["user_agent_extra"] = f"{config.get('user_agent_extra', '')} cfaug".strip()
    return {"config_kwargs": config, **({} if "use_listings_cache" in theirs else {"use_listings_cache": False})}


# errors that s3fs does not translate, by the errno that they mean; the first row that fits counts
_MEANING = (
    (errno.EACCES, {"botocore.NoCredentialsError", "botocore.PartialCredentialsError", "botocore.ProfileNotFound"}),
    (errno.EIO, {"botocore.ConnectionError", "botocore.HTTPClientError", "botocore.ResponseParserError", "aiohttp.ClientError"}),
    (errno.EINVAL, {"botocore.BotoCoreError", "botocore.ClientError"}),
)  # fmt: skip


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Turn what fsspec, s3fs, botocore and aiohttp raise into an OSError of the right kind; an OSError passes unchanged."""
    try:
        yield
    except OSError as error:
        response = getattr(error.__cause__, "response", None)
        if isinstance(response, dict) and response.get("Error", {}).get("Code") in ("PreconditionFailed", "412"):
            raise FileExistsError(errno.EEXIST, str(error)) from None
        raise
    except Exception as error:
        kinds = {f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
        number = next((number for number, names in _MEANING if names & kinds), None)
        if number is None:
            raise
        cure = "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" if number == errno.EACCES else ""
        raise OSError(number, f"{one_line(error)}{cure}") from None
