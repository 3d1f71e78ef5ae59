"""The manifest: what exists. Read from a directory or an object store, finished or still being written.

    directory       manifest.jsonl, one line appended per committed shard
    object store    commits/<shard name>.json, the same line, one object per committed shard (no store can append);
                    manifest.jsonl, all of them sorted, once every shard of the plan is there

Readers take the union, so a run that is still going on is readable. It does not open tars or indices.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from cfaug.errors import ShardError, UsageError
from cfaug.offline.format import CARD, COLUMNS, MANIFEST, ManifestRow
from cfaug.offline.os_errors import unreadable
from cfaug.offline.storage import LocalStorage, Storage

COMMITS = "commits/"
PUBLISHED = (CARD, COLUMNS)
"""What stands beside the shards of a finished run, and goes when they go."""
Identity = dict[str, str | int]


def read_manifest(storage: Storage) -> list[ManifestRow]:
    """The committed shards, sorted by name. A last line without its newline never was committed and is not seen.

    Raises:
        ShardError: for a damaged line, a shard listed twice, or shards of different plans, models or environments.
        StorageError: where the place did not answer (``transient``); trying again may help.
    """
    where = f"{storage.url.rstrip('/')}/{MANIFEST}"
    try:
        try:
            content = storage.read(MANIFEST)
        except FileNotFoundError:
            content = b""
        rows = parse_rows(content[: content.rfind(b"\n") + 1], where)
        if not isinstance(storage, LocalStorage):  # a directory has one writer's log and nothing else
            rows += _commits(storage, {row.name for row in rows})
    except OSError as error:
        raise unreadable(error, where, "check the path and its permissions") from None
    check_rows(rows, where)
    return sorted(rows, key=lambda row: row.name)


def parse_rows(content: bytes, where: str, first: int = 1) -> list[ManifestRow]:
    """The rows of whole lines; errors count lines from `first`."""
    return [ManifestRow.parse(line, f"{where} line {n}") for n, line in enumerate(content.split(b"\n")[:-1], first)]


def check_rows(rows: Iterable[ManifestRow], where: str) -> None:
    """:class:`ShardError` for a shard listed twice, and for rows of different runs."""
    seen: set[str] = set()
    identity: Identity | None = None
    for row in rows:
        identity = refuse_beside(row, seen, identity, where)
        seen.add(row.name)


def refuse_beside(row: ManifestRow, seen: Container[str], identity: Identity | None, where: str) -> Identity:
    """The identity of `row`, which may stand beside rows named `seen` of a run `identity`; :class:`ShardError` otherwise."""
    found = identity_of(row)
    if row.name in seen:
        raise ShardError(f"{where}: shard {row.name} is listed twice: generate again with --overwrite")
    if identity is not None and found != identity:
        raise ShardError(f"{where}: {row.name} and those before are of different runs: generate with --overwrite")
    return found


def intact_rows(rows: Mapping[str, ManifestRow], sizes: Mapping[str, int]) -> dict[str, ManifestRow]:
    """Those of `rows` whose tar and index have their sizes in the listing `sizes`."""
    return {
        name: row
        for name, row in rows.items()
        if (sizes.get(row.name), sizes.get(row.index)) == (row.bytes, row.index_bytes)
    }


def refuse_missing(place: str, names: Iterable[str], committed: Container[str]) -> None:
    """:class:`ShardError` unless all of `names` are committed."""
    missing = [name for name in names if name not in committed]
    if missing:
        raise ShardError(f"{place}: {len(missing)} shards are not committed ({missing[0]}): run again")


def identity_of(row: ManifestRow) -> Identity:
    """What a shard's bytes depend on: ``plan``, ``model`` and the environment's names."""
    return {"plan": row.plan, "model": row.model, **row.environment}


def refuse_another_run(place: str, theirs: Mapping[str, str | int], ours: Mapping[str, str | int]) -> None:
    """:class:`UsageError` in one line where what is at `place` is not of this run's identity."""
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            raise UsageError(
                f"{place} holds shards with {name}={theirs.get(name)!s:.16}, this run has {name}="
                f"{ours.get(name)!s:.16}: use another --out, or --overwrite to drop them"
            )


def digests_of(row: ManifestRow) -> tuple[str, str]:
    """The sha256 of the tar and of the index."""
    return row.sha256, row.index_sha256


def refuse_other_bytes(row: ManifestRow, committed: tuple[str, str] | None) -> bool:
    """Whether `row` is what is committed under its name already; :class:`ShardError` where that has other digests."""
    if committed is not None and committed != digests_of(row):
        raise ShardError(
            f"{row.name}: expected the bytes committed before ({committed[0][:12]}), got others "
            f"({row.sha256[:12]}): the model is not deterministic, or the run is another: use --overwrite"
        )
    return committed is not None


def commit_name(shard: str) -> str:
    """The name of the object whose existence commits a shard in an object store."""
    return f"{COMMITS}{shard}.json"


def parse_commit(content: bytes, name: str) -> ManifestRow:
    """The row of one commit object; :class:`ShardError` unless it is one whole line about the shard it is named after."""
    if not content.endswith(b"\n"):
        raise ShardError(f"{name}: expected one manifest row, found {len(content)} bytes: generate with --overwrite")
    row = ManifestRow.parse(content[:-1], name)
    if commit_name(row.name) != name:
        raise ShardError(f"{name}: holds the row of {row.name}: generate with --overwrite")
    return row


def _commits(storage: Storage, known: set[str]) -> list[ManifestRow]:
    """Rows of the commit objects of shards that are not `known`."""
    names = sorted(name for name in storage.sizes(COMMITS) if name.endswith(".tar.json"))
    wanted = [name for name in names if name[len(COMMITS) : -len(".json")] not in known]
    return [parse_commit(content, name) for name, content in storage.read_many(wanted).items()]
