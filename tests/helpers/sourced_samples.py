"""Samples of sources with pixels of their own, committed in shards, with index.npy or without."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cfaug.data import pixel_digest
from cfaug.data.pixel_hashes import pixels_hash, sample_hash
from cfaug.offline import ShardReader
from cfaug.offline.commit import open_destination
from cfaug.offline.format import Sample, SourceHashes
from cfaug.offline.index import publish_index
from cfaug.offline.storage import LocalStorage
from cfaug.offline.write_shard import stage_shard


def picture(*seed: int, size: tuple[int, int] = (6, 5), channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, channels), dtype=np.uint8)


def made(
    i: int,
    source: int,
    null: bool = False,
    split: str = "train",
    hashed: bool = True,
    of: np.ndarray | None = None,
    key: str | None = None,
) -> Sample:
    """Sample `i` of source `source`, whose pixels are `of`."""
    of = picture(source, 1) if of is None else of
    record = {
        "schema": 1, "key": f"k{i}", "source_key": f"source \u00fc {source}.png" if key is None else key,
        "source_digest": pixel_digest(of), "split": split, "do": {} if null else {"colour": "red"}, "attributes": {},
        "factual": {}, "target": "1", "seed": i, "replica": 0, "model": "m", "quality": {},
    }  # fmt: skip
    hashes = SourceHashes(sample_hash(of), pixels_hash(of)) if hashed else None
    return Sample(f"k{i}", picture(i, 2), record, hashes)


def committed(place: Path, shards: list[list[Sample]], image: str = "png") -> Path:
    destination = open_destination(place)
    with destination.session(), destination.staging() as staging:
        for n, samples in enumerate(shards):
            row = destination.commit(stage_shard(staging, f"cf-train-{n:06d}.tar", samples, "p", "m", image=image))
            destination.publish([row.name], {})
    return place / "shards"


def published(place: Path, shards: list[list[Sample]], image: str = "png") -> Path:
    found = committed(place, shards, image)
    publish_index(LocalStorage(found), ShardReader(found).manifest)
    return found


def is_mapped(reader: ShardReader) -> bool:
    return reader._index.path is not None
