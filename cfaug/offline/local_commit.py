"""Shards in a directory: many processes commit, each its own, and nothing exists before the manifest says so.

    stage     write <name>.<host>.<pid>.<random>.partial and its index, fsync both     shared flock on .staging.lock
    commit    read what others appended -> rename both -> fsync the directory
              -> append the manifest row, fsync                                        exclusive flock on .commit.lock

A crash leaves partial files, a shard nobody vouches for, or a torn last manifest line. Partial files are swept when nobody
is staging, the shard is replaced when it is made again, and a torn line is cut off by the next commit: only who holds
.commit.lock ever appends, so no line is being written then. Locks (``flock``) die with their process: a killed run never
locks anyone out. It does not promise exclusion on file systems without ``flock`` (it fails there, it does not pretend).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from cfaug.data.files import PARTIAL, sync_directory
from cfaug.errors import CfaugError, UsageError
from cfaug.offline.committed import (
    PUBLISHED,
    Identity,
    digests_of,
    identity_of,
    intact_rows,
    parse_rows,
    read_manifest,
    refuse_another_run,
    refuse_beside,
    refuse_missing,
    refuse_other_bytes,
)
from cfaug.offline.format import LOCK, MANIFEST, ManifestRow, Sample, planned
from cfaug.offline.os_errors import explained
from cfaug.offline.storage import LocalStorage, local_path
from cfaug.offline.write_shard import Staged, removed_on_failure, stage_shard

COMMITTING, STAGING = ".commit.lock", ".staging.lock"
PATIENCE = 5.0  # seconds; a rank may find the lock in the hands of another rank that is just tidying up
LAST = 80  # bytes of the last line read, by which a manifest that was replaced meanwhile is known: its own digest


def write_shard(
    directory: str | Path,
    name: str,
    samples: Iterable[Sample],
    plan_digest: str,
    model_digest: str,
    environment: Mapping[str, str | int] | None = None,
    image: str = "png",
) -> ManifestRow:
    """Stage and commit one shard; returns its manifest row. Claims the directory for as long as it lasts.

    `image`: png, png-stored or webp, as in :func:`~cfaug.offline.encode_sample`.
    """
    place = LocalDestination(directory)
    with place.session(), place.staging() as staging:
        return place.commit(stage_shard(staging, name, samples, plan_digest, model_digest, environment, image))


class LocalDestination:
    """A directory of shards as :class:`cfaug.offline.commit.Destination`."""

    one_process = False

    def __init__(self, directory: str | Path) -> None:
        self.directory = local_path(directory)
        self._log = _Log(self.directory / MANIFEST)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.directory,)  # a copy reads the manifest for itself

    @property
    def storage(self) -> LocalStorage:
        return LocalStorage(self.directory)

    @contextmanager
    def session(
        self, identity: Mapping[str, str | int] | None = None, shared: bool = False, overwrite: bool = False
    ) -> Iterator[None]:
        with self._claimed(shared) as (lock, alone):
            if not overwrite:
                self._log.look_ahead()
            with self._locked(COMMITTING):
                if overwrite:
                    self.clear()
                self._log.catch_up()
                if identity is not None and self._log.identity is not None:
                    refuse_another_run(str(self.directory), self._log.identity, identity)
            if shared and alone:
                self._share(lock)
            yield

    def committed(self) -> dict[str, ManifestRow]:
        return {row.name: row for row in read_manifest(self.storage)}

    def intact(self) -> dict[str, ManifestRow]:
        rows = self.committed()
        with explained(self.directory, "the list of shards", "read"):
            return intact_rows(rows, self.storage.sizes())

    @contextmanager
    def staging(self) -> Iterator[Path]:
        self._make()
        with self._locked(STAGING, fcntl.LOCK_SH):
            yield self.directory

    def commit(self, staged: Staged) -> ManifestRow:
        row = staged.row
        self._log.look_ahead()
        tar, index = self.directory / row.name, self.directory / row.index
        with (
            explained(self.directory, row.name),
            removed_on_failure(staged.tar, staged.index),
            self._locked(COMMITTING),
        ):
            self._log.catch_up()
            known = self._log.check(row)
            try:
                os.replace(staged.index, index)
                os.replace(staged.tar, tar)
                sync_directory(self.directory)
                if not known:
                    self._append(row.line())
            except BaseException:
                if not known:
                    self._log.cut()
                    tar.unlink(missing_ok=True)  # nobody vouches for it, and the disk may be full
                    index.unlink(missing_ok=True)
                raise
        return row

    def publish(
        self, names: Sequence[str], files: Mapping[str, bytes], rows: Mapping[str, ManifestRow] | None = None
    ) -> None:
        refuse_missing(str(self.directory), names, self.committed() if rows is None else rows)
        with self.staging():
            for name, content in files.items():
                with explained(self.directory, name):
                    self.storage.write(name, content)

    def clear(self) -> None:
        """Forget every committed shard: the manifest goes first, then the shards it listed and look-alikes."""
        with explained(self.directory, "the directory"):
            try:
                listed = [name for row in read_manifest(self.storage) for name in (row.name, row.index)]
            except CfaugError:  # a damaged manifest is no reason to keep it
                listed = []
            (self.directory / MANIFEST).unlink(missing_ok=True)
            sync_directory(self.directory)
            alike = [path.name for path in self.directory.iterdir() if planned(path.name)]
            for name in {*listed, *alike, *PUBLISHED}:
                (self.directory / name).unlink(missing_ok=True)
            sync_directory(self.directory)
            self._log.reset()

    def _make(self) -> None:
        with explained(self.directory, "the directory"):
            self.directory.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def _claimed(self, shared: bool) -> Iterator[tuple[IO[str], bool]]:
        """The run's lock, and whether nobody else has it; partial files are swept on entering and leaving."""
        self._make()
        with explained(self.directory, LOCK):
            lock = (self.directory / LOCK).open("a+", encoding="ascii")
        with lock:
            alone = self._flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if alone:
                with explained(self.directory, LOCK):
                    lock.truncate(0)
                    lock.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
                    lock.flush()
            elif shared:
                self._share(lock)
            else:
                raise self._held(lock)
            try:
                self._sweep()
                yield lock, alone
            finally:
                self._sweep()

    def _share(self, lock: IO[str]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not self._flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB):
            if time.monotonic() > deadline:
                raise self._held(lock)
            time.sleep(0.02)

    def _held(self, lock: IO[str]) -> UsageError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        return UsageError(f"another process ({holder}) is writing {self.directory}: wait for it or use another --out")

    def _flock(self, lock: IO[Any], how: int) -> bool:
        try:
            fcntl.flock(lock, how)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise CfaugError(f"cannot lock {self.directory}: {error.strerror}: use a file system with flock") from None
        return True

    @contextmanager
    def _locked(self, name: str, how: int = fcntl.LOCK_EX) -> Iterator[None]:
        with explained(self.directory, name):
            lock = (self.directory / name).open("a+b")  # NFSv4 locks shared only what is open for reading
        with lock:
            if not self._flock(lock, how):
                raise CfaugError(f"cannot lock {self.directory / name}: not permitted: use a file system with flock")
            yield

    def _append(self, line: bytes) -> None:
        """One write at the end; who calls it takes back what a short write or an error left."""
        new = not self._log.path.exists()
        handle = os.open(self._log.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if os.write(handle, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(handle)
        finally:
            os.close(handle)
        if new:
            sync_directory(self.directory)  # the manifest's own name

    def _sweep(self) -> None:
        """Remove partial files, unless someone is staging (workers outlive a killed coordinator for a moment)."""
        with explained(self.directory, STAGING), (self.directory / STAGING).open("a+b") as lock:
            if self._flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                for path in self.directory.glob(f"*{PARTIAL}"):
                    path.unlink(missing_ok=True)


class _Log:
    """What this process knows of a manifest that many append to.

    Commit number 10 000 reads what was appended since this process's last commit, not 10 000 rows; and it keeps two
    digests a shard, not the rows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reset()

    def reset(self) -> None:
        self.digests: dict[str, tuple[str, str]] = {}
        self.identity: Identity | None = None
        self._end, self._lines, self._last, self._file = 0, 0, b"", (0, 0)

    def look_ahead(self) -> None:
        """Read without .commit.lock what is there already, so that others do not wait while the many rows of a long run
        are parsed: what a commit that fails takes back meanwhile is noticed by :meth:`catch_up`, which must follow."""
        with suppress(CfaugError):  # who has the lock says what is wrong
            self.catch_up(alone=False)

    def catch_up(self, alone: bool = True) -> None:
        """Read what was appended since. :class:`ShardError` for damage or rows of two runs.

        `alone`: under .commit.lock, where an end without newline is nobody's who still writes: it is cut off.
        """
        try:
            handle = self.path.open("rb")
        except FileNotFoundError:
            return self.reset()
        with explained(self.path.parent, MANIFEST, "read"), handle:
            stat = os.fstat(handle.fileno())
            handle.seek(max(0, self._end - LAST))
            if (stat.st_dev, stat.st_ino) != self._file or handle.read(len(self._last)) != self._last:
                self.reset()  # another file than the one read before
                self._file = stat.st_dev, stat.st_ino
            handle.seek(self._end)
            tail = handle.read()
            whole = tail.rfind(b"\n") + 1
            if alone and whole != len(tail):
                os.truncate(self.path, self._end + whole)
        try:
            for row in parse_rows(tail[:whole], str(self.path), self._lines + 1):
                self._add(row)
        except CfaugError:
            self.reset()  # half of what was read is known, and none of it counted as read
            raise
        if whole:
            self._last = (self._last + tail[:whole])[-LAST:]
            self._end += whole

    def check(self, row: ManifestRow) -> bool:
        """Whether `row` is committed already; refused when its name has other bytes, or the others another run."""
        if self.identity is not None:
            refuse_another_run(str(self.path.parent), self.identity, identity_of(row))
        return refuse_other_bytes(row, self.digests.get(row.name))

    def cut(self) -> None:
        """Take back what was written after the last line that was read."""
        if self.path.exists() and self.path.stat().st_size > self._end:
            os.truncate(self.path, self._end)

    def _add(self, row: ManifestRow) -> None:
        self.identity = refuse_beside(row, self.digests, self.identity, str(self.path))
        self.digests[row.name] = digests_of(row)
        self._lines += 1
