"""The likeliest things that go wrong with shards, each said in one line that says what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers import damages

from cfaug.errors import CfaugError, ShardError, UsageError
from cfaug.offline import ShardReader, verify
from cfaug.offline.scan import scan

TAR, INDEX, MANIFEST = damages.NAME, damages.INDEX, "manifest.jsonl"


class Case(NamedTuple):
    name: str
    break_it: Callable[[Path], Any]
    call: Callable[[Path], Any]
    kind: type[CfaugError]
    fragment: str


def cut(name: str, by: int = 1) -> Callable[[Path], Any]:
    return lambda place: (place / name).write_bytes((place / name).read_bytes()[:-by])


def gone(name: str) -> Callable[[Path], Any]:
    return lambda place: (place / name).unlink()


def written(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
    return lambda place: (place / name).write_bytes(change((place / name).read_bytes()))


def nothing(place: Path) -> None:
    pass


def scanned(place: Path) -> None:
    list(scan(place / TAR))


def first_image(place: Path) -> None:
    ShardReader(place).image(0)


def of_format_2(lines: bytes) -> bytes:
    return b"".join(json.dumps({**json.loads(line), "format": 2}).encode() + b"\n" for line in lines.splitlines())


CASES = [
    Case("a cut tar", cut(TAR), ShardReader, ShardError, f"{TAR}: expected 10240 bytes, got 10239 (truncated?): generate"),
    Case("no tar", gone(TAR), ShardReader, ShardError, f"{TAR}: in the manifest, but not there: generate it again"),
    Case("a cut index", cut(INDEX), ShardReader, ShardError, f"{TAR}: its index {INDEX}: expected "),
    Case("a changed index", written(INDEX, lambda b: b.replace(b"train", b"tra1n")), ShardReader, ShardError, "is not the one in"),
    Case("a changed manifest", written(MANIFEST, lambda b: b.replace(b'"count":3', b'"count":2')), ShardReader, ShardError, "restore it, or generate with --overwrite"),
    Case("a later format", written(MANIFEST, of_format_2), ShardReader, ShardError, "shard format 2, this cfaug reads 1: upgrade cfaug"),
    Case("a changed image", written(TAR, lambda b: b.replace(b"IDAT", b"IDAX", 1)), first_image, ShardError, f"{TAR}, sample 'train-000000000': expected the bytes the index vouches for, got other bytes: run cfaug verify"),
    Case("an empty manifest", written(MANIFEST, lambda b: b""), ShardReader, ShardError, "got an empty one: generate first"),
    Case("no manifest", gone(MANIFEST), ShardReader, ShardError, f"{MANIFEST} with committed shards, got none: generate first"),
    Case("no run to verify", gone(MANIFEST), verify, ShardError, "got none: is this a cfaug run"),
    Case("no directory", nothing, lambda place: ShardReader(place / "typo"), ShardError, "there is no such directory: check the path"),
    Case("a file for a directory", nothing, lambda place: ShardReader(place / TAR), ShardError, TAR),
    Case("a place of no type", nothing, lambda place: ShardReader(3), UsageError, "shards: expected a path or a URL, got int"),  # type: ignore[arg-type]
    Case("an unknown protocol", nothing, lambda place: ShardReader("gopher-x://a/b"), UsageError, "Protocol not known"),
    Case("no tar", written(TAR, lambda b: b"<html>".ljust(len(b))), scanned, ShardError, "expected the header of a member"),
    Case("no file to scan", gone(TAR), scanned, ShardError, "cannot read"),
    Case("a cut tar to scan", cut(TAR, 2048), scanned, ShardError, "more zero bytes and the end, got fewer: generate this shard again"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_wrong_with_shards_is_one_line(case: Case, tmp_path: Path) -> None:
    damages.make(tmp_path, samples=3)
    case.break_it(tmp_path)
    with pytest.raises(case.kind) as caught:
        case.call(tmp_path)
    assert case.fragment in str(caught.value)
    assert "\n" not in str(caught.value)
