"""Shard format 1: the names, rows and records on disk, and the checks of them.

A shard is a USTAR file of samples; a sample is two members, ``<key>.json`` and ``<key>.png`` (or ``.webp``). Beside it
an index (JSON lines) says where each member's bytes are and what their sha256 is; the manifest (JSON lines) says which
shards exist and vouches for tar and index by size and sha256:

    manifest row -> sha256(index) -> sha256(member)        so one random read can be checked without reading the shard

The format does not promise authenticity: whoever can write the directory can write a consistent one. Every size, count and
nesting of a tar, an index and a row is therefore bounded here; the number of rows of a manifest is not (about 1 KB per shard).
``shards/README.md`` is the same contract in words, for other implementers.
"""

from __future__ import annotations

import builtins
import hashlib
import json
import math
import re
import tarfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cfaug import config
from cfaug.data.datasets import SPLITS as SPLITS
from cfaug.data.source_types import TRAINED
from cfaug.errors import ShardError, shown

FORMAT = 1
MANIFEST = "manifest.jsonl"
LOCK = ".lock"
CARD = "README.md"
PLAN_HEADER = "plan.json"
INDEX_FILE = "index.npy"  # one array for all samples, which readers map; it is derived from the shards
TAR, INDEX = ".tar", ".index.jsonl"  # what a shard's two files end in
KEY = re.compile(r"[A-Za-z0-9_-]{1,120}", re.ASCII)
TAR_NAME = re.compile(r"[A-Za-z0-9_-]{1,120}\.tar", re.ASCII)
INDEX_NAME = re.compile(r"[A-Za-z0-9_-]{1,120}\.index\.jsonl", re.ASCII)
# A USTAR name has 100 bytes and can only be longer across a slash, which a key must not have: 95 plus ".json".
MAX_KEY = 95  # characters that are written; a reader accepts what KEY says
SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
XXH3 = re.compile(r"[0-9a-f]{16}", re.ASCII)
TRAIN = SPLITS[0]  # the one split that is trained on
PLANNED_NAME = re.compile(rf"cf-({'|'.join(SPLITS)})-([0-9]{{6,}})(\.tar|\.index\.jsonl)", re.ASCII)
IMAGE_FIELDS = ("png", "webp")
# How images may be stored, all lossless -> their field. Stored PNGs are not compressed: larger, and quick to read.
IMAGES = {name: name.partition("-")[0] for name in config.IMAGES}
MAX_PIXELS = 1 << 24  # 4096 x 4096: no model makes larger images, and to decode one takes Pillow ten bytes per pixel
MAX_IMAGE_BYTES = 1 << 26  # no lossless image of MAX_PIXELS needs more
MAX_RECORD_BYTES = 1 << 20
MAX_NESTING = 200  # brackets in one JSON object, hence also its depth; ours have a dozen
MAX_SAMPLES = 100_000  # in a shard, so that the keys which a scan without a manifest remembers stay few
MAX_LINE = 1 << 16  # bytes of an index row or a manifest row
MAX_INDEX_BYTES = 1 << 26
MAX_SEED = 1 << 53  # exact in every JSON reader, and an int64 in Arrow
BLOCK = 512  # bytes; a tar is made of blocks
TAR_RECORD = 20 * BLOCK  # bytes; the size of a whole tar, zeros included, is a multiple of this
RECORD_FIELDS = (
    "schema", "key", "source_key", "source_digest", "split", "do", "attributes",
    "factual", "target", "seed", "replica", "model", "quality",
)  # fmt: skip

_NAMES = frozenset(RECORD_FIELDS)
_TEXTS = ("key", "source_key", "source_digest", "split", "model")
_COUNTS = ("schema", "seed", "replica")
_OBJECTS = ("do", "attributes", "factual", "quality")

Value = str | float | None
Record = dict[str, Any]


class SourceHashes(NamedTuple):
    """``sample_hash`` and ``pixels_hash`` (:mod:`cfaug.data.pixel_hashes`) of a sample's source image."""

    sample: int
    pixels: int


@dataclass(frozen=True)
class Sample:
    """One image of a shard: `key`, `image` (uint8, height x width x 1 or 3) and the JSON `record`.

    `source`: hashes of the source's pixels, for the index; None in samples that were read. Without them its row has no ``xxh3``.
    `source_type`: what its file is to be marked with (:mod:`cfaug.data.source_types`).
    """

    key: str
    image: npt.NDArray[np.uint8]
    record: Record
    source: SourceHashes | None = None
    source_type: str = TRAINED


class Member(NamedTuple):
    """Where one tar member's payload is: byte offset in the tar, length in bytes, sha256 hex."""

    offset: int
    size: int
    sha256: str


class Quick(NamedTuple):
    """Hashes that are quick to compute, of 16 hex digits each: of the image's bytes, and two of the source's pixels."""

    image: str
    sample: str
    pixels: str


