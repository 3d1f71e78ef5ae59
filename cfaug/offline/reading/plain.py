"""Index rows as cfaug writes them, taken apart by one regular expression: three times as fast as JSON and its checks."""

from __future__ import annotations

import re

from cfaug.offline.format import (
    BLOCK,
    MAX_IMAGE_BYTES,
    MAX_LINE,
    MAX_RECORD_BYTES,
    SPLITS,
    IndexRow,
    Member,
    Quick,
)

_MEMBER = r'\[([1-9][0-9]{0,15}),([1-9][0-9]{0,8}),"([0-9a-f]{64})"\]'
# no quote, backslash or bracket in the source key: so JSON would say the same, and no bound on brackets is near
_PLAIN = re.compile(
    r'\{"key":"([A-Za-z0-9_-]{1,120})","source_key":"([ !#-Z^-z|~]*)","source_digest":"([0-9a-f]{64})",'
    rf'"split":"({"|".join(SPLITS)})","null":(true|false),"json":{_MEMBER},"(png|webp)":{_MEMBER}'
    r'(?:,"xxh3":\["([0-9a-f]{16})","([0-9a-f]{16})","([0-9a-f]{16})"\])?\}\n?',
    re.ASCII,
)


def parse_row(line: bytes, where: str) -> IndexRow:
    """What :meth:`IndexRow.parse` says of `line`, its errors included."""
    return _plain(line) or IndexRow.parse(line, where)


def _plain(line: bytes) -> IndexRow | None:
    """The row of a line in which nothing needs an escape: nearly all. None for every other line, right or wrong."""
    found = _PLAIN.fullmatch(line.decode("latin-1")) if len(line) <= MAX_LINE else None
    if found is None:
        return None
    key, source, digest, split, null, at, size, sha256, field, image_at, image_size, image_sha256, *quick = (
        found.groups()
    )
    json, image = Member(int(at), int(size), sha256), Member(int(image_at), int(image_size), image_sha256)
    if min(json.offset, image.offset) < BLOCK or json.size > MAX_RECORD_BYTES or image.size > MAX_IMAGE_BYTES:
        return None
    png, webp = (image, None) if field == "png" else (None, image)
    xxh3 = None if quick[0] is None else Quick(*quick)
    return IndexRow(key, source, digest, split, null == "true", json, png, webp, xxh3)
