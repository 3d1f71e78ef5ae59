"""The files of a plan: lines of JSON for people, and beside them the same rows as arrays, which open a hundred times faster.

    plan.json                 the header: format, rows, shards, split, samples_per_shard, settings, and the digests of all files
    plan-00000.jsonl, ...     the rows, 100 000 per file, one JSON object per line
    plan-00000.npy, ...       the same rows as a structured array; their numbers count the texts of plan-values.json
    plan-values.json          sources, values of each attribute, keys (null where rows are numbered)
    digest = sha256("cfaug plan 3 SPLIT", then the lines of all files)

All files are written in one pass from one set of columns and the header, written last, vouches for each of them; opening
compares every byte with its digest. `cfaug verify` also writes the lines anew from the arrays and compares the digests.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cfaug.errors import ShardError, UsageError, one_line, shown
from cfaug.offline.format import MAX_SEED, PLAN_HEADER, canonical_json
from cfaug.offline.os_errors import explained, unreadable
from cfaug.offline.plan_columns import Columns, Whole, acts_of, check_keys, code_type, number_width
from cfaug.offline.storage import Storage

PLAN_FORMAT = 4
ROWS_PER_FILE = 100_000  # 13 MB of text
VALUES = "plan-values.json"
_TEXT_BYTES = 1 << 25  # of the padded lines that are in memory at a time


def digest_of(columns: Columns, split: str) -> str:
    """sha256 hex of the split and the lines of all rows: one pass over them."""
    sha256 = _begun(split)
    for rows in _files(len(columns.seed)):
        sha256.update(lines_of(columns, split, rows))
    return sha256.hexdigest()


def save(storage: Storage, columns: Columns, split: str, header: Mapping[str, Any]) -> str:
    """Write the rows and, last, the `header` with the digests, in place of what is there; returns the rows' digest."""
    sha256, arrays = _begun(split), {}

    def vouched(name: str, content: bytes) -> None:
        arrays[name] = hashlib.sha256(content).hexdigest()
        storage.write(name, content)

    with explained(storage.url, "the plan"):
        storage.remove(PLAN_HEADER)
        for old in storage.sizes("plan-"):
            storage.remove(old)
        for number, rows in enumerate(_files(len(columns.seed))):
            content = lines_of(columns, split, rows)
            sha256.update(content)
            storage.write(f"plan-{number:05d}.jsonl", content)
            vouched(f"plan-{number:05d}.npy", _packed(columns, rows))
        texts = {
            "sources": list(columns.sources),
            "levels": {name: list(held) for name, held in columns.levels.items()},
        }
        vouched(VALUES, canonical_json({**texts, "keys": columns.keys}))
        whole = {"format": PLAN_FORMAT, **header, "digest": sha256.hexdigest(), "arrays": arrays}
        whole["sha256"] = _sealed(whole)
        storage.write(PLAN_HEADER, json.dumps(whole, indent=1, allow_nan=False).encode() + b"\n")
    return sha256.hexdigest()


def load(storage: Storage) -> tuple[dict[str, Any], Columns]:
    """The header and the columns of the plan that is saved there; :class:`ShardError` where any byte is not as written."""
    where = f"{storage.url.rstrip('/')}/{PLAN_HEADER}"
    content = _read(storage, PLAN_HEADER)
    try:
        header: dict[str, Any] = json.loads(content)
        if header["format"] != PLAN_FORMAT:
            raise ShardError(
                f"{where}: expected plan format {PLAN_FORMAT}, got {shown(header['format'])}; plan again, or use the "
                "cfaug that wrote it"
            )
        if header["sha256"] != _sealed(header):
            raise ShardError(f"{where}: the header does not have the digest it states; plan again")
        return header, _columns(storage, header, where)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, UsageError) as error:
        raise ShardError(
            f"{where}: the plan is damaged ({type(error).__name__}: {one_line(error, 80)}); plan again"
        ) from None


def _columns(storage: Storage, header: Mapping[str, Any], where: str) -> Columns:
    def vouched(name: str) -> bytes:
        content = _read(storage, name)
        if hashlib.sha256(content).hexdigest() != header["arrays"][name]:
            raise ShardError(f"{where}: {name} does not have the digest that the header states; plan again")
        return content

    texts = json.loads(vouched(VALUES))
    sources, levels, keys = texts["sources"], texts["levels"], texts["keys"]
    held, sha256 = np.zeros(header["rows"], _row_type(levels)), _begun(header["split"])
    for number, rows in enumerate(_files(len(held))):
        sha256.update(_read(storage, f"plan-{number:05d}.jsonl"))
        held[rows] = np.load(io.BytesIO(vouched(f"plan-{number:05d}.npy")), allow_pickle=False)
    if sha256.hexdigest() != header["digest"]:
        raise ShardError(f"{where}: the rows do not have the digest that the header states; plan again")
    columns = Columns(
        sources, levels, held["source"], held["codes"].T, held["seed"], held["replica"], held["shard"], keys
    )
    _check(columns)
    return columns


