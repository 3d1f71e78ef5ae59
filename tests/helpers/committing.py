"""Small shards to commit, in this process and in others: ``python committing.py DIRECTORY NUMBER [NUMBER ...]``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cfaug.offline.commit import Destination
from cfaug.offline.format import ManifestRow, Sample
from cfaug.offline.storage import open_storage
from cfaug.offline.write_shard import Staged, stage_shard

ENVIRONMENT: dict[str, str | int] = {"batch_size": 4, "device": "cpu"}
IDENTITY: dict[str, str | int] = {"plan": "p", "model": "m", **ENVIRONMENT}


def name(number: int) -> str:
    return f"cf-train-{number:06d}.tar"


def samples(number: int, count: int = 3, seed: int = 0, size: int = 9) -> list[Sample]:
    rng = np.random.default_rng([number, seed])
    found = []
    for i in range(count):
        key = f"train-{number:06d}-{i}"
        record = {
            "schema": 1, "key": key, "source_key": f"{i}.png", "source_digest": "0" * 64, "split": "train", "do": {},
            "attributes": {"colour": "red"}, "factual": {"colour": "red"}, "target": "1", "seed": i, "replica": 0,
            "model": "m", "quality": {"change_l1": 0.25},
        }  # fmt: skip
        found.append(Sample(key, rng.integers(0, 256, (size, 7, 3), dtype=np.uint8), record))
    return found


def staged(place: Path, number: int, plan: str = "p", **options: int) -> Staged:
    return stage_shard(place, name(number), samples(number, **options), plan, "m", ENVIRONMENT)


def commit(destination: Destination, number: int, plan: str = "p", **options: int) -> ManifestRow:
    with destination.staging() as place:
        return destination.commit(staged(place, number, plan, **options))


def claim(destination: Destination, identity: dict[str, str | int] = IDENTITY, **options: bool) -> None:
    """A session in which nothing is done."""
    with destination.session(identity, **options):
        pass


def started(place: str | Path, numbers: Iterable[int]) -> subprocess.Popen[bytes]:
    """Another process that commits `numbers`, says ``ready`` before the first and the number after each."""
    command = [sys.executable, __file__, str(place), *map(str, numbers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


if __name__ == "__main__":
    there = Destination(open_storage(sys.argv[1]))
    print("ready", flush=True)
    for word in sys.argv[2:]:
        commit(there, int(word))
        print(word, flush=True)
