"""Where shards go: one small interface over a directory and an object store.

    destination = open_destination("OUT")                 # or s3://bucket/run, memory://run
    with destination.session(identity):                   # the coordinator, for the length of a run
        with destination.staging() as place:              # any process, any number of them at once
            destination.commit(stage_shard(place, name, samples, plan_digest, model_digest, environment))
        destination.publish(names, {"README.md": card})

A commit is safe among many processes and idempotent: the same bytes again are fine, other bytes under a committed name
and rows of another run are refused. What is not committed is not in the manifest, whatever else lies about. It does not
order commits. A directory lets in one coordinator at a time (it fails where the file system has no ``flock``); an object
store does not: a second one of the same run does the same work again and commits the same bytes, one of another run finds
RUN.json (at the same instant only where the store has conditional writes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from cfaug.offline.format import ManifestRow
from cfaug.offline.storage import FsspecStorage, LocalStorage, Storage, open_storage
from cfaug.offline.write_shard import Staged


class Destination(Protocol):
    """A place that shards are committed to. Picklable: workers get a copy and commit their own shards."""

    @property
    def storage(self) -> Storage:
        """Where readers find what was committed."""
        ...

    @property
    def one_process(self) -> bool:
        """Whether the place lives in this process alone (``memory://``), so that worker processes cannot reach it."""
        ...

    def session(
        self, identity: Mapping[str, str | int] | None = None, shared: bool = False, overwrite: bool = False
    ) -> AbstractContextManager[None]:
        """The claim for the length of a run.

        Args:
            identity: ``{"plan", "model", **environment}``; None where the first commit decides.
            shared: other coordinators of the same run may be there at the same time (ranks).
            overwrite: drop what is there; not with `shared`, where others may just have made it.

        Raises:
            UsageError: shards of another identity are there; of a directory also: another process has the claim.
            ShardError: the manifest is damaged.
            StorageError: the place cannot be written.
        """
        ...

    def committed(self) -> dict[str, ManifestRow]:
        """The committed shards by name, read afresh."""
        ...

    def intact(self) -> dict[str, ManifestRow]:
        """The committed shards by name whose tar and index have their sizes (one listing; no re-hashing)."""
        ...

    def staging(self) -> AbstractContextManager[Path]:
        """A local directory to stage one shard in and commit it from."""
        ...

    def commit(self, staged: Staged) -> ManifestRow:
        """Make the staged shard exist, whole; from any process, many at once. Its partial files are gone afterwards.

        Raises:
            ShardError: this name is committed with other bytes.
            UsageError: the place holds shards of another run.
            StorageError: `full`, `transient`, or neither; nothing was committed.
        """
        ...

    def publish(
        self, names: Sequence[str], files: Mapping[str, bytes], rows: Mapping[str, ManifestRow] | None = None
    ) -> None:
        """All shards `names` are committed: see that manifest.jsonl lists them, then write the small `files` whole.

        `rows` is what :meth:`committed` has said since, for who has just asked: it is not asked again.

        Raises:
            ShardError: one of them is not committed.
            StorageError: as for :meth:`commit`.
        """
        ...


def open_destination(out: str | Path) -> Destination:
    """The destination ``OUT/shards`` of a run, for a local `out` or a URL of any protocol that fsspec knows.

    :class:`UsageError` where the protocol is unknown or its package is missing (with the pip line).
    """
    return destination_at(open_storage(out).within("shards"))


def destination_at(storage: LocalStorage | FsspecStorage) -> Destination:
    """The destination at `storage` itself."""
    if isinstance(storage, LocalStorage):
        from cfaug.offline.local_commit import LocalDestination

        return LocalDestination(storage.path)
    from cfaug.offline.object_commit import ObjectDestination

    return ObjectDestination(storage)
