"""The leak guard: nothing that validation or test is made of reaches training, and the error names the sample.

    the shards     every sample's source is of the train split                      always looked at
    the base       a data set that says which split it is says train                and those inside it: ``split``, ``train``, ...
    held out       no image of the data sets named is the source of a sample        where they are given

On by default wherever shards enter a training loop; ``guard=False`` is for looking at counterfactuals of a test split, on
purpose. It compares pixels, not keys: validation may well have a file of the same name. Not promised: that a held-out
image which was cropped or compressed again is recognised, nor one that was never handed to it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from cfaug.errors import DataError, UsageError
from cfaug.learn.image_types import recognisable, said_sizes, size_of
from cfaug.learn.spread import spread
from cfaug.offline.read import SPLITS, TRAIN, ShardReader

log = logging.getLogger(__name__)

PEEKED = 16  # samples whose size is looked at, spread over all
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
    if isinstance(held_out, str | Mapping) or (hasattr(held_out, "__getitem__") and not isinstance(held_out, Sequence)):
        raise UsageError(
            f"held_out: expected data sets in a list, came {type(held_out).__name__}; write held_out=[...]"
        )
    for number, dataset in enumerate(held_out or ()):
        _refuse_sources(reader, dataset, number)
    return reader


def refuse_split(dataset: Any) -> None:
    """UsageError for a data set that says that it, or one inside it, is validation or test.

    It says so as torchvision's do (``split``, ``_split``, ``image_set``, ``train=False``) or by another usual name (``mode``,
    ``phase``, ``is_test``, ...): :func:`cfaug.learn.swap.splits.splits_of`.
    """
    from cfaug.learn.swap.splits import is_evaluated, splits_of

    said = sorted(filter(is_evaluated, splits_of(dataset)))
    if said:
        raise UsageError(
            f"base: expected the train split, came split {', '.join(map(repr, said))}; validation and test are not augmented "
            "(guard=False where that is what you want)"
        )


def _refuse_sources(reader: ShardReader, dataset: Any, number: int) -> None:
    from cfaug.learn.swap import open_base

    try:
        base = open_base(dataset)
    except UsageError as error:
        raise UsageError(f"held_out[{number}]: {str(error).removeprefix('base: ')}") from None
    sizes: set[tuple[int, int]] = set()
    for i in tqdm(range(len(base)), desc="comparing held-out images with the shards", delay=PATIENCE, leave=False):
        image = recognisable(base.picture(i))
        if image is None:
            continue
        sizes.add(size_of(image))
        found = reader.by_pixels.find(reader.lookup(image))
        rows = reader.by_pixels.rows[found.start : found.start + found.counterfactuals + found.nulls]
        for row in np.asarray(rows).tolist():
            if reader.confirms(row, image):
                raise DataError(
                    f"{reader.directory}: expected no counterfactual of a held-out image, came sample "
                    f"{reader.index[row].key!r}, whose source is image {i} of held_out[{number}]; training on it would leak: "
                    "split the data before generating"
                )
    sources = source_sizes(reader)
    if sizes and sizes.isdisjoint(sources):
        log.warning(
            "held_out[%d] was not compared with anything: its images are %s, the shards' sources %s; give it as it is before "
            "it is cropped or resized", number, said_sizes(sizes), said_sizes(sources),
        )  # fmt: skip


def source_sizes(reader: ShardReader) -> set[tuple[int, int]]:
    """(W, H) of some of the shards' sources: a counterfactual has the size of its source."""
    return {reader.picture(row).size for row in spread(len(reader), PEEKED)}
