"""Which samples of the shards belong to which image of a data set: by key where keys are known, else by pixels.

    keys    the caller's function, else what the data set knows (key(i), or a path below the root of an ImageFolder)
    pixels  a 16 x 16 grid proposes, all pixels confirm (cfaug.data.lookup); decodes every image once

A match by key is believed only after the pixels of some images were compared, and the labels are
(:mod:`cfaug.learn.label_check`). Not promised: that an image which was matched by key and not looked at has the pixels of its
source.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from tqdm.auto import tqdm

from cfaug.data.lookup import sample_hash
from cfaug.errors import DataError, UsageError
from cfaug.learn.guard import PATIENCE
from cfaug.learn.image_types import MODES, as_pixels, few, recognisable, said, said_sizes, size_of
from cfaug.learn.label_check import check_labels
from cfaug.learn.spread import spread
from cfaug.learn.swap import Swappable
from cfaug.learn.swap.base import undrawn
from cfaug.offline.read import ShardReader, key_hashes

log = logging.getLogger(__name__)

PIXELS_CHECKED = 16  # sources whose pixels are compared when matching was by key
LABELS_CHECKED = 256  # sources whose label is compared with the target in their record
Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Matches:
    """For N images, where their samples stand: image i has ``counterfactuals[i]`` and then ``nulls[i]`` of ``rows`` from
    ``start[i]``. ``rows`` belongs to the reader and is not copied."""

    reader: ShardReader
    table: Literal["by_key", "by_pixels"]
    start: npt.NDArray[np.uint32]
    counterfactuals: Int32s
    nulls: Int32s

    @property
    def rows(self) -> npt.NDArray[np.uint32]:
        table = self.reader.by_key if self.table == "by_key" else self.reader.by_pixels
        return table.rows

    @property
    def total(self) -> Int32s:
        """(N,) samples of each image."""
        return self.counterfactuals + self.nulls

    def pick(
        self, kind: Literal["counterfactual", "null"], sources: Any, fraction: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.int64]:
        """(M,) one row for each of ``sources`` (M,), -1 where it has none of the kind; fraction (M,) in [0, 1)."""
        counterfactuals = self.counterfactuals[sources].astype(np.int64)
        null = kind == "null"
        count = self.nulls[sources].astype(np.int64) if null else counterfactuals
        place = (
            self.start[sources].astype(np.int64)
            + (counterfactuals if null else 0)
            + (fraction * count).astype(np.int64)
        )
        chosen = self.rows[np.minimum(place, len(self.rows) - 1)].astype(np.int64)
        return np.where(count > 0, chosen, -1)


def match(base: Swappable, reader: ShardReader, key: Callable[[int], str] | None = None, guard: bool = True) -> Matches:
    """The samples of every image of ``base``; DataError when none has any, or when what was compared differs."""
    if key is not None and not callable(key):
        raise UsageError(f"key: expected a function from an index to a source key, came {type(key).__name__}")
    _refuse_random(base)
    keys: Sequence[str] | None = [str(key(i)) for i in range(len(base))] if key is not None else base.keys()
    found = None if keys is None else _by_key(keys, reader)
    if found is not None and not found.total.any() and key is None:
        log.info("no key of the data set is a source key of %s: matching by pixels", reader.directory)
        found = None
    if found is None:
        found, how = _by_pixels(base, reader), ""
    else:
        how = f"the base's first key is {_first(keys)!r}, the shards' first source key {reader.index[0].source_key!r}"
    matched = np.flatnonzero(found.total)
    if not len(matched):
        how = how or f"no image has the pixels of a source{_unlike_all(base, reader)}; {_WHY_NO_PIXELS}"
        raise DataError(f"{reader.directory}: expected counterfactuals of this dataset's images, none matches: {how}")
    if found.table == "by_key" and keys is not None:
        _check_pixels(base, reader, found, matched, keys)
    if guard:
        rows = found.rows[found.start[matched]]
        looked_at = spread(len(matched), LABELS_CHECKED)
        check_labels(base, reader, [(int(matched[k]), int(rows[k])) for k in looked_at])
    # that all have is what one expects, and a table of methods would say it a dozen times
    level = logging.INFO if len(matched) < len(base) else logging.DEBUG
    log.log(level, "%d of %d images have samples in %s", len(matched), len(base), reader.directory)
    return found


_WHY_NO_PIXELS = (
    "a base that resizes, crops or recolours (grey, a palette) before its transform hides them, and so does compressing "
    "them again; pass key= if you know the source keys"
)


def _refuse_random(base: Swappable) -> None:
    """UsageError for a base that augments before its transform: what it does would be missing in counterfactuals alone."""
    for i in spread(len(base), PIXELS_CHECKED):
        shown = []
        for seed in (2 * i, 2 * i + 1):
            with undrawn():
                random.seed(seed)
                np.random.seed(seed)
                torch.manual_seed(seed)
                try:
                    image = recognisable(base.picture(i))
                except UsageError:
                    return  # it shows floats only
                shown.append(None if image is None else sample_hash(image))
        if shown[0] != shown[1]:
            raise UsageError(
                f"base: expected the same untransformed image {i} whenever it is read, came two: an augmentation before its "
                "transform would be missing in counterfactuals; move it into the transform"
            )


def _by_key(keys: Sequence[str], reader: ShardReader) -> Matches:
    return _matches(reader, "by_key", reader.by_key.find_many(key_hashes(keys)))


def _by_pixels(base: Swappable, reader: ShardReader) -> Matches:
    table, found = reader.by_pixels, np.zeros((3, len(base)), dtype=np.int64)
    for i in tqdm(range(len(base)), desc="matching images with their counterfactuals", delay=PATIENCE, leave=False):
        image = recognisable(base.picture(i))
        if image is None:
            continue
        proposed = table.find(reader.lookup(image))
        if proposed.counterfactuals + proposed.nulls and reader.confirms(int(table.rows[proposed.start]), image):
            found[:, i] = proposed
    return _matches(reader, "by_pixels", tuple(found))


def _matches(reader: ShardReader, table: Literal["by_key", "by_pixels"], found: Sequence[Any]) -> Matches:
    start, counterfactuals, nulls = found
    return Matches(reader, table, *_narrow(start, counterfactuals, nulls))


def _narrow(start: Any, *counts: Any) -> Any:
    """The columns in four bytes a number: as many rows as a reader can have fit uint32, those of one image int32."""
    return np.asarray(start, dtype=np.uint32), *(np.asarray(count, dtype=np.int32) for count in counts)


def _check_pixels(
    base: Swappable, reader: ShardReader, found: Matches, matched: npt.NDArray[np.int64], keys: Sequence[str]
) -> None:
    for i in matched[spread(len(matched), PIXELS_CHECKED)].tolist():
        try:
            image = base.picture(i)
            factual = recognisable(image)
        except UsageError:
            log.warning("keys are believed unseen: the base shows no untransformed pixels to compare with the sources")
            return
        row = int(found.rows[found.start[i]])
        if factual is None or not reader.confirms(row, factual):
            raise DataError(
                f"{reader.directory}: image {keys[i]!r} differs from the source of its samples{_unlike([image], reader, [row])}; "
                "use the same version of the images, or generate again"
            )


def _unlike(images: Sequence[Any], reader: ShardReader, rows: Sequence[int]) -> str:
    """In what all images differ from all of these samples, which have the size of their sources; nothing else."""
    samples = [reader.picture(row) for row in rows]
    told = []
    for look in (_said_mode, _said_size):
        came, theirs = ({look(image) for image in some} for some in (images, samples))
        if images and came.isdisjoint(theirs):
            told.append(f"came {few(sorted(came))}, the samples are {few(sorted(theirs))}")
    return f" ({'; '.join(told)})" if told else ""


def _unlike_all(base: Swappable, reader: ShardReader) -> str:
    rows, images = spread(len(reader), PIXELS_CHECKED), spread(len(base), PIXELS_CHECKED)
    return _unlike([base.picture(i) for i in images], reader, rows)


def _said_mode(image: Any) -> str:
    if isinstance(image, Image.Image):
        return f"mode {image.mode}"
    channels = as_pixels(image).shape[2]
    return f"mode {MODES[channels]}" if channels in MODES else said(image)


def _said_size(image: Any) -> str:
    return said_sizes([size_of(image)])


def _first(keys: Sequence[str] | None) -> str:
    return keys[0] if keys else ""
