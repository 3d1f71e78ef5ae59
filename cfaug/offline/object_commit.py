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
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cfaug.data.files import is_running
from cfaug.errors import ShardError
from cfaug.offline.committed import (
    COMMITS,
    PUBLISHED,
    Identity,
    commit_name,
    digests_of,
    identity_of,
    intact_rows,
    parse_commit,
    read_manifest,
    refuse_another_run,
    refuse_missing,
    refuse_other_bytes,
)
from cfaug.offline.format import FORMAT, MANIFEST, ManifestRow, canonical_json, planned
from cfaug.offline.os_errors import explained
from cfaug.offline.storage import FsspecStorage
from cfaug.offline.write_shard import Staged, removed_on_failure

RUN = "RUN.json"


@dataclass(frozen=True)
class ObjectDestination:
    """A place in an object store as :class:`cfaug.offline.commit.Destination`."""

    storage: FsspecStorage

    @property
    def one_process(self) -> bool:
        return self.storage.url.startswith("memory:")

    @contextmanager
    def session(
        self, identity: Mapping[str, str | int] | None = None, shared: bool = False, overwrite: bool = False
    ) -> Iterator[None]:
        _sweep()
        if overwrite:
            self.clear()
        if identity is not None:
            self._claim(identity)
        yield

    def committed(self) -> dict[str, ManifestRow]:
        return {row.name: row for row in read_manifest(self.storage)}

    def intact(self) -> dict[str, ManifestRow]:
        rows = self.committed()
        with explained(self.storage.url, "the list of shards", "read"):
            return intact_rows(rows, self.storage.sizes() if rows else {})

    @contextmanager
    def staging(self) -> Iterator[Path]:
        _sweep()
        with explained(tempfile.gettempdir(), "a temporary directory"):
            place = tempfile.TemporaryDirectory(prefix=f"{_ours()}{os.getpid()}-", ignore_cleanup_errors=True)
        with place as path:
            yield Path(path)

    def commit(self, staged: Staged) -> ManifestRow:
        row = staged.row
        with explained(self.storage.url, row.name), removed_on_failure(staged.tar, staged.index):
            self._claim(identity_of(row))
            known = self._known(row)
            for name, source, sha256 in (
                (row.name, staged.tar, row.sha256),
                (row.index, staged.index, row.index_sha256),
            ):
                if known:  # what it vouches for was lost or damaged: these are the same bytes
                    self.storage.write(name, source.read_bytes())
                else:
                    self._create(name, source.read_bytes(), sha256)
            if not known:
                self._create_row(row)
            staged.tar.unlink()
            staged.index.unlink()
        return row

    def publish(
        self, names: Sequence[str], files: Mapping[str, bytes], rows: Mapping[str, ManifestRow] | None = None
    ) -> None:
        rows = self.committed() if rows is None else rows
        refuse_missing(self.storage.url, names, rows)
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
                if planned(name):
                    self.storage.remove(name)
            for name in (*PUBLISHED, RUN):
                self.storage.remove(name)

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

    def _known(self, row: ManifestRow) -> bool:
        """Whether `row` is committed; :class:`ShardError` where its name is, with other bytes."""
        name = commit_name(row.name)
        try:
            committed = parse_commit(self.storage.read(name), name)
        except FileNotFoundError:
            return False
        return refuse_other_bytes(row, digests_of(committed))

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
            if not self._known(row):
                raise  # it was there, and is gone: somebody is clearing the place


def _ours() -> str:
    return f"cfaug-{socket.gethostname()}-"


def _sweep() -> None:
    """Remove what killed processes of this host had staged: nobody else knows of it, and it may be much."""
    start = _ours()
    with suppress(OSError):  # a directory that is not ours to list
        for path in Path(tempfile.gettempdir()).iterdir():
            pid = path.name.removeprefix(start).partition("-")[0]
            if path.name.startswith(start) and pid.isdecimal() and not is_running(int(pid)):
                shutil.rmtree(path, ignore_errors=True)
