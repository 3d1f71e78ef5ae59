"""Labelled images with an attribute table: one protocol, and the adapter for images in memory.

A data set of cfaug is three things side by side: a fitted ``schema``, a ``table`` (index = source key) and the
images in the table's order, uint8 (H, W, C) with C in {1, 3}. Indexing gives ``(PIL image, target code)``, as
torchvision's data sets do. Nothing here augments, resizes or re-encodes an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from cfaug.data.images import Pixels, pixel_digest, to_pil
from cfaug.data.schema import Schema
from cfaug.errors import DataError, UsageError

SPLITS = ("train", "val", "test")
SplitKey = tuple[str, str]
"""A split and the source key of one of its images."""


def check_split(split: str) -> str:
    """``split`` itself; UsageError unless it is one of SPLITS."""
    if split not in SPLITS:
        raise UsageError(f"expected a split among {', '.join(SPLITS)}, got {split!r}; correct the split")
    return split


@runtime_checkable
class AttributeDataset(Protocol):
    """What the other rooms know of a data set. ``table`` is canonical (see ``Schema.canonical``), one row per image.

    In the train split the cells of every attribute but the target may be missing (None or NaN).
    """

    schema: Schema
    table: pd.DataFrame
    split: str

    def __len__(self) -> int: ...

    def key(self, i: int, /) -> str:
        """The source key of image ``i``, unique in the data set."""
        ...

    def image(self, i: int, /) -> Pixels:
        """Image ``i``: uint8 (H, W, C), C in {1, 3}."""
        ...

    def mask(self, i: int, /) -> Pixels | None:
        """The object in image ``i``: uint8 (H, W), 255 on the object; None where the data set has no mask."""
        return None

    def __getitem__(self, i: int, /) -> tuple[Any, int]: ...


def partial_in(schema: Schema, split: str) -> tuple[str, ...]:
    """The attributes whose cells may be missing: in training all but the target, in validation and test none.

    Accuracies are counted by group, so a row of those splits without a group could only be dropped.
    """
    return tuple(name for name in schema.names if name != schema.target) if split == "train" else ()


class Indexed:
    """Keys, targets and (image, target) pairs, the same for every adapter here."""

    schema: Schema
    table: pd.DataFrame
    split: str
    transform: Callable[[Any], Any] | None

    def _prepare(self, table: pd.DataFrame, schema: Schema, split: str) -> None:
        self.split = check_split(split)
        missing = partial_in(schema, split)
        self.schema = schema if schema.fitted else schema.fit(table, missing)
        self.schema.check(table, missing)
        self.table = self.schema.canonical(table)
        if not self.table.index.is_unique:
            twice = self.table.index[self.table.index.duplicated()][0]
            raise DataError(
                f"expected a source key of its own for every image, got {twice!r} twice in the table; rename one"
            )
        self._keys = [str(k) for k in self.table.index]
        target = self.schema.target
        self._targets = [] if target is None else self.schema.index(target, self.table[target]).tolist()

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        return (self[i] for i in range(len(self)))

    def key(self, i: int, /) -> str:
        """The source key of image ``i``."""
        return self._keys[i]

    def image(self, i: int, /) -> Pixels:
        """Image ``i``: uint8 (H, W, C), C in {1, 3}."""
        raise NotImplementedError

    def mask(self, i: int, /) -> Pixels | None:
        """The object in image ``i``: uint8 (H, W), 255 on the object; None, as this data set has no masks."""
        return None

    def __getitem__(self, i: int, /) -> tuple[Any, int]:
        """(PIL image, after ``transform`` if there is one; code of the target). UsageError without a target."""
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        if not self._targets:
            raise UsageError("expected a target whose code is the label, got a schema without one; name a target in it")
        picture = to_pil(self.image(i))
        return (picture if self.transform is None else self.transform(picture)), self._targets[i]


class ArrayDataset(Indexed):
    """Images in memory: uint8 (N, H, W, C), C in {1, 3}, in the order of the N rows of ``table``. Picklable.

    ``masks``: of the object in each image, uint8 (N, H, W), 255 on the object. Raises UsageError when images, masks and table do not fit
    together, DataError for a table outside the schema.
    """

    def __init__(
        self,
        images: Pixels,
        table: pd.DataFrame,
        schema: Schema,
        split: str = "train",
        transform: Callable[[Any], Any] | None = None,
        masks: Pixels | None = None,
    ) -> None:
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
            raise UsageError(
                f"expected uint8 images (N, H, W, 1 or 3), got {images.dtype} {images.shape}; convert them"
            )
        if len(images) != len(table):
            raise UsageError(
                f"expected one table row per image, got {len(images)} images and {len(table)} rows; give the table of these images"
            )
        if masks is not None and (masks.dtype != np.uint8 or masks.shape != images.shape[:3]):
            raise UsageError(
                f"expected uint8 masks {images.shape[:3]}, one for each image, got {masks.dtype} {masks.shape}; convert them"
            )
        self.images: Pixels = images
        self.masks, self.transform = masks, transform
        self._prepare(table, schema, split)

    def image(self, i: int, /) -> Pixels:
        """Image ``i``: uint8 (H, W, C)."""
        picture: Pixels = self.images[i]
        return picture

    def mask(self, i: int, /) -> Pixels | None:
        """The object in image ``i``: uint8 (H, W), 255 on the object; None where there are no masks."""
        return None if self.masks is None else self.masks[i]


def duplicates_across_splits(datasets: Iterable[AttributeDataset]) -> list[tuple[SplitKey, SplitKey]]:
    """Images with the same pixels in two splits, each pair as ((split, key), (split, key)), in the order of the data sets.

    A classifier that was trained on an image, or on its counterfactuals, must not be tested on it. Only identical pixels are
    found (``pixel_digest``), whatever the files are called; a resized or re-encoded copy is not. Every image is decoded once,
    unless ``FolderDataset.check_images`` has already done so.
    """
    first: dict[str, SplitKey] = {}
    found = []
    for dataset in datasets:
        known = getattr(dataset, "digests", None) or [pixel_digest(dataset.image(i)) for i in range(len(dataset))]
        for i, digest in enumerate(known):
            here = (dataset.split, dataset.key(i))
            there = first.setdefault(digest, here)
            if there[0] != here[0]:
                found.append((there, here))
    return found
