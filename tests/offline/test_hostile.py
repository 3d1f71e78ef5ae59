"""Hostile shards: no code runs, nothing is written elsewhere, memory stays bounded, and one kind of error comes out.

Every shard of the corpus is read in three ways by a process of its own, which may not take much memory: strict scan
without a manifest, random reads under a manifest whose digests are right, and verification.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from helpers import hostile

from cfaug.errors import ShardError
from cfaug.offline.decoders import decode_image
from cfaug.offline.format import IndexRow, parse_object
from cfaug.offline.read import ShardReader
from cfaug.offline.scan import scan
from cfaug.offline.verify import verify

TESTS = Path(__file__).parents[1]
MEMORY = 200  # MB that a reader may take for one hostile shard
SECONDS = 6.0  # of processor time, for one shard in one way


def read_all(place: Path) -> int:
    reader = ShardReader(place)
    return len([reader.sample(i) for i in range(len(reader))])


def verified(place: Path) -> int:
    report = verify(place)
    if not report.ok:
        raise ShardError("\n".join(report.problems))
    return report.counts["samples"]


def scanned(place: Path) -> int:
    return sum(1 for _ in scan(place / "cf-train-000000.tar"))


WAYS: dict[str, Callable[[Path], int]] = {"scan": scanned, "reader": read_all, "verify": verified}


def attempt(way: str, place: Path) -> dict[str, Any]:
    """What came out: samples, or the error's type and text; processor seconds; growth of memory at its peak, in MB."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is in use now
    before, began = peak(), time.process_time()
    found: dict[str, Any] = {"place": place.name, "way": way, "samples": None, "error": None, "text": ""}
    try:
        found["samples"] = WAYS[way](place)
    except BaseException as error:
        found["error"], found["text"] = type(error).__name__, str(error)
    return {**found, "seconds": time.process_time() - began, "memory": peak() - before}


def peak() -> float:
    """Most memory of this process since the peak was set back, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def main(good: Path, corpus: Path) -> None:
    """Each shard of `corpus` in each way, after a good one; one JSON line each."""
    for way in WAYS:
        print(json.dumps(attempt(way, good)), flush=True)
    with Path("/proc/self/statm").open() as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    limit = used + (2 * MEMORY << 20)  # address space, not what is touched: hence twice
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for place in sorted(corpus.iterdir()):
        for way in WAYS:
            print(json.dumps(attempt(way, place)), flush=True)


def read_apart(good: Path, corpus: Path) -> list[dict[str, Any]]:
    command = [sys.executable, __file__, str(good), str(corpus)]
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 300, "cwd": corpus.parent}
    done = subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": str(TESTS)}, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tar = hostile.ended(hostile.pair(hostile.KEYS[0]) + hostile.pair(hostile.KEYS[1]))
    return hostile.consistent(tmp_path_factory.mktemp("good") / "good", hostile.Shard("good", tar))


def test_a_good_shard_is_read_in_every_way(good: Path) -> None:
    """Otherwise everything below would be refused for another reason than it seems."""
    assert {way: read(good) for way, read in WAYS.items()} == {"scan": 2, "reader": 2, "verify": 2}


@pytest.mark.slow
def test_the_largest_sample_is_within_bounds(tmp_path: Path, good: Path) -> None:
    """The largest image of the format needs most of what is allowed: so the measure measures, and the bound is one."""
    tar = hostile.ended(hostile.pair(hostile.KEYS[0], hostile.picture(size=(4096, 4096), compress_level=1)))
    (tmp_path / "corpus").mkdir()
    hostile.consistent(tmp_path / "corpus" / "0", hostile.Shard("large", tar))
    for one in read_apart(good, tmp_path / "corpus")[3:]:
        assert one["samples"] == 1, one
        assert 100 < one["memory"] < 2 * MEMORY, one


def test_the_canary_sings(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(hostile.Canary(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_hostile_shards(every: int, tmp_path: Path, good: Path) -> None:
    canary, corpus = tmp_path / "canary", tmp_path / "corpus"
    corpus.mkdir()
    shards: dict[str, hostile.Shard] = {}
    for n, shard in enumerate(islice(hostile.shards(canary), 0, None, every)):
        place = f"{n:03d}"
        hostile.consistent(corpus / place, shard)
        shards[place] = shard._replace(tar=b"")
    assert len(shards) > 100 / every
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    found = read_apart(good, corpus)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before  # no canary, and nothing else either
    for one in found[3:]:
        shard = shards[one["place"]]
        what = (shard.name, one)
        assert one["seconds"] < SECONDS, what
        assert one["memory"] < MEMORY, what
        if one["way"] == "reader" and not shard.reader:
            assert one["error"] in (None, "ShardError"), what  # headers and padding are nothing to it
        else:
            assert one["error"] == "ShardError", what
            assert "cf-train-000000.tar" in one["text"], what
            assert one["way"] == "verify" or "\n" not in one["text"], what


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_hostile_manifests_and_indices(every: int, tmp_path: Path, good: Path) -> None:
    corpus = tmp_path / "corpus"
    names = {}
    for n, (name, build) in enumerate(islice(hostile.directories(), 0, None, every)):
        place = corpus / f"{n:03d}"
        place.mkdir(parents=True)
        build(place)
        names[place.name] = name
    found = read_apart(good, corpus)
    for one in found[3:]:
        what = (names[one["place"]], one)
        assert one["seconds"] < SECONDS, what
        assert one["memory"] < MEMORY, what
        if one["way"] == "verify" or (one["way"] == "reader" and "another source" not in what[0]):
            assert one["error"] == "ShardError", what
        if one["way"] == "scan":
            assert one["samples"] == 2, what  # it has no need of either


def test_bounds_are_checked_before_anything_is_parsed() -> None:
    """By their own messages: Python's recursion limit and Pillow's own bounds would refuse some of these later."""
    with pytest.raises(ShardError, match="too deeply nested"):
        parse_object(b'{"a":' + b"[" * 300 + b"]" * 300 + b"}", 1 << 20, "here")
    with pytest.raises(ShardError, match="at most 9 bytes"):
        parse_object(b'{"a":1   }', 9, "here")
    with pytest.raises(ShardError, match="expected an image of 1 to 16777216 pixels, got 60000x60000"):
        decode_image(hostile.png(width=60000, height=60000), "here")
    line = json.dumps(hostile.index_row("k", (512, b"x"), (1536, b"y"), "png")).encode()
    assert IndexRow.parse(line, "here").image.size == 1
    with pytest.raises(ShardError, match="expected an index row"):
        IndexRow.parse(line.replace(b"[1536, 1,", b"[1536, 67108865,"), "here")


class Endless(io.RawIOBase):
    """A tar of as many samples as anyone reads: every key is new, nothing is kept."""

    def __init__(self) -> None:
        self.parts = self._all()
        self.rest = b""

    def _all(self) -> Iterator[bytes]:
        n = 0
        while True:
            yield hostile.pair(f"k{n}")
            n += 1

    def read(self, size: int = -1) -> bytes:
        while len(self.rest) < size:
            self.rest += next(self.parts)
        data, self.rest = self.rest[:size], self.rest[size:]
        return data


def test_an_endless_shard_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfaug.offline.scan.MAX_SAMPLES", 200)
    samples = scan(Endless(), "the stream")
    assert len(list(islice(samples, 200))) == 200
    with pytest.raises(ShardError, match=r"the stream, sample 'k200': expected at most 200 samples"):
        next(samples)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
