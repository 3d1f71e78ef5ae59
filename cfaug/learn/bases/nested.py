"""Data sets made of data sets: torch's Subset and ConcatDataset, and wrappers of a user's own making."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from sys import modules
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset

from cfaug.errors import UsageError
from cfaug.learn.bases.base import Base, is_index, open_base
from cfaug.learn.bases.facts import is_wilds, keys_of
from cfaug.learn.bases.twins import Held, Seen, Twin

CHECKED = 16  # indices at which a wrapper is asked which item of its data set it takes


class SubsetBase(Base):
    """torch's Subset of any base."""

    def __init__(self, dataset: Subset[Any], image_key: Any = None) -> None:
        super().__init__(dataset, image_key)
        self._inner = open_base(dataset.dataset, None, image_key)
        self.cheap = self._inner.cheap

    def picture(self, i: int) -> Any:
        return self._inner.picture(self.dataset.indices[i])

    def swapped(self, i: int, picture: Image.Image) -> Any:
        return self._inner.swapped(self.dataset.indices[i], picture)

    def label(self, i: int) -> Any:
        return self._inner.label(self.dataset.indices[i])


def subset(dataset: Any, image_key: Any) -> Base | None:
    plain = isinstance(dataset, Subset) and type(dataset).__getitem__ is Subset.__getitem__
    return SubsetBase(dataset, image_key) if plain else None


class ConcatBase(Base):
    """torch's ConcatDataset of any bases."""

    def __init__(self, dataset: ConcatDataset[Any], image_key: Any = None) -> None:
        super().__init__(dataset, image_key)
        opened = {id(part): open_base(part, None, image_key) for part in dataset.datasets}
        self._parts = [opened[id(part)] for part in dataset.datasets]
        self.cheap = all(part.cheap for part in self._parts)

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


def concat(dataset: Any, image_key: Any) -> Base | None:
    plain = isinstance(dataset, ConcatDataset) and type(dataset).__getitem__ is ConcatDataset.__getitem__
    return ConcatBase(dataset, image_key) if plain else None


class _Stand:
    """Takes the place of a data set inside a wrapper, and gives the wrapper a swapped item when one is held."""

    def __init__(self, inner: Base, held: Held) -> None:
        self._inner, self._held = inner, held

    def __len__(self) -> int:
        return len(self._inner)

    def __getitem__(self, i: Any) -> Any:
        held = self._held
        if not is_index(i):
            return self._inner.dataset[i]
        if held.looking:
            raise Seen(int(i))
        if held.picture is None or held.replaced not in (None, int(i)):
            return self._inner.item(i)  # a second image of the same item, of a wrapper that mixes two: as it is
        held.replaced = int(i)
        return self._inner.swapped(i, held.picture)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_inner", "_held"):
            raise AttributeError(name)
        return getattr(self._inner.dataset, name)


class WrapperBase(Base):
    """A data set that holds one other data set and makes its items of the other's: its own code does so here too."""

    def __init__(self, dataset: Any, name: str, inner: Base, image_key: Any = None) -> None:
        super().__init__(dataset, image_key)
        self._held, self._inner = Held(), inner
        self._twin = Twin(dataset, **{name: _Stand(inner, self._held)})
        self.cheap = inner.cheap

    def takes(self, i: int) -> int | None:
        """Which item of the inner data set item i is made of."""
        place = self._held.look(self._twin, i)
        return None if place is None else int(place)

    def picture(self, i: int) -> Any:
        return self._inner.picture(self._taken(i))

    def swapped(self, i: int, picture: Image.Image) -> Any:
        item = self._held.make(self._twin, i, picture)
        if self._held.replaced is None:
            self._taken(i)
        return item

    def _taken(self, i: int) -> int:
        place = self.takes(i)
        if place is None:
            raise UsageError(
                f"base: {type(self.dataset).__name__} made item {i} without its inner data set; pass transform= and key="
            )
        return place

    def keys(self) -> Sequence[str] | None:
        """Those of the inner data set: by ``indices``, or the same places where the wrapper was seen to keep them."""
        known = keys_of(self.dataset)
        inner = self._inner.keys() if known is None else None
        if inner is None:
            return known
        indices = getattr(self.dataset, "indices", None)
        mapped = range(len(self)) if indices is None or len(indices) != len(self) else indices
        if indices is None and len(self) != len(inner):
            return None
        checked = np.linspace(0, len(self) - 1, min(CHECKED, len(self))).astype(int)
        if any(self.takes(int(i)) != int(mapped[int(i)]) for i in checked):
            return None
        return [inner[int(j)] for j in mapped]


def wrapper(dataset: Any, image_key: Any) -> Base | None:
    held = [name for name, value in getattr(dataset, "__dict__", {}).items() if _is_dataset(value)]
    if len(held) != 1 or not len(dataset):
        return None
    try:
        inner = open_base(getattr(dataset, held[0]), None, None)
    except UsageError:
        try:
            inner = open_base(getattr(dataset, held[0]), None, image_key)
        except UsageError:
            return None
    try:
        base = WrapperBase(dataset, held[0], inner, image_key)
    except AttributeError:  # the attribute cannot be set on a copy
        return None
    return base if base.takes(0) is not None else None


def _is_dataset(value: Any) -> bool:
    if isinstance(value, (type, Base)):
        return False
    huggingface = modules.get("datasets")
    known = isinstance(value, Dataset) or (huggingface is not None and isinstance(value, huggingface.Dataset))
    return known or is_wilds(value)
