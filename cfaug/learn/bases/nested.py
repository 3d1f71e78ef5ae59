"""Data sets made of data sets: torch's Subset and ConcatDataset, and wrappers of a user's own making."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset

from cfaug.errors import UsageError
from cfaug.learn.bases.base import Base, is_index, open_base, undrawn
from cfaug.learn.bases.facts import held_datasets, keys_of
from cfaug.learn.bases.images import as_picture, places, value_at
from cfaug.learn.bases.items import ItemBase
from cfaug.learn.bases.twins import Held, Seen

CHECKED = 16  # indices at which a wrapper is asked which item of its data set it takes


class SubsetBase(Base):
    """torch's Subset of any base."""

    def __init__(self, dataset: Subset[Any], image_key: Any = None) -> None:
        super().__init__(dataset, image_key)
        self._inner = open_base(dataset.dataset, None, image_key)
        self.cheap, self.sources = self._inner.cheap, self._inner.sources

    def item(self, i: int) -> Any:
        return self._inner.item(self.dataset.indices[i])

    def picture(self, i: int) -> Any:
        return self._inner.picture(self.dataset.indices[i])

    def swapped(self, i: int, picture: Image.Image) -> Any:
        return self._inner.swapped(self.dataset.indices[i], picture)

    def label(self, i: int) -> Any:
        return self._inner.label(int(self.dataset.indices[i]))

    def keys(self) -> Sequence[str] | None:
        inner = self._inner.keys()
        return None if inner is None else [inner[int(i)] for i in self.dataset.indices]

    @property
    def split(self) -> str | None:
        return self._inner.split


def subset(dataset: Any, image_key: Any) -> Base | None:
    """A base of a torch Subset that makes items as torch does."""
    plain = isinstance(dataset, Subset) and type(dataset).__getitem__ is Subset.__getitem__
    return SubsetBase(dataset, image_key) if plain else None


class ConcatBase(Base):
    """torch's ConcatDataset of any bases.

    It has keys only where no two of its sources share one: a key that means two images would find the counterfactuals
    of the wrong one. It has a split where all parts agree.
    """

    def __init__(self, dataset: ConcatDataset[Any], image_key: Any = None) -> None:
        super().__init__(dataset, image_key)
        opened = {id(part): open_base(part, None, image_key) for part in dataset.datasets}
        self._parts = [opened[id(part)] for part in dataset.datasets]
        self.cheap = all(part.cheap for part in self._parts)
        self.sources = frozenset().union(*(part.sources for part in self._parts))

    def _within(self, i: int) -> tuple[Base, int]:
        i = range(len(self))[i]
        part = bisect.bisect_right(self.dataset.cumulative_sizes, i)
        return self._parts[part], i - (self.dataset.cumulative_sizes[part - 1] if part else 0)

    def picture(self, i: int) -> Any:
        part, j = self._within(i)
        return part.picture(j)

    def swapped(self, i: int, picture: Image.Image) -> Any:
        part, j = self._within(i)
        return part.swapped(j, picture)

    def label(self, i: int) -> Any:
        part, j = self._within(i)
        return part.label(j)

    def keys(self) -> Sequence[str] | None:
        of_source: dict[Any, set[str]] = {}
        every: list[str] = []
        for part in self._parts:
            keys = part.keys()
            if keys is None:
                return None
            of_source.setdefault(part.sources, set()).update(keys)
            every += keys
        return every if len(set(every)) == sum(map(len, of_source.values())) else None

    @property
    def split(self) -> str | None:
        splits = {part.split for part in self._parts}
        return splits.pop() if len(splits) == 1 else None


def concat(dataset: Any, image_key: Any) -> Base | None:
    """A base of a torch ConcatDataset that makes items as torch does."""
    plain = isinstance(dataset, ConcatDataset) and type(dataset).__getitem__ is ConcatDataset.__getitem__
    return ConcatBase(dataset, image_key) if plain else None


class _Stand:
    """Takes the place of a data set inside a wrapper, and gives the wrapper a swapped item when a picture is held."""

    def __init__(self, inner: Base) -> None:
        self._inner, self._held = inner, Held()

    def __len__(self) -> int:
        return len(self._inner)

    def __getitem__(self, i: Any) -> Any:
        held = self._held
        if not is_index(i):
            return self._inner.dataset[i]
        if held.looking:
            raise Seen(int(i))
        if held.picture is None or held.inner not in (None, int(i)):
            return self._inner.item(i)  # a second image in the same item, of a wrapper that mixes two: as it is
        held.inner = int(i)
        return self._inner.swapped(i, held.picture)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_inner", "_held"):
            raise AttributeError(name)
        return getattr(self._inner.dataset, name)


class WrapperBase(ItemBase):
    """A data set that holds one other data set and makes its items of the other's: its own code does so here too."""

    def __init__(self, dataset: Any, name: str, inner: Base, image_key: Any = None) -> None:
        stand = _Stand(inner)
        super().__init__(dataset, image_key, {name: stand})
        stand._held = self._held
        self._inner, self.cheap, self.sources = inner, inner.cheap, inner.sources

    def takes(self, i: int) -> int | None:
        """Which item of the inner data set item i is made of; None when it asks the inner data set for none."""
        place = self._held.look(self._twin, i)
        return int(place) if isinstance(place, int) else None

    def shows(self) -> bool:
        """Whether another picture makes another item: a wrapper may want the label alone of its inner data set."""
        size, made = as_picture(self.picture(0)).size, []
        for grey in (0, 255):
            with undrawn():
                item = self.swapped(0, Image.new("L", size, grey))
            made.append([np.asarray(value_at(item, path)) for path in places(item, _is_array)])
        return not all(map(np.array_equal, *made))

    def picture(self, i: int) -> Any:
        place = self.takes(i)
        return super().picture(i) if place is None else self._inner.picture(place)

    def keys(self) -> Sequence[str] | None:
        """Those of the inner data set: by ``indices``, or the same places where the wrapper was seen to keep them."""
        known = keys_of(self.dataset)
        inner = self._inner.keys() if known is None else None
        if inner is None:
            return known
        indices = getattr(self.dataset, "indices", None)
        mapped: Sequence[Any] = range(len(inner)) if indices is None else indices
        if len(mapped) != len(self):
            return None
        checked = np.linspace(0, len(self) - 1, min(CHECKED, len(self))).astype(int)
        if any(self.takes(int(i)) != int(mapped[int(i)]) for i in checked):
            return None
        return [inner[int(j)] for j in mapped]

    @property
    def split(self) -> str | None:
        return super().split or self._inner.split


def wrapper(dataset: Any, image_key: Any) -> Base | None:
    """A base of a data set with one attribute that is a data set of images, when it makes its items of them."""
    held = list(held_datasets(dataset))
    if len(held) != 1 or not len(dataset):
        return None
    for key in (None, image_key):
        try:
            base = WrapperBase(dataset, held[0], open_base(getattr(dataset, held[0]), None, key), image_key)
        except (UsageError, AttributeError):  # not of images; or attributes that cannot be set on a copy
            continue
        return base if base.takes(0) is not None and base.shows() else None
    return None


def _is_array(value: Any) -> bool:
    return isinstance(value, (Image.Image, torch.Tensor, np.ndarray))