class IndexRow(NamedTuple):
    """One sample as the index knows it, enough to match sources without opening the tar. One of `png` and `webp` is None.

    Rows that were written before there was `xxh3` do not have it.
    """

    key: str
    source_key: str
    source_digest: str
    split: str
    null: bool
    json: Member
    png: Member | None = None
    webp: Member | None = None
    xxh3: Quick | None = None

    @property
    def image_field(self) -> str:
        """``png`` or ``webp``."""
        return "png" if self.webp is None else "webp"

    @property
    def image(self) -> Member:
        """Where the image's bytes are, in either of the two formats."""
        return self.webp or self.png  # type: ignore[return-value]  # exactly one of them is there

    def line(self) -> bytes:
        return _line({name: value for name, value in self._asdict().items() if value is not None})

    @staticmethod
    def parse(line: bytes, where: str) -> IndexRow:
        """The row of one line; :class:`ShardError` names `where` when the line is not an index row."""
        fields = parse_object(line, MAX_LINE, where)
        try:
            (image,) = (name for name in IMAGE_FIELDS if name in fields)
            quick = {"xxh3": Quick(*fields["xxh3"])} if "xxh3" in fields else {}
            row = IndexRow(**{**fields, "json": Member(*fields["json"]), image: Member(*fields[image]), **quick})
            texts = (row.source_key, row.source_digest, row.split)
            sound = bool(KEY.fullmatch(row.key)) and all(isinstance(t, str) for t in texts) and type(row.null) is bool
            sound = sound and len(fields) == 7 + len(quick) and all(XXH3.fullmatch(text) for text in row.xxh3 or ())
            for member, most in ((row.json, MAX_RECORD_BYTES), (row.image, MAX_IMAGE_BYTES)):
                counts = type(member.offset) is type(member.size) is int and member.offset >= BLOCK
                sound = sound and counts and 0 < member.size <= most and bool(SHA256.fullmatch(member.sha256))
        except (KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            raise ShardError(f"{where}: expected an index row of shard format {FORMAT}, got {shown(line)}")
        return row


@dataclass(frozen=True)
class ManifestRow:
    """One committed shard: what vouches for the bytes of `name` and of its `index`.

    `plan` and `model` are the digests that produced it, `environment` the rest of what its bytes depend on
    (batch size, threads, device, versions). `bytes` and `index_bytes` are sizes in bytes.
    """

    name: str
    count: int
    bytes: int
    sha256: str
    index: str
    index_bytes: int
    index_sha256: str
    plan: str
    model: str
    environment: Mapping[str, str | int]
    format: int = FORMAT

    def line(self) -> builtins.bytes:
        """One line of manifest.jsonl; `row_sha256` covers the rest, so that a flipped bit is seen here too."""
        fields = asdict(self)
        return _line({**fields, "row_sha256": hashlib.sha256(_line(fields)).hexdigest()})

    @staticmethod
    def parse(line: builtins.bytes, where: str) -> ManifestRow:
        """The row of one line; :class:`ShardError` names `where` when the line is damaged or of a different format."""
        fields = parse_object(line, MAX_LINE, where)
        if fields.get("format", FORMAT) != FORMAT:
            raise ShardError(f"{where}: expected shard format {FORMAT}, got {fields['format']!r}; upgrade cfaug")
        claimed = fields.pop("row_sha256", None)
        if claimed != hashlib.sha256(_line(fields)).hexdigest():
            raise ShardError(
                f"{where}: expected a row with the digest that it states, got a different one, so the manifest was damaged or "
                "edited; restore it, or generate with --overwrite"
            )
        try:
            row = ManifestRow(**fields)
            counts = all(type(n) is int and n >= 0 for n in (row.count, row.bytes, row.index_bytes))
            texts = all(isinstance(t, str) for t in (row.plan, row.model)) and isinstance(row.environment, dict)
            patterns = ((TAR_NAME, row.name), (INDEX_NAME, row.index), (SHA256, row.sha256), (SHA256, row.index_sha256))
            sound = counts and texts and all(pattern.fullmatch(text) for pattern, text in patterns)
            sound = sound and row.count <= MAX_SAMPLES and row.index_bytes <= MAX_INDEX_BYTES
        except TypeError:
            sound = False
        if not sound:
            raise ShardError(f"{where}: expected a manifest row of shard format {FORMAT}, got {shown(line)}")
        return row


def check_record(record: Any, where: str) -> Record:
    """`record` itself when it has exactly the fields and types of format 1, else :class:`ShardError` naming `where`.

    Every read does this, and the image beside it may have only 32 px: hence plain loops, and messages only on failure.
    """
    if not isinstance(record, dict) or not record.keys() >= _NAMES:
        got = sorted(map(repr, record)) if isinstance(record, dict) else type(record).__name__
        raise ShardError(f"{where}: expected a record with the fields {', '.join(RECORD_FIELDS)}, got {got!s:.400}")
    for name in _TEXTS:
        if not isinstance(record[name], str):
            raise ShardError(f"{where}: expected text in field {name!r}, got {record[name]!r:.120}")
    for name in _COUNTS:
        if type(record[name]) is not int or not 0 <= record[name] < MAX_SEED:
            raise ShardError(f"{where}: expected a whole number in field {name!r}, got {record[name]!r:.120}")
    if record["split"] not in SPLITS:
        raise ShardError(f"{where}: expected a split among {', '.join(SPLITS)}, got {record['split']!r:.80}")
    if record["schema"] != FORMAT:
        raise ShardError(f"{where}: expected a record of shard format {FORMAT}, got {record['schema']}; upgrade cfaug")
    for name in _OBJECTS:
        values = record[name]
        if not isinstance(values, dict) or not _is_flat(values):
            raise ShardError(f"{where}: expected names with texts or finite numbers in {name!r}, got {values!r:.120}")
    for name in record.keys() - _NAMES:  # of a later version: more fields may come, none is renamed
        if not (_is_value(record[name]) or (isinstance(record[name], dict) and _is_flat(record[name]))):
            raise ShardError(
                f"{where}: expected a text, a number or a flat object in field {name!r}, got {record[name]!r:.120}"
            )
    if not _is_value(record["target"]):
        raise ShardError(f"{where}: expected a text or a finite number as 'target', got {record['target']!r:.120}")
    return record


def shard_name(split: str, number: int) -> str:
    """The file name of a plan's shard: ``cf-train-000000.tar``."""
    return f"cf-{split}-{number:06d}{TAR}"


def shard_pattern(split: str) -> str:
    """The glob that all of a split's shards match, for catalogues and other readers."""
    return f"cf-{split}-*{TAR}"


def planned(name: str) -> tuple[str, int] | None:
    """Split and number of the shard that a tar or an index is named after; None for every other name."""
    found = PLANNED_NAME.fullmatch(name)
    if found is None:
        return None
    split, number = found[1], int(found[2])
    return (split, number) if name.removesuffix(found[3]) + TAR == shard_name(split, number) else None


def index_name(tar: str) -> str:
    """The file name of the index of a shard."""
    return tar.removesuffix(TAR) + INDEX


def header(name: str, size: int) -> bytes:
    """The 512 bytes before a payload of `size` bytes called `name`: the only kind of header in format 1."""
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.uname, member.gname = size, 0o444, "cfaug", "cfaug"
    return member.tobuf(tarfile.USTAR_FORMAT)


def padded(size: int) -> int:
    """`size` bytes of payload, rounded up to whole tar blocks."""
    return -(-size // BLOCK) * BLOCK


def tar_size(end: int) -> int:
    """Bytes of a whole tar whose last member ends at `end`: two zero blocks, and zeros up to a multiple of 10240."""
    return -(-(end + 2 * BLOCK) // TAR_RECORD) * TAR_RECORD


def parse_object(data: bytes, most: int, where: str) -> dict[str, Any]:
    """The one JSON object in `data`: ASCII, at most `most` bytes, no NaN or infinity, no name twice, not nested deeply.

    :class:`ShardError` names `where`. Sizes and brackets are counted before parsing: the parser never sees more.
    """
    if len(data) > most:
        raise ShardError(f"{where}: expected at most {most} bytes of JSON, got {len(data)}; {_DAMAGED}")
    if data.count(b"{") + data.count(b"[") > MAX_NESTING:
        raise ShardError(f"{where}: expected one flat JSON object, got {shown(data)}, too deeply nested; {_DAMAGED}")
    try:
        text = data.decode("ascii")
        fields, end = _DECODER.raw_decode(text)
        if end != len(text) and text[end:].strip():
            raise ValueError("more than one object")
        if b"\\u" in data:
            json.dumps(fields, ensure_ascii=False).encode("utf-8")  # half a surrogate pair cannot be printed
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise ShardError(f"{where}: expected one object of plain ASCII JSON, got {shown(data)}; {_DAMAGED}")
    return fields


def canonical_json(fields: Any) -> bytes:
    """Compact ASCII JSON in the given order, NaN refused: the same value gives the same bytes everywhere."""
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def _line(fields: Mapping[str, Any]) -> bytes:
    return canonical_json(fields) + b"\n"


def _is_flat(values: dict[Any, Any]) -> bool:
    for name, value in values.items():
        if not isinstance(name, str) or not (type(value) is str or _is_value(value)):
            return False
    return True


def _is_value(value: object) -> bool:
    if value is None or isinstance(value, str):
        return True
    return math.isfinite(value) if type(value) is float else type(value) is int and -MAX_SEED <= value <= MAX_SEED


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name occurs twice: readers differ in which one they take")
    return fields


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DAMAGED = "generate this shard again, it is damaged"
_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refuse)
