"""The leak guard: nothing that validation or test is made of reaches training, and the error names the sample.

    the shards     every sample's source is of the train split
    the base       a data set that says which split it is (``split``, ``image_set``, ``train``) says train, and so do those inside it
    held out       no image of the data sets given as ``held_out=`` is the source of a sample; pixels are compared, not names

It is on by default wherever shards enter a training loop; ``guard=False`` is for looking at counterfactuals of a test split.
Not promised: that a held-out image which was cropped or compressed again is recognised, nor one that was never handed to it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from cfaug.errors import DataError, UsageError
from cfaug.learn.image_types import recognisable, said_sizes, size_of
from cfaug.learn.swap.patched_copy import inner_datasets
from cfaug.learn.swap.swappable import open_base
from cfaug.offline.read import SPLITS, TRAIN, ShardReader

log = logging.getLogger(__name__)

PEEKED = 16  # samples whose size is looked at, spread over all
PATIENCE = 5.0  # seconds before a progress bar appears
# whole words: "trainval" and "latest" are training splits; "train+val" asks for validation too
EVALUATED = re.compile(r"(?<![a-z])(val\d*|valid\w*|dev|devel\w*|test\w*|eval\w*|h[eo]ld[_-]?out)(?![a-z])")


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
                f"{reader.directory}: expected samples of the {TRAIN} split only, got {row.key!r} of split {row.split!r}: it "
                "would leak into training (guard=False where that is what you want)"
            )
    if isinstance(held_out, Mapping | str) or (held_out is not None and not isinstance(held_out, Iterable)):
        raise UsageError(f"held_out: expected data sets in a list, got {type(held_out).__name__}; write held_out=[...]")
    if hasattr(held_out, "__getitem__") and not isinstance(held_out, Sequence):
        raise UsageError(
            f"held_out: expected data sets in a list, got one {type(held_out).__name__}; write held_out=[...]"
        )
    for number, dataset in enumerate(held_out or ()):
        _refuse_sources(reader, dataset, number)
    return reader


def lacking(reader: ShardReader, kind: str) -> DataError:
    """The error of shards without a sample of a kind ("counterfactual", "null") that is asked for."""
    return DataError(f"{reader.directory}: expected {kind} samples, it has none; plan them or set that p to 0")


def refuse_split(dataset: Any) -> None:
    """UsageError for a data set that says that it, or one inside it, is validation or test.

    It says so as torchvision's and Hugging Face's do: by a word of ``split``, ``_split`` or ``image_set``, or by ``train=False``.
    """
    for part in inner_datasets(dataset):
        said = [str(getattr(part, name, "")) for name in ("split", "_split", "image_set")]
        said += ["test"] if getattr(part, "train", None) is False else []
        for split in said:
            if EVALUATED.search(re.sub(r"train[_-]?val", "", split.lower())):
                raise UsageError(
                    f"base: expected the train split, got split {split!r}; validation and test are not augmented "
                    "(guard=False where that is what you want)"
                )


def source_sizes(reader: ShardReader) -> set[tuple[int, int]]:
    """(W, H) of some of the shards' sources: a counterfactual has the size of its source."""
    return {reader.picture(row).size for row in probe_indices(len(reader), PEEKED)}


def probe_indices(length: int, most: int) -> list[int]:
    """min(most, length) of the indices below ``length``, ascending, the same every time; ``most`` >= 2.

    The first, the last, and a random sample of those between: data that is interleaved (two views, two annotators) has no
    step in common with it.
    """
    if length <= most:
        return list(range(length))
    between = np.random.default_rng(0).choice(length - 2, most - 2, replace=False, shuffle=False)
    return [0, *(np.sort(between) + 1).tolist(), length - 1]


def _refuse_sources(reader: ShardReader, dataset: Any, number: int) -> None:
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
                    f"{reader.directory}: expected no counterfactual of a held-out image, got sample "
                    f"{reader.index[row].key!r}, whose source is image {i} of held_out[{number}]; training on it would leak: "
                    "split the data before generating"
                )
    sources = source_sizes(reader)
    if sizes and sizes.isdisjoint(sources) and not reader.resized:
        log.warning(
            "held_out[%d] was not compared with anything: its images are %s, the shards' sources %s; give it as it is before "
            "it is cropped or resized", number, said_sizes(sizes), said_sizes(sources),
        )  # fmt: skip
