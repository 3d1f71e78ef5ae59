"""Swapping an image that is recognised by its pixels: what the transforms and the collate function have in common.

    u < p                 a counterfactual of this very image (the floor(v * how many it has)-th)
    p <= u < p + null_p   a null intervention (reconstruction) of it
    else                  the image itself; so too where it has no sample of the kind that was drawn, or is unknown

A 16 x 16 grid of the pixels proposes a source (``ShardReader.lookup``), all of them confirm it before anything is
swapped (``ShardReader.confirms``). ``seen``, ``matched`` and ``swapped`` are counted in memory that forked and spawned
DataLoader workers share with the process that made the lookup. ``matched`` counts proposals that were not refuted: an
image is compared in full only when it is to be swapped. Not promised: counts from copies made by ordinary pickling, which
start at zero, and exact ones where two DataLoaders use one lookup at the same time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import get_worker_info

from cfaug.errors import CfaugError
from cfaug.learn.guard import lacking, open_training_shards, source_sizes
from cfaug.learn.image_types import like, recognisable, said_sizes, size_of
from cfaug.learn.policies import shares
from cfaug.offline.read import ShardReader

log = logging.getLogger(__name__)

WARN_AFTER = 100  # images seen without one match before the warning: a first batch may well be of a different split
WORKERS = 255  # rows of the counts: one per worker, one for the process that has the DataLoader


class SharedCounts:
    """Images seen, matched and swapped: one row of shared memory per DataLoader worker, so that no lock is needed."""

    SEEN, MATCHED, SWAPPED = range(3)

    def __init__(self) -> None:
        self._share(torch.zeros((WORKERS + 1, 3), dtype=torch.int64))

    def add(self, matched: bool, swapped: bool) -> None:
        """Count one more image."""
        worker, numbers = get_worker_info(), self._numbers
        at = 0 if worker is None else 3 * (1 + worker.id % WORKERS)
        numbers[at] += 1
        numbers[at + 1] += matched
        numbers[at + 2] += swapped

    def total(self, column: int) -> int:
        """The sum over all processes."""
        return int(self._table[:, column].sum())

    def _share(self, table: torch.Tensor) -> None:
        self._table = table if table.is_shared() else table.zero_().share_memory_()  # type: ignore[no-untyped-call]
        # the same memory, ten times as quick to count in
        self._numbers: memoryview = self._table.numpy().reshape(-1).data

    def __getstate__(self) -> torch.Tensor:
        # sent to a worker it stays the same memory; pickled or copied in the ordinary way it does not, and is zeroed
        return self._table

    def __setstate__(self, table: torch.Tensor) -> None:
        self._share(table)


class PixelLookup:
    """The samples of an image, found by its pixels. Picklable; safe in forked and spawned workers.

    Images: those of :mod:`cfaug.learn.image_types`, PIL ones in any mode. ``owner``: what users know it by, ``cure``: what to do
    about images that were transformed already.
    """

    def __init__(self, reader: ShardReader, owner: str, cure: str) -> None:
        self.reader, self.owner, self._cure = reader, owner, cure
        self.counts = SharedCounts()
        self._settled = False  # in this process: something matched, or the warning has been given
        self._sizes: set[tuple[int, int]] = set()  # (W, H) of the images that came while nothing matched

    def swap(self, image: Any, draw: Callable[[int], tuple[float, float]], p: float, null_p: float = 0.0) -> Any | None:
        """What stands in for `image`, of the same type, mode and size; None where it stays. Counts, and may warn.

        `draw`: (u, v), uniform in [0, 1), for the hash under which the shards know an image (asked only for one that they
        may know); the rule is in the head of this module.

        Raises:
            UsageError: `image` has been transformed already (a float tensor), or is not an image.
            ShardError, StorageError: the sample drawn cannot be read.
        """
        picture, table = recognisable(image, self._cure), self.reader.by_pixels
        key = None if picture is None else self.reader.lookup(picture)
        start, counterfactuals, nulls = (0, 0, 0) if key is None else table.find(key)
        known, made = counterfactuals + nulls > 0, None
        if known and key is not None and picture is not None:
            u, v = draw(key)
            first, many = start, counterfactuals if u < p else 0
            if p <= u < p + null_p:
                first, many = start + counterfactuals, nulls
            if many:
                row: int = table.rows.item(first + min(int(v * many), many - 1))
                known = self.reader.confirms(row, picture)
                made = like(self.reader.picture(row), image, partial(self.reader.where, row)) if known else None
        self.counts.add(known, made is not None)
        if not self._settled:
            self._settle(known, image)
        return made

    def _settle(self, known: bool, image: Any) -> None:
        if known or self.counts.total(SharedCounts.MATCHED):
            self._settled = True
            return
        self._sizes.add(size_of(image))
        if self.counts.total(SharedCounts.SEEN) >= WARN_AFTER:
            self._settled = True
            worker = get_worker_info()
            if worker is None or worker.id == 0:  # one warning is enough
                log.warning(
                    "%s knew none of the first %d images: %s (%s)",
                    self.owner, WARN_AFTER, self._why(), self.reader.directory,
                )  # fmt: skip

    def _why(self) -> str:
        """The likeliest reason: a counterfactual has the size of its source, so sizes tell a crop from other pixels."""
        try:
            sources = source_sizes(self.reader)
        except CfaugError as error:  # training on real images goes on; drawing this sample raises the error
            return f"and the shards cannot be read to see why ({error})"
        if self.reader.resized:
            return (
                "these shards know an image by the pixels that its file has: a crop or a resize stands before it, put it first, or wrap "
                "the data set in CounterfactualDataset; or these are the shards of a different data set"
            )
        if sources.isdisjoint(self._sizes):
            return (
                f"they are {said_sizes(self._sizes)}, the shards' sources {said_sizes(sources)}: a crop or a resize stands before "
                "it, put it first; or these are the shards of a different data set"
            )
        return (
            f"they have the size of the shards' sources ({said_sizes(self._sizes & sources)}) but other pixels: a flip, a turn by EXIF "
            "orientation or a colour change stands before it, they are of a different data set or not of its train split, or "
            "they were decoded by a different library or encoded again"
        )


class SwapsImages:
    """An object with a ``lookup``, and what it has counted, in this process and in DataLoader workers."""

    swaps_images = True  # CounterfactualDataset refuses a base whose transform has this: images would be swapped twice
    lookup: PixelLookup

    @property
    def seen(self) -> int:
        """Images looked up."""
        return self.lookup.counts.total(SharedCounts.SEEN)

    @property
    def matched(self) -> int:
        """Images that the shards know."""
        return self.lookup.counts.total(SharedCounts.MATCHED)

    @property
    def swapped(self) -> int:
        """Images that were replaced."""
        return self.lookup.counts.total(SharedCounts.SWAPPED)


def open_lookup(
    shards: str | Path | ShardReader,
    p: float,
    null_p: float = 0.0,
    guard: bool = True,
    held_out: Iterable[Any] = (),
    owner: str = "RandomCounterfactual",
    cure: str = "put RandomCounterfactual first in the Compose, before ToDtype, ToTensor or Normalize, and before batches are made",
) -> PixelLookup:
    """A lookup in shards that have what `p` and `null_p` ask for and pass :func:`cfaug.learn.guard.open_training_shards`.

    Raises:
        UsageError: a probability outside [0, 1], or a sum above 1.
        DataError: no sample of a kind that is asked for, or (guard) one that is not of the train split, or is held out.
    """
    p, null_p = shares(p, null_p)
    reader = open_training_shards(shards, guard=guard, held_out=held_out)
    if p > 0 and reader.nulls.all():
        raise lacking(reader, "counterfactual")
    if null_p > 0 and not reader.nulls.any():
        raise lacking(reader, "null")
    return PixelLookup(reader, owner, cure)
