"""Writing shards: same samples, same bytes; and nothing exists before the manifest says so.

Commit protocol, in two halves so that many processes can write and one commits:

    stage    write <name>.<pid>.partial and its index, fsync both            any process
    commit   rename both -> fsync directory -> append the manifest row, fsync   only who holds the directory's lock

A crash leaves partial files, a shard nobody vouches for, or a torn last manifest line; the next writer sweeps the
first, replaces the second and cuts off the third. The lock (``flock``) dies with its process, so a killed run never
locks anyone out. It does not promise exclusion on file systems without ``flock`` (it fails there, it does not pretend).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO

from cfaug.errors import CfaugError, ShardError, UsageError
from cfaug.offline.format import LOCK, MANIFEST, PARTIAL, ManifestRow, Sample, read_manifest
from cfaug.offline.staging import Staged, explained, removed_on_failure, stage_shard


def write_shard(
    directory: str | Path,
    name: str,
    samples: Iterable[Sample],
    plan_digest: str,
    model_digest: str,
    environment: Mapping[str, str | int] | None = None,
) -> ManifestRow:
    """Stage and commit one shard; returns its manifest row. Takes the directory's lock for as long as it lasts."""
    with ShardDirectory(directory) as shards:
        return shards.commit(stage_shard(directory, name, samples, plan_digest, model_digest, environment))


class ShardDirectory:
    """The one writer of a directory: holds its lock, knows its manifest, commits staged shards.

    Entering creates the directory, takes the lock (:class:`UsageError` when another process has it), cuts a torn last
    line off the manifest and removes partial files; leaving removes what was staged and never committed.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.rows: dict[str, ManifestRow] = {}
        self._lock: IO[str] | None = None

    def __enter__(self) -> ShardDirectory:
        with explained(self.directory, "the directory"):
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = (self.directory / LOCK).open("a+", encoding="ascii")
        try:
            self._take_lock(self._lock)
            with explained(self.directory, MANIFEST):
                self._cut_torn_line()
                self._sweep()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._lock is not None  # entered
        try:
            self._sweep()
        finally:
            self._lock.close()

    def load(self) -> dict[str, ManifestRow]:
        """The committed shards by name; :class:`ShardError` when the manifest is damaged."""
        self.rows = {row.name: row for row in read_manifest(self.directory)}
        return self.rows

    def intact(self, name: str) -> bool:
        """Whether shard `name` is committed and its files have their sizes (the cheap check: no re-hashing)."""
        row = self.rows.get(name)
        try:
            sizes = row and ((self.directory / row.name).stat().st_size, (self.directory / row.index).stat().st_size)
        except OSError:
            return False
        return row is not None and sizes == (row.bytes, row.index_bytes)

    def commit(self, staged: Staged) -> ManifestRow:
        """Give the staged shard its name and append its manifest row; an identical committed shard is replaced by it.

        :class:`ShardError` when this name is committed with other bytes.
        """
        row = staged.row
        known = self.rows.get(row.name) or self.load().get(row.name)
        if known is not None and known != row:
            raise ShardError(
                f"{row.name}: expected the bytes committed before ({known.sha256[:12]}), got others "
                f"({row.sha256[:12]}): the model is not deterministic, or the run is another: use --overwrite"
            )
        tar, index = self.directory / row.name, self.directory / row.index
        with explained(self.directory, row.name):
            os.replace(staged.index, index)
            os.replace(staged.tar, tar)
            self._fsync()
            if known is None:
                try:
                    self._append(row.line())
                except BaseException:
                    tar.unlink(missing_ok=True)  # nobody vouches for it, and the disk may be full
                    index.unlink(missing_ok=True)
                    raise
        self.rows[row.name] = row
        return row

    def clear(self) -> None:
        """Forget every committed shard: the manifest goes first, then the shards it listed and unlisted look-alikes."""
        with explained(self.directory, "the directory"):
            (self.directory / MANIFEST).unlink(missing_ok=True)
            self._fsync()
            listed = [self.directory / name for row in self.rows.values() for name in (row.name, row.index)]
            for path in {*listed, *stray_shards(self.directory, frozenset())}:
                path.unlink(missing_ok=True)
            self._fsync()
        self.rows = {}

    def write_text(self, name: str, text: str) -> None:
        """Write a small file beside the shards, whole or not at all."""
        partial = self.directory / f"{name}.{os.getpid()}{PARTIAL}"
        with explained(self.directory, name), removed_on_failure(partial):
            with partial.open("w", encoding="utf-8") as handle:
                handle.write(text)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(partial, self.directory / name)
            self._fsync()

    def _take_lock(self, lock: IO[str]) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise CfaugError(
                    f"cannot lock {self.directory}: {error.strerror}: use a file system with flock"
                ) from None
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise UsageError(
                f"another process ({holder}) is writing {self.directory}: wait for it or use another --out"
            ) from None
        with explained(self.directory, LOCK):
            lock.truncate(0)
            lock.write(f"pid {os.getpid()}\n")
            lock.flush()

    def _cut_torn_line(self) -> None:
        path = self.directory / MANIFEST
        if path.exists():
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole != len(content):
                os.truncate(path, whole)

    def _append(self, line: bytes) -> None:
        """One write at the end; a short write or an error leaves the manifest as it was."""
        handle = os.open(self.directory / MANIFEST, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            before = os.fstat(handle).st_size
            try:
                if os.write(handle, line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(handle)
            except BaseException:
                os.ftruncate(handle, before)
                raise
        finally:
            os.close(handle)
        self._fsync()  # the manifest's own name, the first time

    def _sweep(self) -> None:
        for path in self.directory.glob(f"*{PARTIAL}"):
            path.unlink(missing_ok=True)

    def _fsync(self) -> None:
        handle = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def stray_shards(directory: Path, vouched: frozenset[str]) -> list[Path]:
    """Files with a shard's or an index's name, ``cf-<split>-<number>``, that are not among the `vouched` names."""
    pattern = re.compile(r"cf-(train|val|test)-\d{6,}\.(tar|index\.jsonl)")
    return sorted(path for path in directory.iterdir() if pattern.fullmatch(path.name) and path.name not in vouched)
