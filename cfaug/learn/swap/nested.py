"""Data sets made of data sets: torch's Subset, ConcatDataset and StackDataset, and wrappers of a user's own making."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, StackDataset, Subset

from cfaug.errors import UsageError
from cfaug.learn.spread import spread
from cfaug.learn.swap.base import Swappable, is_index, open_base
from cfaug.learn.swap.images import as_picture, image_place, is_image_like, is_plain, places, value_at
from cfaug.learn.swap.items import SwappableItems
from cfaug.learn.swap.metadata import held_datasets, keys_of, part_of, shows_image, stacked
from cfaug.learn.swap.patched_copy import Held, Seen, Twin

CHECKED = 16  # indices at which a wrapper is asked which item of its data set it takes


class SwappableSubset(Swappable):
    """torch's Subset of any base."""

    def __init__(self, dataset: Subset[Any], image_key: Any = None) -> None:
        super().__init__(dataset, image_key)
        self._inner = open_base(dataset.dataset, None, image_key)
        self.sources = self._inner.sources

    def item(self, i: int) -> Any:
        return self._inner.item(self.dataset.indices[i])

    def picture(self, i: int) -> Any:
        return self._inner.picture(self.dataset.indices[i])

    def swapped(self, i: int, picture: Image.Image) -> Any:
        return self._inner.swapped(self.dataset.indices[i], picture)

    def label(self, i: int) -> Any:
        return self._inner.label(int(self.dataset.indices[i]))

    def label_from(self) -> str:
        return self._inner.label_from()

    def keys(self) -> Sequence[str] | None:
        inner = self._inner.keys()
        return None if inner is None else [inner[int(i)] for i in self.dataset.indices]


def subset(dataset: Any, image_key: Any) -> Swappable | None:
    """A base of a torch Subset that makes items as torch does."""
    plain = isinstance(dataset, Subset) and type(dataset).__getitem__ is Subset.__getitem__
    return SwappableSubset(dataset, image_key) if plain else None


class SwappableConcat(Swappable):
    """torch's ConcatDataset of any bases.

    It has keys only where no two of its sources share one: a key that means two images would find the counterfactuals
    of the wrong one.
    """

    def __init__(self, dataset: ConcatDataset[Any], image_key: Any = None) -> None:
        super().__init__(dataset, image_key)
        opened = {id(part): open_base(part, None, image_key) for part in dataset.datasets}
        self._parts = [opened[id(part)] for part in dataset.datasets]
        self.sources = frozenset().union(*(part.sources for part in self._parts))

    def _within(self, i: int) -> tuple[Swappable, int]:
        part, j = part_of(self.dataset, i)
        return self._parts[part], j

    def picture(self, i: int) -> Any:
        part, j = self._within(i)
        return part.picture(j)

    def swapped(self, i: int, picture: Image.Image) -> Any:
        part, j = self._within(i)
        return part.swapped(j, picture)

    def label(self, i: int) -> Any:
        part, j = self._within(i)
        return part.label(j)

    def label_from(self) -> str:
        return ", ".join(sorted({part.label_from() for part in self._parts if len(part)}))

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


def concat(dataset: Any, image_key: Any) -> Swappable | None:
    """A base of a torch ConcatDataset that makes items as torch does."""
    plain = isinstance(dataset, ConcatDataset) and type(dataset).__getitem__ is ConcatDataset.__getitem__
    return SwappableConcat(dataset, image_key) if plain else None


class SwappableStack(Swappable):
    """torch's StackDataset of which one part has images: its items are swapped, those of the others are as they are."""

    def __init__(self, dataset: StackDataset[Any], image_key: Any, at: Any, inner: Swappable) -> None:
        super().__init__(dataset, image_key)
        self._at, self._inner, self.sources = at, inner, inner.sources

    def picture(self, i: int) -> Any:
        return self._inner.picture(i)

    def swapped(self, i: int, picture: Image.Image) -> Any:
        parts = stacked(self.dataset)
        items = {at: self._inner.swapped(i, picture) if at == self._at else part[i] for at, part in parts.items()}
        return items if isinstance(self.dataset.datasets, dict) else tuple(items.values())

    def label(self, i: int) -> Any:
        label = self._inner.label(i)
        return super().label(i) if label is None else label

    def label_from(self) -> str:
        return super().label_from() if self._inner.label(0) is None else self._inner.label_from()

    def keys(self) -> Sequence[str] | None:
        return self._inner.keys()


