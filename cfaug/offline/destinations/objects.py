"""Shards in an object store: one put an object, so whatever is there is whole; and what is not committed does not exist.

    stage     in a temporary directory of this machine
    commit    RUN.json is ours -> create the tar -> create its index -> create commits/<shard name>.json
    publish   all commits are there -> manifest.jsonl, once

``create`` puts an object only where none is (``If-None-Match: *``), so of two that commit one shard at the same instant one
wins, and the other finds the same bytes (fine) or others (an error). RUN.json names the run's plan, model and environment:
another run on the same place is refused, at every commit. No upload in parts: nothing of a killed upload is left behind.
A killed run may leave a tar that no commit vouches for; the same run takes it when its bytes are the same. A store that
ignores the condition leaves only the checks, which are not at the same instant.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cfaug.errors import ShardError, UsageError
from cfaug.offline.destinations.explained import explained
from cfaug.offline.destinations.staging import Staged, removed_on_failure
from cfaug.offline.destinations.storage import FsspecStorage
from cfaug.offline.format import CARD, FORMAT, MANIFEST, ManifestRow, canonical_json
from cfaug.offline.reading.manifest import (
    COMMITS,
    Identity,
    commit_name,
    identity_of,
    other_bytes,
    parse_commit,
    read_manifest,
    refuse_another_run,
)

RUN = "RUN.json"


@dataclass(frozen=True)
class ObjectDestination:
    """A place in an object store as :class:`cfaug.offline.destinations.destination.Destination`."""

    storage: FsspecStorage

    @property
    def one_process(self) -> bool:
        return self.storage.url.startswith("memory:")

    @contextmanager
    def session(
        self, identity: Mapping[str, str | int] | None = None, shared: bool = False, overwrite: bool = False
    ) -> Iterator[None]:
        if overwrite:
            self._overwrite(identity, shared)
        if identity is not None:
            self._claim(identity)
        yield

    def committed(self) -> dict[str, ManifestRow]:
        return {row.name: row for row in read_manifest(self.storage)}

    def intact(self) -> set[str]:
        rows = self.committed().values()
        with explained(self.storage.url, "the list of shards", "read"):
            sizes = self.storage.sizes() if rows else {}
        return {row.name for row in rows if (sizes.get(row.name), sizes.get(row.index)) == (row.bytes, row.index_bytes)}

    @contextmanager
    def staging(self) -> Iterator[Path]:
        with explained(tempfile.gettempdir(), "a temporary directory"):
            place = tempfile.TemporaryDirectory(prefix="cfaug-", ignore_cleanup_errors=True)
        with place as path:
            yield Path(path)

    def commit(self, staged: Staged) -> ManifestRow:
        row = staged.row
        with explained(self.storage.url, row.name), removed_on_failure(staged.tar, staged.index):
            self._claim(identity_of(row))
            committed = self._row(row.name)
            if committed is not None and (committed.sha256, committed.index_sha256) != (row.sha256, row.index_sha256):
                raise other_bytes(row, committed.sha256)
            for name, source, sha256 in (
                (row.name, staged.tar, row.sha256),
                (row.index, staged.index, row.index_sha256),
            ):
                if committed is not None:  # what it vouches for was lost or damaged: these are the same bytes
                    self.storage.write(name, source.read_bytes())
                else:
                    self._create(name, source.read_bytes(), sha256)
            if committed is None:
                self._create_row(row)
            staged.tar.unlink()
            staged.index.unlink()
        return row

    def publish(self, names: Sequence[str], files: Mapping[str, bytes]) -> None:
        rows = self.committed()
        missing = [name for name in names if name not in rows]
        if missing:
            raise ShardError(f"{self.storage.url}: {len(missing)} shards are not committed ({missing[0]}): run again")
        with explained(self.storage.url, MANIFEST):
            content = b"".join(rows[name].line() for name in sorted(rows))
            with suppress(FileExistsError):
                self.storage.create(MANIFEST, content)
            for name, text in files.items():
                self.storage.write(name, text)

    def clear(self) -> None:
        """Forget every committed shard: what vouches goes first, RUN.json last."""
        with explained(self.storage.url, "the shards"):
            self.storage.remove(MANIFEST)
            for name in self.storage.sizes(COMMITS):
                self.storage.remove(name)
            for name in self.storage.sizes("cf-"):
                if name.endswith((".tar", ".index.jsonl")):
                    self.storage.remove(name)
            for name in (CARD, "croissant.json", RUN):
                self.storage.remove(name)

    def _overwrite(self, identity: Mapping[str, str | int] | None, shared: bool) -> None:
        """Ranks have no lock between them here, so none of them may drop what another has just made."""
        if shared:
            theirs = self._identity()
            if theirs is not None and theirs != identity:
                raise UsageError(
                    f"cannot overwrite {self.storage.url} from several ranks at once: use another --out, or "
                    "overwrite it with one process first"
                )
            return
        self.clear()

    def _claim(self, identity: Mapping[str, str | int]) -> None:
        """See that the place is this run's, or make it so; :class:`UsageError` when it is another's."""
        with explained(self.storage.url, RUN):
            theirs = self._identity()
            if theirs is None:
                with suppress(FileExistsError):  # someone was faster: whose is it?
                    self.storage.create(RUN, canonical_json({"format": FORMAT, **identity}) + b"\n")
                theirs = self._identity()
        refuse_another_run(self.storage.url, theirs or {}, identity)

    def _identity(self) -> Identity | None:
        with explained(self.storage.url, RUN, "read"):
            try:
                content = self.storage.read(RUN)
            except FileNotFoundError:
                return None
        try:
            fields = json.loads(content)
            if fields.pop("format") == FORMAT:
                return dict(fields)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        raise ShardError(f"{self.storage.url}/{RUN}: expected a run's identity, format {FORMAT}: use another --out")

    def _row(self, shard: str) -> ManifestRow | None:
        name = commit_name(shard)
        try:
            return parse_commit(self.storage.read(name), name)
        except FileNotFoundError:
            return None

    def _create(self, name: str, content: bytes, sha256: str) -> None:
        try:
            self.storage.create(name, content)
        except FileExistsError:
            # Ours, when an answer was lost and the request repeated; a twin's; or what a killed run left. Overwriting
            # it could tear what the twin is about to commit.
            found = hashlib.sha256(self.storage.read(name)).hexdigest()
            if found != sha256:
                raise ShardError(
                    f"{name}: expected the bytes that a writer of this run stored before ({found[:12]}), got others "
                    f"({sha256[:12]}): the model is not deterministic: use --overwrite"
                ) from None

    def _create_row(self, row: ManifestRow) -> None:
        try:
            self.storage.create(commit_name(row.name), row.line())
        except FileExistsError:
            winner = self._row(row.name)
            if winner != row:
                raise other_bytes(row, winner.sha256 if winner else "nothing") from None