def _check(columns: Columns) -> None:
    """ValueError for numbers that no row of a plan can have: the digests do not say that whoever wrote them was cfaug."""
    bounds = [(columns.source, 0, len(columns.sources)), (columns.seed, 0, MAX_SEED), (columns.replica, 0, 2**31)]
    bounds += [(codes, -1, len(held)) for codes, held in zip(columns.codes, columns.levels.values())]
    if any(len(array) and (array.min() < least or array.max() >= beyond) for array, least, beyond in bounds):
        raise ValueError("a number out of range")
    if (columns.shard[:1] < 0).any() or (columns.shard[1:] < columns.shard[:-1]).any():
        raise ValueError("rows out of the order of their shards")
    if columns.keys is not None:
        if len(columns.keys) != len(columns.seed):
            raise ValueError("keys of other rows")
        check_keys(columns.keys)


# --- rows as arrays
def _row_type(levels: Mapping[str, Any]) -> np.dtype[np.void]:
    code = code_type(levels).newbyteorder("<")
    whole = [("seed", "<i8"), ("source", "<i4"), ("shard", "<i4"), ("replica", "<i4")]
    return np.dtype([*whole, ("codes", code, (len(levels),))])


def _packed(columns: Columns, rows: slice) -> bytes:
    packed = np.zeros(rows.stop - rows.start, _row_type(columns.levels))
    for name in ("seed", "source", "shard", "replica"):
        packed[name] = getattr(columns, name)[rows]
    packed["codes"] = columns.codes[:, rows].T
    content = io.BytesIO()
    np.save(content, packed, allow_pickle=False)
    return content.getvalue()


# --- rows as lines
def lines_of(columns: Columns, split: str, rows: slice) -> bytes:
    """The lines of some rows, each field in a column as wide as its longest text; the padding is removed at the end."""
    acts, which = acts_of(columns, rows)
    do = np.array([canonical_json(act) for act in acts], dtype="S")
    used, source = np.unique(columns.source[rows], return_inverse=True)
    sources = np.array([json.dumps(columns.sources[i]).encode() for i in used.tolist()], dtype="S")
    width = do.itemsize + sources.itemsize + 250
    found = []
    for start in range(0, len(which), step := max(1, _TEXT_BYTES // width)):
        part = slice(start, min(start + step, len(which)))
        at = slice(rows.start + part.start, rows.start + part.stop)
        if columns.keys is None:
            key = _digits(np.arange(at.start, at.stop), number_width(len(columns.seed)), pad=b"0")
            head = f'{{"key":"{split}-'
        else:
            key, head = np.array(columns.keys[at], dtype="S"), '{"key":"'
        fields: list[str | npt.NDArray[np.bytes_]] = [
            head, key, '","source_key":', sources[source[part]], ',"do":', do[which[part]], ',"seed":', _digits(columns.seed[at]),
            ',"shard":', _digits(columns.shard[at]), ',"replica":', _digits(columns.replica[at]), "}\n",
        ]  # fmt: skip
        texts = [np.array(field.encode()) if isinstance(field, str) else field for field in fields]
        table = np.zeros(part.stop - part.start, [(str(n), text.dtype) for n, text in enumerate(texts)])
        for n, text in enumerate(texts):
            table[str(n)] = text
        found.append(table.tobytes().translate(None, b"\0"))
    return b"".join(found)


def _digits(numbers: Whole, width: int | None = None, pad: bytes = b"\0") -> npt.NDArray[np.bytes_]:
    """Whole numbers of at least 0 as texts of equal widths, `pad` in front."""
    left = numbers.astype(np.int64)
    width = width or len(str(left.max(initial=0)))
    found = np.full((len(left), width), ord(pad), np.uint8)
    for place in range(width - 1, -1, -1):
        rest = left // 10
        digit = left - 10 * rest + ord("0")
        found[:, place] = digit if place == width - 1 else np.where(left > 0, digit, ord(pad))
        left = rest
    return found.view(f"S{width}").ravel()


def _files(rows: int) -> Iterator[slice]:
    """The rows of each file."""
    return (slice(start, min(start + ROWS_PER_FILE, rows)) for start in range(0, rows, ROWS_PER_FILE))


def _begun(split: str) -> hashlib._Hash:
    return hashlib.sha256(f"cfaug plan 3 {split}\n".encode())  # 3: of the lines, which are older than the arrays


def _sealed(header: Mapping[str, Any]) -> str:
    """The digest of a header's other fields: what the digests of the files do not cover."""
    return hashlib.sha256(canonical_json({name: header[name] for name in header if name != "sha256"})).hexdigest()


def _read(storage: Storage, name: str) -> bytes:
    try:
        return storage.read(name)
    except OSError as error:
        raise unreadable(error, f"{storage.url.rstrip('/')}/{name}", "plan first") from None
