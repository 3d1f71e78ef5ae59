"""A source of 40 images whose shards are written by the real writer: two counterfactuals and one null each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cfaug.data import ArrayDataset, Attribute, Schema, pixel_digest
from cfaug.offline import write_shard
from cfaug.offline.read import Sample

N = 40


def source(split: str = "train", seed: int = 0, transform: Any = None) -> ArrayDataset:
    """digit -> brightness of the left half (0, 1), colour = red or blue; image i is otherwise noise."""
    rng = np.random.default_rng([seed, len(split)])
    images = rng.integers(0, 255, (N, 8, 8, 3), dtype=np.uint8)
    table = pd.DataFrame(
        {"digit": [str(i % 2) for i in range(N)], "colour": ["red" if i % 4 < 3 else "blue" for i in range(N)]},
        index=pd.Index([f"{split}-{i:02d}" for i in range(N)], dtype=object),
    )
    schema = Schema([Attribute("digit"), Attribute("colour")], "digit", ["colour"]).fit(table)
    return ArrayDataset(images, table, schema, split, transform)


def write(directory: Path, data: ArrayDataset, kinds: tuple[str, ...] = ("cf", "cf", "null"), every: int = 1) -> Path:
    """Pixels of row (i, r) are all 10 r + 1, so a test can tell which sample it was given."""
    samples = []
    for i in range(0, len(data), every):
        factual = dict(data.table.iloc[i])
        for r, kind in enumerate(kinds):
            do = {} if kind == "null" else {"colour": "blue" if r else "red"}
            key = f"{data.split}-{i:06d}-{r}"
            record = {
                "schema": 1, "key": key, "source_key": data.key(i), "source_digest": pixel_digest(data.image(i)),
                "split": data.split, "do": do, "attributes": {**factual, **do}, "factual": factual,
                "target": factual["digit"], "seed": i, "replica": r, "model": "m" * 64, "quality": {"change_l1": 0.0},
            }  # fmt: skip
            samples.append(Sample(key, np.full((8, 8, 3), 10 * r + 1, np.uint8), record))
    write_shard(directory, "cf-train-000000.tar", samples, "p" * 64, "m" * 64)
    return directory
