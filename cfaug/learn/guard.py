"""The leak guard: nothing that validation or test is made of reaches training, and the error names the sample.

    the shards     every sample's source is of the train split                      always looked at
    the base       a data set that says which split it is says train                and those inside it: ``split``, ``train``
    held out       no image of the data sets named is the source of a sample        where they are given

On by default wherever shards enter a training loop; ``guard=False`` is for looking at counterfactuals of a test split, on
purpose. It compares pixels, not keys: validation may well have a file of the same name. Not promised: that a held-out
image which was cropped or compressed again is recognised, nor one that was never handed to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from cfaug.errors import DataError, UsageError
from cfaug.learn.pictures import recognisable
from cfaug.offline.shards import SPLITS, ShardReader

TRAIN = "train"
PATIENCE = 5.0  # seconds before a progress bar appears


def open_training_shards(
    shards: str | Path | ShardReader, guard: bool = True, held_out: Iterable[Any] = ()
) -> ShardReader:
    """A reader of `shards` (OUT, OUT/shards, a URL, or a reader), whose every sample may be trained on.

    `held_out`: data sets (map-style, untransformed or with a ``transform``) none of whose images may be a source; each
    image is decoded once. DataError names the first sample that is not of the train split, or whose source is held out.
    """
    reader = shards if isinstance(shards, ShardReader) else ShardReader(shards)
    if guard:
        others = np.flatnonzero(reader.splits != SPLITS.index(TRAIN))
        if len(others):
            row = reader.index[int(others[0])]
            raise DataError(
                f"{reader.directory}: expected counterfactuals of the train split only, came sample {row.key!r} of "
                f"split {row.split!r}; training on it would leak, generate from the train split"
            )
    for number, dataset in enumerate(held_out):
        _refuse_sources(reader, dataset, number)
    return reader


def refuse_split(dataset: Any) -> None:
    """UsageError for a data set that says that it, or one inside it, is validation or test (``split``, ``train=False``)."""
    from cfaug.learn.bases.facts import splits_of

    said = sorted(split for split in splits_of(dataset) if split.lower().startswith(("val", "test")))
    if said:
        raise UsageError(
            f"base: expected the train split, came split {', '.join(map(repr, said))}; validation and test are not augmented "
            "(guard=False where that is what you want)"
        )


def _refuse_sources(reader: ShardReader, dataset: Any, number: int) -> None:
    from cfaug.learn.bases import open_base

    base = open_base(dataset)
    for i in tqdm(range(len(base)), desc="comparing held-out images with the shards", delay=PATIENCE, leave=False):
        image = recognisable(base.picture(i))
        if image is None:
            continue
        found = reader.by_pixels.find(reader.lookup(image))
        rows = reader.by_pixels.rows[found.start : found.start + found.counterfactuals + found.nulls]
        for row in np.asarray(rows).tolist():
            if reader.confirms(row, image):
                raise DataError(
                    f"{reader.directory}: expected no counterfactual of a held-out image, came sample "
                    f"{reader.index[row].key!r}, whose source is image {i} of held_out[{number}]; training on it would leak: "
                    "split the data before generating"
                )
