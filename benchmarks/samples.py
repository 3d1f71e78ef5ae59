"""The records that benchmarks write, and the counterfactuals that have them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cfaug.data import pixel_digest
from cfaug.data.pixel_hashes import pixels_hash, sample_hash
from cfaug.offline.format import Sample, SourceHashes

Pixels = npt.NDArray[np.uint8]


def record_of(i: int, source_key: str, source: Pixels | None = None, **changes: Any) -> dict[str, Any]:
    """The record of sample `i`, of the image `source` where its digest matters; with `changes` in its fields."""
    found = {
        "schema": 1, "key": f"train-{i:09d}", "source_key": source_key,
        "source_digest": "0" * 64 if source is None else pixel_digest(source), "split": "train", "do": {"colour": "red"},
        "attributes": {"colour": "red"}, "factual": {"colour": "blue"}, "target": "a", "seed": i, "replica": 0,
        "model": "0" * 64, "quality": {"change_l1": 0.25},
    }  # fmt: skip
    return {**found, **changes}


def counterfactual(i: int, source_key: str, source: Pixels, made: Pixels, **changes: Any) -> Sample:
    """`made` of `source`, with the quick hashes by which a training loop recognises the source."""
    record = record_of(i, source_key, source, **changes)
    return Sample(record["key"], made, record, SourceHashes(sample_hash(source), pixels_hash(source)))
