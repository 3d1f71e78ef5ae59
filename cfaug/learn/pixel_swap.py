"""Swapping an image that is recognised by its pixels: what the transforms and the collate helper have in common.

    u < p                 a counterfactual of this very image (the floor(v * how many it has)-th)
    p <= u < p + null_p   a null intervention (reconstruction) of it
    else                  the image itself; so too where it has no sample of the kind that was drawn, or is unknown

A 16 x 16 grid of the pixels proposes a source (``ShardReader.lookup``), all of them confirm it before anything is
swapped (``ShardReader.confirms``). ``seen``, ``matched`` and ``swapped`` are counted in memory that forked and spawned
DataLoader workers share with the process that made the lookup. ``matched`` counts proposals that were not refuted: an
image is compared in full only when it is to be swapped.

Not promised: counts from processes that got a copy by ordinary pickling (another machine, a job queue); a copy starts
at zero and counts for itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from cfaug.errors import CfaugError
from cfaug.learn.checks import has_kinds, shares
from cfaug.learn.counts import SharedCounts
from cfaug.learn.guard import open_training_shards, source_sizes
from cfaug.learn.image_types import like, recognisable, said_sizes, size_of
from cfaug.offline.read import ShardReader

log = logging.getLogger(__name__)

WARN_AFTER = 100  # images seen without one match before the warning: a first batch may well be of another split


class PixelLookup:
    """The samples of an image, found by its pixels. Picklable; safe in forked and spawned workers.

    Images: those of :mod:`cfaug.learn.image_types`, PIL ones in any mode. ``owner``: what users know it by, for the warning.
    """

    def __init__(self, reader: ShardReader, owner: str = "RandomCounterfactual") -> None:
        self.reader, self.owner = reader, owner
        self.counts = SharedCounts()
        self._settled = False  # in this process: something matched, or the warning has been given
        self._sizes: set[tuple[int, int]] = set()  # (W, H) of what came while nothing matched

    @property
    def _cure(self) -> str:
        if self.owner == "MixingCollate":
            return "let the pipeline yield decoded images and give MixingCollate the transform"
        return (
            f"put {self.owner} first in the Compose, before ToDtype, ToTensor or Normalize, and before batches are made"
        )

    def swap(self, image: Any, draw: Callable[[int], tuple[float, float]], p: float, null_p: float = 0.0) -> Any | None:
        """What stands in for `image`, of the same type, mode and size; None where it stays. Counts, and may warn.

        `draw`: (u, v), uniform in [0, 1), for the hash under which the shards know an image (asked only for one that they
        may know); the rule is in the head of this module.

        Raises:
            UsageError: `image` has been transformed already (a float tensor), or is none.
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
        if known or self.counts.warned or self.counts.total(SharedCounts.MATCHED):
            self._settled = True
            return
        self._sizes.add(size_of(image))
        if self.counts.total(SharedCounts.SEEN) >= WARN_AFTER:
            self._settled = True
            if self.counts.claim_warning():
                log.warning(
                    "%s knew none of the first %d images: %s (%s)",
                    self.owner, WARN_AFTER, self._why(), self.reader.directory,
                )  # fmt: skip

    def _why(self) -> str:
        """The likeliest reason: a counterfactual has the size of its source, so sizes tell a crop from other pixels."""
        try:
            sources = source_sizes(self.reader)
        except CfaugError as error:  # training on real images goes on; whoever draws this sample is told
            return f"and the shards cannot be read to see why ({error})"
        came = self._sizes
        if sources.isdisjoint(came):
            return (
                f"they are {said_sizes(came)}, the shards' sources {said_sizes(sources)}: a crop or a resize stands before "
                "it, put it first; or these are the shards of another data set"
            )
        return (
            f"they have the size of the shards' sources ({said_sizes(came & sources)}) but other pixels: a flip or a colour "
            "change stands before it, the images are other ones (another data set, or not its train split), or they were "
            "decoded by another library or encoded again"
        )


def open_lookup(
    shards: str | Path | ShardReader,
    p: float,
    null_p: float = 0.0,
    guard: bool = True,
    held_out: Iterable[Any] = (),
    owner: str = "RandomCounterfactual",
) -> PixelLookup:
    """A lookup in shards that have what `p` and `null_p` ask for and pass :func:`cfaug.learn.guard.open_training_shards`.

    Raises:
        UsageError: a probability outside [0, 1], or a sum above 1.
        DataError: no sample of a kind that is asked for, or (guard) one that is not of the train split, or is held out.
    """
    p, null_p = shares(p, null_p)
    reader = open_training_shards(shards, guard=guard, held_out=held_out)
    has_kinds(reader, p > 0, null_p > 0)
    return PixelLookup(reader, owner)
