"""Data sets of which nothing is known but their items, and perhaps an attribute ``transform`` or ``transforms``."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from cfaug.errors import UsageError, one_line
from cfaug.learn.image_types import like, said
from cfaug.learn.swap.base import Swappable, undrawn
from cfaug.learn.swap.images import (
    Place,
    as_picture,
    image_place,
    is_image_like,
    is_plain,
    places,
    value_at,
    with_value,
)
from cfaug.learn.swap.patched_copy import Held, Seen, Twin

TRANSFORMS = ("transform", "transforms")


class _Hook:
    """Stands for a data set's transform: puts the held picture where the image is, then applies the transform."""

    def __init__(self, held: Held, owner: Any, name: str, image_key: Any) -> None:
        self._held, self._owner, self._name, self._image_key = held, owner, name, image_key

    def __call__(self, *args: Any, **named: Any) -> Any:
        transform, held = getattr(self._owner, self._name), self._held
        picture = held.picture
        # what an inner data set has swapped is not swapped again: it may have been cut out of the picture since
        idle = (picture is None and not held.looking) or held.inner is not None
        place = None if idle else self._place(args, named)
        if place is None:
            return transform(*args, **named)
        factual = value_at((args, named), place)
        if picture is None:
            if isinstance(factual, Image.Image):
                factual.load()  # its file may be closed on the way out
            raise Seen(factual)
        if held.replaced is not None and not _same(held.replaced, factual):
            raise UsageError(
                f"base: expected one image an item, the transform of {type(self._owner).__name__} is given several; "
                "open it without its transform, and apply that after the swap"
            )
        held.replaced, held.instead = factual, like(picture, factual, _nameless)
        args, named = with_value((args, named), place, held.instead)
        return (_another(transform) if held.trying else transform)(*args, **named)

    def _place(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> Place | None:
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


def _nameless() -> str:
    return "a counterfactual"


def _another(transform: Any) -> Any:
    """A transform that does the same, and draws from another generator where it has one of its own."""
    try:
        return copy.deepcopy(transform)
    except Exception:  # whatever a user's class raises: nothing is promised of its generator then
        return transform


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    return type(one) is type(other) and np.array_equal(np.asarray(one), np.asarray(other))


class SwappableItems(Swappable):
    """Any data set: the picture replaces the image on its way into ``transform`` or ``transforms``, or in the item.

    A data set may call its transform several times with one image (views); all of them show the picture then.
    """

    def __init__(self, dataset: Any, image_key: Any = None, exchanged: Mapping[str, Any] | None = None) -> None:
        super().__init__(dataset, image_key)
        self._held = Held()
        self._place: Place | None = None
        applied = [name for name in TRANSFORMS if callable(getattr(dataset, name, None))]
        hooks = {name: _Hook(self._held, dataset, name, image_key) for name in applied}
        self._transforms = bool(hooks)
        self._unused = False  # whether the transform was seen to be called for no item
        self._exchanged = {**hooks, **(exchanged or {})}
        self._twin = Twin(dataset, self._exchanged)

    def look(self) -> None:
        """Look at the first item: UsageError where it has no image that could be swapped, or is kept when finished."""
        if not len(self):
            return
        own, held = as_picture(self.picture(0)), self._held
        if not self._transforms:
            return
        with self.trial():  # its own picture: a cache that is shared may keep what this leaves behind
            item = held.make(self._twin, 0, own)
        if held.replaced is not None:
            kept = held.look(self._twin, 0) is None
        else:
            place = self._image(item, 0)
            kept = self._is_kept(0, place, value_at(item, place))
            self._unused = True
        if kept:
            raise self.keeps(0)

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Make items that change no draw of the global generators, nor of the transform's own."""
        self._held.trying = True
        try:
            with undrawn():
                yield
        finally:
            self._held.trying = False

    def picture(self, i: int) -> Any:
        return self.own_picture(self._twin, i)

    def own_picture(self, twin: Twin, i: int) -> Any:
        """The image that a twin's transform is given, or else the one in the item."""
        seen = self._held.look(twin, i)
        if seen is not None:
            return seen
        item = self.item(i)
        return value_at(item, self._image(item, i))

    def swapped(self, i: int, picture: Image.Image) -> Any:
        held = self._held
        item = held.make(self._twin, i, picture)
        if held.inner is not None:
            return item
        if held.replaced is None:
            place = self._image(item, i)
            factual = value_at(item, place)
            # a transform that is never called is none; one that passes some items over makes them anew
            if self._transforms and not self._unused and self._is_kept(i, place, factual):
                raise self.keeps(i)
            return with_value(item, place, like(picture, factual, _nameless))
        factual, instead = held.replaced, held.instead
        held.replaced = held.instead = None
        for place in list(places(item, lambda value: value is factual, depth=1)):
            item = with_value(item, place, instead)  # the untransformed image, given beside the transformed one
        return item

    def _is_kept(self, i: int, place: Place, image: Any) -> bool:
        with undrawn():
            return value_at(self._twin[i], place) is image

    def keeps(self, i: int) -> UsageError:
        """The error for a data set that keeps finished items."""
        return UsageError(
            f"base: expected images that are kept untransformed, {type(self.dataset).__name__} kept item {i} as its transform "
            "left it; keep images before they are transformed, or pass transform= (from a PIL image to what it yields)"
        )

    def _image(self, item: Any, i: int) -> Place:
        if self._place is not None:  # where it was in the last item: a search would go through every box of a list
            try:
                if is_plain(value_at(item, self._place)):
                    return self._place
            except (KeyError, IndexError, TypeError):
                pass
        place = image_place(item, self.image_key)
        if place is None:
            hidden = image_place(item, self.image_key, is_image_like)
            if hidden is not None and self._transforms:  # which was not asked this time
                raise self.keeps(i)
            if hidden is not None:
                raise UsageError(
                    f"base: expected PIL or uint8 images, came {said(value_at(item, hidden))} by a transform that it "
                    "hides: pass transform= (from a PIL image to what it yields) and key="
                )
            raise UsageError(
                f"base: expected items with an image (PIL, or uint8), came {said(item)} at {i} without one; give a "
                "dataset of images, or transform= and key= for one that hides them"
            )
        self._place = place
        return place


def anything(dataset: Any, image_key: Any) -> Swappable:
    """The base of any data set at all; UsageError where its first item has no image."""
    try:
        base = SwappableItems(dataset, image_key)
    except (AttributeError, TypeError) as error:
        raise UsageError(
            f"base: {type(dataset).__name__} does not let a copy of itself have another transform "
            f"({one_line(error)}); pass transform= (from a PIL image to what it yields) and key="
        ) from error
    base.look()
    return base