def stack(dataset: Any, image_key: Any) -> Swappable | None:
    """A base of a torch StackDataset that makes items as torch does; ``image_key`` begins with the part that it is in.

    UsageError where several parts have images and nothing says which.
    """
    plain = isinstance(dataset, StackDataset) and type(dataset).__getitem__ is StackDataset.__getitem__
    if not plain or not len(dataset):
        return None
    parts = stacked(dataset)
    path = image_key if isinstance(image_key, tuple) else () if image_key is None else (image_key,)
    if path:
        at = path[0] + len(parts) if isinstance(path[0], int) and path[0] < 0 else path[0]
        if at not in parts:
            raise UsageError(
                f"image_key: expected a part of this StackDataset, came {path[0]!r}; there are {list(parts)}"
            )
        return SwappableStack(
            dataset, image_key, at, open_base(parts[at], None, path[1] if len(path) == 2 else path[1:] or None)
        )
    opened: dict[Any, Swappable] = {}
    hidden: UsageError | None = None
    for at, part in parts.items():
        try:
            opened[at] = open_base(part)
        except UsageError as error:
            if shows_image(part[0]):
                hidden = hidden or error
    if len(opened) > 1:
        named = ", ".join(map(repr, opened))
        raise UsageError(
            f"base: expected one part of this StackDataset with images, came {named}; say which by image_key="
        )
    if not opened and hidden is not None:
        raise hidden
    return next((SwappableStack(dataset, None, at, inner) for at, inner in opened.items()), None)


class _Stand:
    """Takes the place of a data set inside a wrapper, and gives the wrapper a swapped item when a picture is held."""

    def __init__(self, inner: Swappable) -> None:
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


class SwappableWrapper(SwappableItems):
    """A data set that holds one other data set and makes its items of the other's: its own code does so here too.

    What it keeps of items around other pictures stays in the copy that made them; another copy is looked at.
    """

    def __init__(self, dataset: Any, name: str, inner: Swappable, image_key: Any = None) -> None:
        stand = _Stand(inner)
        super().__init__(dataset, image_key, {name: stand})
        stand._held = self._held
        self._inner, self.sources = inner, inner.sources
        self._seen = Twin(dataset, self._exchanged)

    def takes(self, i: int) -> int | None:
        """Which item of the inner data set item i is made of; None when it asks the inner data set for none."""
        place = self._held.look(self._seen, i)
        return int(place) if isinstance(place, int) else None

    def fits(self, i: int) -> bool:
        """Whether item i can be made around another picture, by a look at it.

        Not where the wrapper wants the label alone of its inner data set, or keeps the inner items in what a copy of it
        shares. UsageError where it keeps items that the inner data set has transformed.
        """
        own, made = as_picture(self.picture(i)), []
        for picture in (own, _noise(own.size)):  # its own first: what is shared may keep it
            with self.trial():
                item = self.swapped(i, picture)
            made.append([np.asarray(value_at(item, path)) for path in places(item, _is_array)])
            if picture is own:
                self._refuse_kept(i, own)
                if self.takes(i) is None:
                    return False
        return not all(map(np.array_equal, *made))

    def _refuse_kept(self, i: int, own: Image.Image) -> None:
        kept = self._held.look(self._twin, i)
        if isinstance(kept, int):  # the inner data set is asked again
            return
        if kept is None:
            item = self._twin[i]
            place = image_place(item, self.image_key, is_image_like)
            kept = None if place is None else value_at(item, place)
        if not is_plain(kept) or not np.array_equal(np.asarray(as_picture(kept)), np.asarray(own)):
            raise self.keeps(i)

    def picture(self, i: int) -> Any:
        place = self.takes(i)
        return self.own_picture(self._seen, i) if place is None else self._inner.picture(place)

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
        if any(self.takes(i) != int(mapped[i]) for i in spread(len(self), CHECKED)):
            return None
        return [inner[int(j)] for j in mapped]


def wrapper(dataset: Any, image_key: Any) -> Swappable | None:
    """A base of a data set with one attribute that is a data set of images, when it makes its items of them."""
    held = list(held_datasets(dataset))
    if len(held) != 1 or not len(dataset):
        return None
    for key in (None, image_key):
        try:
            base = SwappableWrapper(dataset, held[0], open_base(getattr(dataset, held[0]), None, key), image_key)
        except (UsageError, AttributeError, TypeError):  # not of images; or attributes that no copy can have
            continue
        return base if base.takes(0) is not None and base.fits(0) else None
    return None


def _noise(size: tuple[int, int]) -> Image.Image:
    """A picture that no data set holds, which stays itself through crops, scaling and standardisation."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


def _is_array(value: Any) -> bool:
    return isinstance(value, (Image.Image, torch.Tensor, np.ndarray))
