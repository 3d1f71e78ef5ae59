"""Which samples of the shards belong to which image of a data set: by key where keys are known, else by pixels.

    keys    the caller's function, else what the data set knows (key(i), or a path below the root of an ImageFolder)
    pixels  a 16 x 16 grid proposes, all pixels confirm (cfaug.data.lookup); decodes every image once

A match by key is believed only after the pixels of some images were compared, and the labels are: target names and the
base's labels must correspond one to one wherever they are looked at. Not promised: that an image which was matched by key
and not looked at has the pixels of its source.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from cfaug.errors import DataError, UsageError
from cfaug.learn.bases import Base
from cfaug.learn.guard import PATIENCE
from cfaug.learn.pictures import recognisable
from cfaug.offline.shards import ShardReader, key_hashes

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


def match(base: Base, reader: ShardReader, key: Callable[[int], str] | None = None, guard: bool = True) -> Matches:
    """The samples of every image of ``base``; DataError when none has any, or when what was compared differs."""
    keys: Sequence[str] | None = [str(key(i)) for i in range(len(base))] if key is not None else base.keys()
    found = None if keys is None else _by_key(keys, reader)
    if found is not None and not found.total.any() and key is None:
        log.info("no key of the data set is a source key of %s: matching by pixels", reader.directory)
        found = None
    if found is None:
        found, how = _by_pixels(base, reader), _WHY_NO_PIXELS
    else:
        how = f"the base's first key is {_first(keys)!r}, the shards' first source key {reader.index[0].source_key!r}"
    matched = np.flatnonzero(found.total)
    if not len(matched):
        raise DataError(f"{reader.directory}: expected counterfactuals of this dataset's images, none matches: {how}")
    if found.table == "by_key" and keys is not None:
        _check_pixels(base, reader, found, matched, keys)
    if guard:
        _check_labels(base, reader, found, matched)
    log.info("%d of %d images have samples in %s", len(matched), len(base), reader.directory)
    return found


_WHY_NO_PIXELS = (
    "no image has the pixels of a source; a base that resizes or crops before its transform hides them, and so does "
    "compressing them again; pass key= if you know the source keys"
)


def _by_key(keys: Sequence[str], reader: ShardReader) -> Matches:
    return _matches(reader, "by_key", reader.by_key.find_many(key_hashes(keys)))


def _by_pixels(base: Base, reader: ShardReader) -> Matches:
    hashes = np.zeros(len(base), dtype=np.uint64)
    known = np.zeros(len(base), dtype=bool)
    for i in tqdm(range(len(base)), desc="matching images with their counterfactuals", delay=PATIENCE, leave=False):
        image = recognisable(base.picture(i))
        if image is None:
            continue
        hashes[i] = reader.lookup(image)
        found = reader.by_pixels.find(int(hashes[i]))
        if found.counterfactuals + found.nulls:
            known[i] = reader.confirms(int(reader.by_pixels.rows[found.start]), image)
    start, counterfactuals, nulls = reader.by_pixels.find_many(hashes)
    return _matches(reader, "by_pixels", (start, counterfactuals * known, nulls * known))


def _matches(reader: ShardReader, table: Literal["by_key", "by_pixels"], found: Sequence[Any]) -> Matches:
    start, counterfactuals, nulls = found
    return Matches(reader, table, *_narrow(start, counterfactuals, nulls))


def _narrow(start: Any, *counts: Any) -> Any:
    """The columns in four bytes a number: as many rows as a reader can have fit uint32, those of one image int32."""
    return np.asarray(start, dtype=np.uint32), *(np.asarray(count, dtype=np.int32) for count in counts)


def _check_pixels(
    base: Base, reader: ShardReader, found: Matches, matched: npt.NDArray[np.int64], keys: Sequence[str]
) -> None:
    for i in _spread(matched, PIXELS_CHECKED):
        try:
            factual = recognisable(base.picture(i))
        except UsageError:
            return  # the base shows floats only: there are no pixels to compare
        if factual is None or not reader.confirms(int(found.rows[found.start[i]]), factual):
            raise DataError(
                f"{reader.directory}: image {keys[i]!r} differs from the source of its samples; "
                "use the same version of the images, or generate again"
            )


def _check_labels(base: Base, reader: ShardReader, found: Matches, matched: npt.NDArray[np.int64]) -> None:
    """Targets in records and labels of the base, one to one, on at most LABELS_CHECKED images spread over all."""
    targets: dict[Hashable, tuple[Any, str]] = {}
    labels: dict[Any, tuple[Hashable, str]] = {}
    for i in _spread(matched, LABELS_CHECKED):
        row = int(found.rows[found.start[i]])
        label, target = scalar(base.label(i)), reader.record(row)["target"]
        if label is None or target is None or isinstance(label, float) or isinstance(target, float):
            continue  # no class: several labels, a continuous target, or none
        where = reader.where(row)
        for mine, other, seen in ((label, target, labels), (target, label, targets)):
            before, first = seen.setdefault(mine, (other, where))
            if before != other:
                what = "target" if seen is labels else "label of the base"
                raise DataError(
                    f"{reader.directory}: expected one {what} for each {'label' if seen is labels else 'target'}, came "
                    f"{before!r} ({first}) and {other!r} ({where}) for {mine!r}: these are not the classes that the shards "
                    "were made for (guard=False if you regrouped them on purpose)"
                )


def scalar(label: Any) -> Hashable | None:
    """A label as a plain int, float or text; None where it is none of these (several labels, a mask)."""
    if hasattr(label, "item") and getattr(label, "ndim", 0) == 0:
        label = label.item()
    return label if isinstance(label, int | float | str) else None


def _spread(matched: npt.NDArray[np.int64], most: int) -> list[int]:
    """At most ``most`` of them, evenly spread."""
    return [int(i) for i in matched[:: -(-len(matched) // most)]]


def _first(keys: Sequence[str] | None) -> str:
    return keys[0] if keys else ""
