"""Damage of one shard, one fault at a time, and what each reader says to it.

A fault knows where it is: the sample whose header, payload or padding it hits, or none where it hits the end of the tar.
`judge` asks ours: is it reported, under the shard's name, and the sample's key; does anything altered come out?
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cfaug.errors import ShardError
from cfaug.offline import ShardReader, verify, write_shard
from cfaug.offline.format import BLOCK, Sample, padded
from cfaug.offline.scan import scan

NAME = "cf-train-000000.tar"
INDEX = "cf-train-000000.index.jsonl"


class Region(NamedTuple):
    """Bytes `start` to `end` of the tar: a ``header``, ``payload`` or ``padding`` of a sample, or the ``end``."""

    kind: str
    start: int
    end: int
    key: str | None


class Fault(NamedTuple):
    """The file's bytes after the fault; `key`: of the sample it hits."""

    kind: str
    content: bytes
    key: str | None


def sample(i: int, size: int = 16) -> Sample:
    """A smooth picture and its record; deterministic."""
    rng = np.random.default_rng(i)
    ramp = np.linspace(0, 200, size)[:, None, None] + rng.integers(0, 56, (size, size, 3))
    record = {
        "schema": 1, "key": f"train-{i:09d}", "source_key": f"source {i // 2}.png", "source_digest": "0" * 64,
        "split": "train", "do": {"colour": "red"}, "attributes": {"colour": "red", "thickness": 0.5},
        "factual": {"colour": "blue", "thickness": 0.5}, "target": "1", "seed": i, "replica": 0, "model": "m",
        "quality": {"change_l1": 0.25},
    }  # fmt: skip
    return Sample(f"train-{i:09d}", ramp.astype(np.uint8), record)


def make(directory: Path, samples: int, size: int = 16) -> None:
    """Two shards, so that a manifest that loses one is not an empty one; the faults hit the first."""
    write_shard(directory, NAME, [sample(i, size) for i in range(samples)], "p", "m")
    write_shard(directory, "cf-train-000001.tar", [sample(samples, size)], "p", "m")


def regions(directory: Path) -> list[Region]:
    """Where everything is in the first shard."""
    found = []
    reader = ShardReader(directory)
    for row in reader.index[: reader.manifest[0].count]:
        for member in (row.json, row.image):
            at, end = member.offset, member.offset + member.size
            found += [Region("header", at - BLOCK, at, row.key), Region("payload", at, end, row.key)]
            found += [Region("padding", end, at + padded(member.size), row.key)]
    return [*found, Region("end", found[-1].end, (directory / NAME).stat().st_size, None)]


def truncations(whole: bytes, where: list[Region], rng: np.random.Generator, random: int) -> Iterator[Fault]:
    """Cut at every 512 bytes, and at `random` other places."""
    cuts = [*range(0, len(whole), BLOCK), *rng.integers(0, len(whole), random).tolist()]
    for cut in cuts:
        key = next(region.key for region in where if cut < region.end)
        yield Fault("truncation", whole[:cut], key)


def flips(whole: bytes, where: list[Region], kind: str, rng: np.random.Generator, random: int = 0) -> Iterator[Fault]:
    """One random bit of `random` random bytes of the regions of this kind, or of every byte of theirs."""
    places = [(at, region.key) for region in where if region.kind == kind for at in range(region.start, region.end)]
    if random:
        places = [places[i] for i in rng.integers(0, len(places), random)]
    for at, key in places:
        yield Fault(f"{kind} flip", _with(whole, at, whole[at] ^ 1 << int(rng.integers(8))), key)


def zeroings(whole: bytes, where: list[Region], kind: str) -> Iterator[Fault]:
    """Every byte of the regions of this kind that is not zero, set to zero."""
    for region in where:
        if region.kind == kind:
            for at in range(region.start, region.end):
                if whole[at]:
                    yield Fault(f"{kind} zeroed", _with(whole, at, 0), region.key)


def judge(directory: Path, file: str, fault: Fault, truth: list[Sample], scanning: bool = True) -> dict[str, Any]:
    """What ours says when `file` has the fault's bytes; the file is left as it was."""
    path = directory / file
    whole = path.read_bytes()
    path.write_bytes(fault.content)
    try:
        try:
            problems = verify(directory).problems
        except ShardError as error:
            problems = (str(error),)
        found = {
            "verify": bool(problems),
            "shard": any(NAME in p or "manifest" in p for p in problems),
            "key": fault.key is None or any(f"{NAME}, sample {fault.key!r}" in p for p in problems),
            "altered": _altered(directory, truth),
        }
        if scanning:
            found["scan"] = _scan_refuses(path)
        return found
    finally:
        path.write_bytes(whole)


def same(found: Sample, truth: Sample) -> bool:
    return (found.key, found.record) == (truth.key, truth.record) and np.array_equal(found.image, truth.image)


def _altered(directory: Path, truth: list[Sample]) -> int:
    """Samples that come out of the random reader without an error and are not what was written."""
    expected = {one.key: one for one in truth}
    try:
        reader = ShardReader(directory)
    except ShardError:
        return 0
    wrong = 0
    for i in range(len(reader)):
        try:
            one = reader.sample(i)
        except ShardError:
            continue
        wrong += one.key not in expected or not same(one, expected[one.key])
    return wrong


def _scan_refuses(path: Path) -> bool:
    try:
        for _ in scan(path):
            pass
    except ShardError:
        return True
    return False


def _with(whole: bytes, at: int, value: int) -> bytes:
    return whole[:at] + bytes([value]) + whole[at + 1 :]
