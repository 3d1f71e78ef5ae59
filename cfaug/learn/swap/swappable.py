"""Any map-style data set as a base of counterfactuals: its items, or the same items around a different picture.

``swapped(i, picture)`` is what ``dataset[i]`` would be had its untransformed image been ``picture``. The law, with deterministic transforms:

    base.swapped(i, base.picture(i)) == dataset[i]        same structure, same types, same bits

Not promised: data sets that hide both their images and their transform (pass ``transform=``), and transforms that are switched on
after the data set was opened.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, IterableDataset, Subset

from cfaug.errors import UsageError, described, one_line
from cfaug.learn.image_types import (
    Place,
    as_picture,
    image_place,
    is_image_like,
    is_plain,
    like,
    places,
    value_at,
    with_value,
)
from cfaug.learn.swap.patched_copy import (
    Held,
    PatchedCopy,
    held_datasets,
    is_huggingface,
    transform_hooks,
)


class Swappable:
    """A data set whose images can be swapped. It is pickled as the data set, and opened again.

    A data set may call its transform several times with one image (views); all of them show the picture then.
    """

    def __init__(self, dataset: Any, image_key: Any = None) -> None:
        self.dataset, self.image_key = dataset, image_key
        self._held = Held()
        self._place: Place | None = None
        self._hooked = False  # whether a hook is given the image of the first item
        self._copy = PatchedCopy(dataset, self._hooks)

    def _hooks(self, dataset: Any) -> Mapping[str, Any]:
        if not is_huggingface(dataset):
            return transform_hooks(dataset, self._held, self.image_key)
        from cfaug.learn.swap.huggingface import column_hooks  # the library is imported only by those who use it

        return column_hooks(dataset, self._held, self.image_key)

    def __len__(self) -> int:
        return len(self.dataset)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_base, (self.dataset, None, self.image_key)

    def item(self, i: int) -> Any:
        """``dataset[i]``, untouched."""
        return self.dataset[i]

    def picture(self, i: int) -> Any:
        """The untransformed image of item i: PIL, uint8 tensor (C, H, W) or ``tv_tensors.Image``, uint8 array."""
        seen = self._held.look(self._copy, i)
        if seen is not None:
            return seen
        item = self.item(i)
        return value_at(item, self.place(item, i))

    def swapped(self, i: int, picture: Image.Image) -> Any:
        """Item i around ``picture`` (mode L or RGB), which is its own from now on.

        Raises DataError when the image has a different size, UsageError when no image of the item can be found any more.
        """
        held = self._held
        item = held.make(self._copy, i, picture)
        if held.hook is None:
            place = self.place(item, i)
            factual = value_at(item, place)
            if self._hooked and value_at(self._copy[i], place) is factual:
                raise self._keeps(i)
            return with_value(item, place, like(picture, factual, lambda: f"item {i}"))
        factual, instead = held.replaced, held.instead
        held.replaced = held.instead = None
        if factual is not None:  # the untransformed image may be given beside the transformed one
            for place in list(places(item, lambda value: value is factual, depth=1)):
                item = with_value(item, place, instead)
        return item

    def place(self, item: Any, i: int = 0) -> Place:
        """Where the untransformed image stands in an item; UsageError where there is none."""
        if self._place is not None:  # where it was in the last item: a search would go through every box of a list
            try:
                if is_plain(value_at(item, self._place)):
                    return self._place
            except (KeyError, IndexError, TypeError):
                pass
        place = image_place(item, self.image_key)
        if place is None:
            hidden = image_place(item, self.image_key, is_image_like)
            if hidden is not None and self._hooked:  # the hook was not asked this time
                raise self._keeps(i)
            if hidden is not None:
                raise UsageError(
                    f"base: expected PIL or uint8 images, got {described(value_at(item, hidden))} by a transform that it "
                    "hides: pass transform= (from a PIL image to what it yields) and key="
                )
            raise UsageError(
                f"base: expected items with an image (PIL, or uint8), got {described(item)} at {i} without one; give a "
                "data set of images, or transform= and key= for one that hides them"
            )
        self._place = place
        return place

    def look(self) -> None:
        """Look at the first item: UsageError where it has no image that can be swapped, or is kept when finished."""
        if not len(self):
            return
        held, dataset = self._held, self.dataset
        own = self._first()
        held.trying = True
        try:
            known = isinstance(dataset, Subset | ConcatDataset)
            if not known and held_datasets(dataset) and not self._reaches_inside(own):
                # a class of the user's own, which keeps what the data set inside gave, or takes nothing but labels from it
                self._copy = PatchedCopy(dataset, self._hooks, inside=False)
                own = self._first()
            if self._hooked:  # its own picture: a cache that is shared may keep what this leaves behind
                held.make(self._copy, 0, own)
                kept = held.look(self._copy, 0) is None
            else:
                item = self._copy[0]
                place = self.place(item)
                kept = bool(self._copy.hooks) and value_at(self._copy[0], place) is value_at(item, place)
            if kept:
                raise self._keeps(0)
        finally:
            held.trying = False

    def _first(self) -> Image.Image:
        seen = self._held.look(self._copy, 0)
        self._hooked = seen is not None
        return as_picture(self.picture(0) if seen is None else seen)

    def _reaches_inside(self, own: Image.Image) -> bool:
        """Whether a picture that is placed in the data set inside shows in the item, and does so again and again."""
        noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        shown, hooks = [], []
        for picture in (own, Image.fromarray(noise).resize(own.size, Image.Resampling.NEAREST)):
            with seeded(0):
                item = self.swapped(0, picture)
            shown.append([np.asarray(value_at(item, place)) for place in places(item, is_image_like)])
            hooks.append(self._held.hook)
        return hooks[0] is hooks[1] and not all(map(np.array_equal, *shown))

    def _keeps(self, i: int) -> UsageError:
        return UsageError(
            f"base: expected images that are kept untransformed, {type(self.dataset).__name__} kept item {i} as its transform "
            "left it; keep images before they are transformed, or pass transform= (from a PIL image to what it yields)"
        )


class ToldTransform(Swappable):
    """A base whose user says by ``transform=`` how a PIL image becomes the image of its items; it may hide everything else."""

    def __init__(self, dataset: Any, transform: Callable[[Any], Any], image_key: Any = None) -> None:
        if not callable(transform):
            raise UsageError(
                f"transform: expected a function from a PIL image to the image of an item, got {described(transform)}"
            )
        self.dataset, self.image_key, self._transform = dataset, image_key, transform
        try:
            self._inner: Swappable | None = open_base(dataset, None, image_key)
        except UsageError:
            self._inner = None

    def __reduce__(self) -> tuple[Any, ...]:
        return open_base, (self.dataset, self._transform, self.image_key)

    def picture(self, i: int) -> Any:
        if self._inner is None:
            raise UsageError(
                "base: expected PIL or uint8 images to recognise its sources by, it hides them: pass key= (index -> source key)"
            )
        return self._inner.picture(i)

    def swapped(self, i: int, picture: Image.Image) -> Any:
        item = self.item(i)
        if self._inner is not None:  # a transform may tell grey from colour
            picture = like(picture, as_picture(self._inner.picture(i)), lambda: f"item {i}")
        return with_value(item, self.place(item, i), self._transform(picture))

    def place(self, item: Any, i: int = 0) -> Place:
        place = image_place(item, self.image_key, is_image_like)
        if place is None:
            raise UsageError(f"base: expected an image in item {i}, got {described(item)}; say image_key=")
        return place

    def look(self) -> None:
        """UsageError where the transform makes images of a different kind than the first item has."""
        if not len(self):
            return
        item = self.item(0)
        shown = value_at(item, self.place(item))
        if self._inner is not None:
            made = self._transform(as_picture(self._inner.picture(0)))
            if _kind(made) != _kind(shown):
                raise UsageError(
                    f"transform: expected one that makes the images of this base, {described(shown)}, got {described(made)}: real images "
                    "and counterfactuals would differ; leave it out, this base can do without"
                )


def open_base(dataset: Any, transform: Callable[[Any], Any] | None = None, image_key: Any = None) -> Swappable:
    """The data set as one whose images can be swapped, after a look at its first item. No random number generator is advanced.

    ``transform``: from a PIL image to the image that the data set yields, for one that hides its own. ``image_key``: the
    key or index of the image in an item that holds several.

    Raises UsageError (one line) for a data set without len() or [i], for items without an image or with several, and
    for images that a hidden transform has made into floats.
    """
    if isinstance(dataset, Swappable):
        return dataset
    kind = dataset.__name__ if isinstance(dataset, type) else type(dataset).__name__
    if isinstance(dataset, type):
        raise UsageError(f"base: expected a data set, got the class {kind} itself; make one: {kind}(...)")
    indexed = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if not indexed or isinstance(dataset, IterableDataset):
        raise UsageError(f"base: expected a data set with len() and [i], got {kind}; iterables have no index")
    if isinstance(dataset, Mapping):
        raise UsageError(f"base: expected one data set, got {kind} of {', '.join(map(str, dataset))}; choose one")
    try:
        len(dataset)
    except Exception as error:  # whatever a user's class raises there
        raise UsageError(
            f"base: expected a data set with len() and [i], got {kind}, whose len() fails "
            f"({type(error).__name__}: {one_line(error)}); give it a length"
        ) from error
    with undrawn():
        try:
            base = Swappable(dataset, image_key) if transform is None else ToldTransform(dataset, transform, image_key)
        except (AttributeError, TypeError) as error:
            raise UsageError(
                f"base: expected a data set of which a copy can have a different transform, got {kind} "
                f"({one_line(error)}); pass transform= (from a PIL image to what it yields) and key="
            ) from error
        base.look()
    return base


@contextmanager
def undrawn() -> Iterator[None]:
    """Leave the global generators of Python, numpy and torch as they were: looking at a data set must change no draw."""
    python, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global generators seeded, and as they were afterwards."""
    with undrawn():
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        yield


def _kind(image: Any) -> tuple[Any, ...]:
    return type(image), getattr(image, "dtype", None), getattr(image, "mode", None)
