"""Data sets of which nothing is known but their items, and perhaps an attribute ``transform`` or ``transforms``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import TensorDataset
from torchvision.datasets import VisionDataset

from cfaug.errors import UsageError
from cfaug.learn.bases.base import Base
from cfaug.learn.bases.images import (
    Path,
    image_place,
    is_image_like,
    is_plain,
    is_unloaded,
    like,
    said,
    value_at,
    with_value,
)
from cfaug.learn.bases.twins import Held, Seen, Twin


class _Hook:
    """Stands for a data set's transform: puts the held picture where the image is, then applies the transform."""

    def __init__(self, held: Held, owner: Any, name: str, image_key: Any) -> None:
        self._held, self._owner, self._name, self._image_key = held, owner, name, image_key

    def __call__(self, *args: Any, **named: Any) -> Any:
        transform, held = getattr(self._owner, self._name), self._held
        picture = held.picture
        place = None if picture is None and not held.looking else self._place(args, named)
        if place is None:
            return transform(*args, **named)
        factual = value_at((args, named), place)
        if picture is None:
            held.lazy = is_unloaded(factual)
            if isinstance(factual, Image.Image):
                factual.load()  # its file may be closed on the way out
            raise Seen(factual)
        if held.replaced is not None and not _same(held.replaced, factual):
            raise UsageError(
                f"base: expected one image an item, {type(self._owner).__name__} transforms several; pass transform= and image_key="
            )
        held.replaced = factual
        args, named = with_value((args, named), place, like(picture, factual))
        return transform(*args, **named)

    def _place(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> Path | None:
        if args and is_plain(args[0]):  # torchvision's order: the image, then its target
            return (0, 0)
        if "image" in named and is_plain(named["image"]):  # as albumentations' transforms are called
            return (1, "image")
        if len(args) == 1 and not named and self._image_key is not None:
            inner = image_place(args[0], self._image_key)
            return None if inner is None else (0, 0, *inner)
        return image_place((args, named))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(getattr(self._owner, self._name), name)


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    return type(one) is type(other) and np.array_equal(np.asarray(one), np.asarray(other))


class ItemBase(Base):
    """Any data set: the picture replaces the image on its way into ``transform`` or ``transforms``, or in the item."""

    def __init__(self, dataset: Any, image_key: Any = None) -> None:
        super().__init__(dataset, image_key)
        self._held = Held()
        hooks = {
            name: _Hook(self._held, dataset, name, image_key)
            for name in ("transform", "transforms")
            if callable(getattr(dataset, name, None))
        }
        try:
            self._twin: Twin | None = Twin(dataset, **hooks) if hooks else None
        except AttributeError:  # a property
            self._twin = None
        if len(dataset):
            image = self.picture(0)
            held_in_memory = isinstance(dataset, TensorDataset) or (
                isinstance(dataset, VisionDataset)
                and isinstance(getattr(dataset, "data", None), (np.ndarray, torch.Tensor))
            )
            self.cheap = self._held.lazy or is_unloaded(image) or held_in_memory

    def _image(self, item: Any, i: int) -> Path:
        place = image_place(item, self.image_key)
        if place is None:
            hidden = image_place(item, self.image_key, is_image_like)
            if hidden is not None:
                raise UsageError(
                    f"base: expected PIL or uint8 images, came {said(value_at(item, hidden))} by a transform that it "
                    "hides: pass transform= (from a PIL image to what it yields) and key="
                )
            raise UsageError(f"base: expected items with an image, came {said(item)} at {i}; see cfaug.learn.bases")
        return place

    def picture(self, i: int) -> Any:
        seen = None if self._twin is None else self._held.look(self._twin, i)
        if seen is not None:
            return seen
        item = self.item(i)
        return value_at(item, self._image(item, i))

    def swapped(self, i: int, picture: Image.Image) -> Any:
        item: Any
        if self._twin is None:
            item = self.item(i)
        else:
            item = self._held.make(self._twin, i, picture)
            if self._held.replaced is not None:
                self._held.replaced = None
                return item
        place = self._image(item, i)
        return with_value(item, place, like(picture, value_at(item, place)))


def anything(dataset: Any, image_key: Any) -> Base:
    return ItemBase(dataset, image_key)
