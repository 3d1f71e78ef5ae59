"""How shards are committed: one protocol for a directory and an object store.

    destination = open_destination("OUT")                 # or s3://bucket/run, memory://run
    with destination.session(identity):                   # the coordinator, for the length of a run
        with destination.staging() as place:              # any process, any number of them at once
            destination.commit(stage_shard(place, name, samples, plan_digest, model_digest, environment))
        destination.publish(names, {"README.md": card})

    claim     RUN.json names the plan, the model and the environment; shards of a different run are refused
    stage     write the tar and its index under names that nobody reads, and sync them
    commit    create the tar -> create the index -> create commits/<shard name>.json, which makes the shard exist
    publish   every shard is committed -> write manifest.jsonl -> remove the commit files and RUN.json

``create`` never replaces. When two processes commit one shard at the same instant, one of them creates the file; the other one
finds the same bytes, which is fine, or different bytes, which is an error. A commit is therefore idempotent and needs no lock,
and a process may be killed at any moment: what is not committed does not exist for readers, and the next session makes it
again or removes it. A directory lets in one coordinator at a time where its file system has ``flock``. A store that does not
support ``If-None-Match`` is asked first whether the name exists, which does not decide between two writers of one instant.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cfaug.errors import CfaugError, ShardError, UsageError
from cfaug.offline.format import FORMAT, LOCK, MANIFEST, ManifestRow, Sample, canonical_json, planned
from cfaug.offline.os_errors import explained
from cfaug.offline.read_committed import (
    COMMITS,
    PUBLISHED,
    Identity,
    commit_name,
    identity_of,
    parse_commit,
    read_manifest,
)
from cfaug.offline.storage import LocalStorage, Storage, local_path, open_storage
from cfaug.offline.write_shard import Staged, removed, stage_shard

RUN = "RUN.json"
BUSY = (errno.EWOULDBLOCK, errno.EACCES)  # what flock answers when a different process has the lock


@dataclass(frozen=True)
class Destination:
    """A place that shards are committed to. Picklable: workers get a copy and commit their own shards."""

    storage: Storage

    @property
    def one_process(self) -> bool:
        """Whether the place lives in this process alone (``memory://``), so that worker processes cannot reach it."""
        return self.storage.url.startswith("memory:")

    @contextmanager
    def session(
        self, identity: Mapping[str, str | int] | None = None, shared: bool = False, overwrite: bool = False
    ) -> Iterator[None]:
        """The claim for the length of a run. What killed writers left half done is removed on entering and on leaving.

        Args:
            identity: ``{"plan", "model", **environment}``; None: that of the first commit.
            shared: there may be more coordinators of the same run at the same time (ranks).
            overwrite: drop what is there; not with `shared`, because a different rank may just have made it.

        Raises:
            UsageError: shards of a different run are there, or a different process has the claim of a directory.
            StorageError: the place cannot be written.
        """
        with self._alone(shared):
            self._sweep()
            if overwrite:
                self.clear()
            if identity is not None:
                self._claim(identity)
            try:
                yield
            finally:
                self._sweep()

    def committed(self) -> dict[str, ManifestRow]:
        """The committed shards by name; they are read anew at each call."""
        return {row.name: row for row in read_manifest(self.storage)}

    def intact(self) -> dict[str, ManifestRow]:
        """The committed shards by name whose tar and index have the right sizes (one listing; nothing is hashed)."""
        rows = self.committed()
        with explained(self.storage.url, "the list of shards", "read"):
            sizes = self.storage.sizes() if rows else {}
        return {
            name: row
            for name, row in rows.items()
            if (sizes.get(row.name), sizes.get(row.index)) == (row.bytes, row.index_bytes)
        }

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A local directory to stage one shard in and commit it from."""
        with ExitStack() as stack:
            with explained(self.storage.url, "a shard"):
                place = stack.enter_context(self.storage.workspace())
            yield place

    def commit(self, staged: Staged) -> ManifestRow:
        """Commit the staged shard, whole. Any number of processes may do this at once. Its partial files are removed.

        Raises:
            ShardError: this name is committed, or stored, with different bytes.
            UsageError: the place holds shards of a different run.
            StorageError: the place cannot be written (`full`, `transient`, or neither); nothing was committed.
        """
        row, storage = staged.row, self.storage
        files = ((row.name, staged.tar, row.sha256), (row.index, staged.index, row.index_sha256))
        with explained(storage.url, row.name), removed(staged.tar, staged.index):
            self._claim(identity_of(row))
            known = self._is_committed(row)
            for name, path, sha256 in files:
                if known:  # what the commit vouches for was lost or damaged: these are the same bytes
                    storage.adopt(path, name, replace=True)
                else:
                    self._adopt(path, name, sha256)
            storage.sync()  # a power cut must not leave the commit without its shard
            if not known:
                try:
                    storage.create(commit_name(row.name), row.line())
                except FileExistsError:  # a second writer's, or ours when the request was repeated
                    self._is_committed(row)
        return row

    def publish(
        self, names: Sequence[str], files: Mapping[str, bytes], rows: Mapping[str, ManifestRow] | None = None
    ) -> None:
        """Once all shards `names` are committed: write manifest.jsonl and the small `files`, and remove the commit files.

        `rows` is what :meth:`committed` has just returned, for a caller that has it already.

        Raises:
            ShardError: one of them is not committed.
            StorageError: as for :meth:`commit`.
        """
        rows = self.committed() if rows is None else rows
        missing = [name for name in names if name not in rows]
        if missing:
            raise ShardError(
                f"{self.storage.url}: expected all {len(names)} shards to be committed, got {len(missing)} that are not ({missing[0]}); "
                "generate again"
            )
        content = b"".join(rows[name].line() for name in sorted(rows))
        with explained(self.storage.url, MANIFEST):
            if self._content(MANIFEST) != content:
                self.storage.write(MANIFEST, content)
        for name, text in files.items():
            with explained(self.storage.url, name):
                self.storage.write(name, text)
        with explained(self.storage.url, COMMITS):
            self.storage.remove(*[name for name in self.storage.sizes(COMMITS) if name.endswith(".json")], RUN)

    def clear(self) -> None:
        """Remove every committed shard: what vouches for them is removed first, RUN.json last."""
        with explained(self.storage.url, "the shards"):
            try:
                rows = self.committed()
            except CfaugError:  # a damaged manifest is no reason to keep it
                rows = {}
            self.storage.remove(MANIFEST, *self.storage.sizes(COMMITS))
            self.storage.sync()
            alike = [name for name in self.storage.sizes() if planned(name)]
            mentioned = [name for row in rows.values() for name in (row.name, row.index)]
            self.storage.remove(*{*alike, *mentioned, *PUBLISHED})
            self.storage.remove(RUN)

    def _claim(self, identity: Mapping[str, str | int]) -> None:
        """Make the place this run's, unless it is already; :class:`UsageError` where it belongs to a different run."""
        with explained(self.storage.url, RUN):
            theirs = self._identity()
            if theirs is None:
                with suppress(FileExistsError):  # a different process was faster: its run may be the same
                    self.storage.create(RUN, canonical_json({"format": FORMAT, **identity}) + b"\n")
                theirs = self._identity() or {}
        for name in [*identity, *theirs]:
            if identity.get(name) != theirs.get(name):
                raise UsageError(
                    f"{self.storage.url}: expected shards with {name}={identity.get(name)!s:.16}, as this run makes them, got "
                    f"{name}={theirs.get(name)!s:.16}; use a different --out, or --overwrite to drop them"
                )

    def _identity(self) -> Identity | None:
        """The identity of the run that the place belongs to, by RUN.json or by any row of a finished run; None: nobody's."""
        content = self._content(RUN)
        if content is None:
            return next((identity_of(row) for row in read_manifest(self.storage)), None)
        with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            fields = json.loads(content)
            if fields.pop("format") == FORMAT:
                return dict(fields)
        raise ShardError(
            f"{self.storage.url}/{RUN}: expected a run's identity of format {FORMAT}, got something else; use a different --out"
        )

    def _is_committed(self, row: ManifestRow) -> bool:
        """Whether `row` is committed; :class:`ShardError` where its name is, with different bytes."""
        name = commit_name(row.name)
        content = self._content(name)
        if content is not None:
            committed: ManifestRow | None = parse_commit(content, name)
        else:
            committed = self.committed().get(row.name) if self._content(MANIFEST) is not None else None
        if committed is not None:
            _refuse_different(row.name, committed.sha256, row.sha256, "committed before")
            _refuse_different(row.index, committed.index_sha256, row.index_sha256, "committed before")
        return committed is not None

    def _adopt(self, path: Path, name: str, sha256: str) -> None:
        try:
            self.storage.adopt(path, name)
        except FileExistsError:
            # It is ours, when an answer was lost and the request repeated, or a second writer's, or a killed run's. To
            # overwrite it could damage what the second writer is about to commit.
            found = hashlib.sha256(self.storage.read(name)).hexdigest()
            _refuse_different(name, found, sha256, "that a writer of this run stored before")

    def _content(self, name: str) -> bytes | None:
        with explained(self.storage.url, name, "read"), suppress(FileNotFoundError):
            return self.storage.read(name)
        return None

    def _sweep(self) -> None:
        with explained(self.storage.url, "files that are half done", "remove"):
            self.storage.sweep()

    @contextmanager
    def _alone(self, shared: bool) -> Iterator[None]:
        """The lock of a directory, for one coordinator or the ranks of one run. It ends with its process."""
        if not isinstance(self.storage, LocalStorage):
            yield
            return
        with explained(self.storage.url, LOCK):
            self.storage.path.mkdir(parents=True, exist_ok=True)
            lock = (self.storage.path / LOCK).open("a+", encoding="ascii")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_NB | (fcntl.LOCK_SH if shared else fcntl.LOCK_EX))
            except OSError as error:  # a file system without flock: the claim and the idempotent commits remain
                if error.errno in BUSY:
                    lock.seek(0)
                    raise UsageError(
                        f"expected to be the only writer of {self.storage.url}, got another process "
                        f"({lock.read().strip() or 'unknown'}); wait for it, or use a different --out"
                    ) from None
            with explained(self.storage.url, LOCK):
                lock.truncate(0)
                lock.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
                lock.flush()
            yield


def open_destination(out: str | Path) -> Destination:
    """The destination ``OUT/shards`` of a run, for a local `out` or a URL of any protocol that fsspec knows.

    :class:`UsageError` where the protocol is unknown or its package is missing (with the pip line).
    """
    return Destination(open_storage(out).within("shards"))


def write_shard(
    directory: str | Path,
    name: str,
    samples: Iterable[Sample],
    plan_digest: str,
    model_digest: str,
    environment: Mapping[str, str | int] | None = None,
    image: str = "png",
) -> ManifestRow:
    """Stage, commit and publish one shard, and return its manifest row. The directory is claimed meanwhile.

    `image`: png, png-stored or webp, as in :func:`~cfaug.offline.encode_sample`.
    """
    place = Destination(LocalStorage(local_path(directory)))
    with place.session(), place.staging() as staging:
        row = place.commit(stage_shard(staging, name, samples, plan_digest, model_digest, environment, image))
        place.publish([name], {})
    return row


def _refuse_different(name: str, found: str, ours: str, when: str) -> None:
    if found != ours:
        raise ShardError(
            f"{name}: expected the bytes {when} ({found[:12]}), got different ones ({ours[:12]}), so the model is not "
            "deterministic or the run is a different one; use --overwrite"
        )
