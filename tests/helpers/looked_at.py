"""Shards written by hand, for looking at: every image is the plain colour that its record says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cfaug.offline import write_shard
from cfaug.offline.format import ManifestRow, Sample

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 210), "plum": (150, 40, 170)}


def sample(
    number: int,
    source: str,
    factual: dict[str, Any],
    do: dict[str, Any],
    size: tuple[int, int] = (8, 8),
    change: float = 0.25,
    target: str | None = "digit",
) -> Sample:
    attributes = {**factual, **do}
    image = np.zeros((*size, 3), dtype=np.uint8)
    image[:] = COLOURS[attributes["colour"]]
    record = {
        "schema": 1, "key": f"k{number:07d}", "source_key": source, "source_digest": "0" * 64, "split": "train",
        "do": do, "attributes": attributes, "factual": factual,
        "target": None if target is None else attributes[target], "seed": number, "replica": number % 3,
        "model": "m", "quality": {"change_l1": change},
    }  # fmt: skip
    return Sample(f"k{number:07d}", image, record)


def write(directory: Path, shards: Iterable[Sequence[Sample]]) -> list[ManifestRow]:
    return [
        write_shard(directory, f"cf-train-{number:06d}.tar", samples, "p", "m", {"batch_size": 4})
        for number, samples in enumerate(shards)
    ]
