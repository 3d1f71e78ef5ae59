"""Any map-style data set as a base of counterfactuals: its items, or the same items around another picture.

``open_base(dataset)`` finds out how a data set makes its items. ``swapped(i, picture)`` is what ``dataset[i]`` would
be had its untransformed image been ``picture``; the law that every kind keeps, with deterministic transforms:

    base.swapped(i, base.picture(i)) == dataset[i]        same structure, same types, same bits

The data set's own ``__getitem__`` makes the item wherever possible: a shallow copy of the data set is given another
loader, inner data set or transform, one that puts the picture where the image was. The user's object is never
modified; attributes that are set on it later (an epoch, another transform) reach the copy before every item, changes
inside its lists and dicts do not. Not promised: data sets that hide both their images and their transform (say
``transform=``), and transforms that are switched on after the data set was opened.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from cfaug.errors import UsageError, one_line
from cfaug.learn.image_types import in_mode, like, said
from cfaug.learn.spread import spread
from cfaug.learn.swap.images import (
    Place,
    as_picture,
    image_place,
    is_image_like,
    one_mode,
    places,
    value_at,
    with_value,
)
from cfaug.learn.swap.metadata import UNKNOWN, entries_beside, keys_of, label_in, label_place, sources_of, stored_label

PROBED = 5  # images of a data set that are looked at for their mode


class Swappable:
    """A data set whose images can be swapped: what its items would be around other pictures.

    Pickled as the data set, opened again.

    ``sources``: where the images come from; equal keys of equal sources are the same image.
    """

    def __init__(self, dataset: Any, image_key: Any = None) -> None:
        self.dataset, self.image_key = dataset, image_key
        self._transform: Callable[[Any], Any] | None = None
        self.sources = sources_of(dataset)
        self._stores_labels: bool | None = None  # not known before the first label is asked for

    def __len__(self) -> int:
        return len(self.dataset)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_base, (self.dataset, self._transform, self.image_key)

    def item(self, i: int) -> Any:
        """``dataset[i]``, untouched."""
        return self.dataset[i]

    def picture(self, i: int) -> Any:
        """The untransformed image of item i: PIL, uint8 tensor (C, H, W) or ``tv_tensors.Image``, uint8 array."""
        raise NotImplementedError

    def swapped(self, i: int, picture: Image.Image) -> Any:
        """Item i around ``picture`` (mode L or RGB), which is its own from now on.

        Raises DataError when an image that is a tensor or an array has another size, UsageError when no image of the
        item can be found any more.
        """
        raise NotImplementedError

    def label(self, i: int) -> Any:
        """The label of item i, from what the data set stores or else from the item; None where there is none."""
        if self._stores_labels is None and len(self):
            with undrawn():
                stored = stored_label(self.dataset, 0)
                self._stores_labels = stored is not UNKNOWN and same_label(stored, self._made_label(0))
        return stored_label(self.dataset, i) if self._stores_labels else self._made_label(i)

    def _made_label(self, i: int) -> Any:
        item = self.item(i)
        return label_in(item, _image_or_first(item))

    def label_from(self) -> str:
        """What :meth:`label` takes for the label, for an error: an attribute, a column, or the place in the item."""
        if self._stores_labels:
            return "." + ("y_array" if hasattr(self.dataset, "y_array") else "targets")
        with undrawn():
            item = self.item(0)
        return _in_item(label_place(item, _image_or_first(item)) or ())

    def unlabelled(self) -> list[str]:
        """What the first item has beside its image where no label is found in it, for a warning; else empty."""
        with undrawn():
            item = self.item(0)
        image = _image_or_first(item)
        hidden = label_place(item, image) is None and not self._stores_labels
        return [_in_item(place) for place in entries_beside(item, image)] if hidden else []

    def keys(self) -> Sequence[str] | None:
        """The source key of every item, where the data set knows them; no item is made for it."""
        return keys_of(self.dataset)


def _in_item(place: Place) -> str:
    return "item" + "".join(f"[{key!r}]" for key in place)


def _image_or_first(item: Any) -> Place:
    return next(places(item, is_image_like), (0,))  # an image that was flattened: the usual place


class SwappableTold(Swappable):
    """A base whose user says how a PIL image becomes the image of its items, which may hide everything else."""

    def __init__(self, dataset: Any, transform: Callable[[Any], Any], image_key: Any = None) -> None:
        super().__init__(dataset, image_key)
        self._transform = self._told = transform
        try:
            self._inner: Swappable | None = open_base(dataset, None, image_key)
        except UsageError:
            self._inner = None
        self._looked = False
        self._mode: str | None = None  # the mode of the images looked at, taken to be the mode of them all
        if not callable(transform):
            raise UsageError(
                f"transform: expected a function from a PIL image to the image of an item, came {transform!r}"
            )
        with undrawn():
            if len(self):
                self._look()

    def _look(self) -> None:
        item = self.item(0)
        place = self._place(item)
        if place is None:
            raise UsageError(f"base: expected an image in its items, came {said(item)}; say image_key=")
        if self._inner is None:
            return
        own = self._inner.picture(0)
        shown, made = value_at(item, place), self._told(as_picture(own))
        fits = _kind(made) == _kind(shown)
        # pixels are compared where an image is shown transformed, and always so: else nothing says what they should be
        if fits and not same_image(own, shown) and self._is_settled(place, shown):
            fits = same_image(made, shown)
        if not fits:
            raise UsageError(
                f"transform: expected what makes the images of this base, {said(shown)}, came another one's, {said(made)}: "
                "real images and counterfactuals would differ; leave it out, this base can do without"
            )

    def _is_settled(self, place: Place, shown: Any) -> bool:
        for seed in (1, 2):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            if not same_image(value_at(self.item(0), place), shown):
                return False
        return True

    def _place(self, item: Any) -> Place | None:
        return image_place(item, self.image_key, is_image_like)

    def picture(self, i: int) -> Any:
        if self._inner is None:
            raise UsageError(
                "base: expected PIL or uint8 images to recognise its sources by, it hides them: pass key= (index -> source key)"
            )
        return self._inner.picture(i)

    def keys(self) -> Sequence[str] | None:
        return super().keys() if self._inner is None else self._inner.keys()

    def swapped(self, i: int, picture: Image.Image) -> Any:
        item = self.item(i)
        place = self._place(item)
        if place is None:
            raise UsageError(f"base: expected an image in item {i}, came {said(item)}; say image_key=")
        return with_value(item, place, self._told(self._untransformed(i, picture)))

    def _untransformed(self, i: int, picture: Image.Image) -> Image.Image:
        inner = self._inner
        if inner is None:
            return picture
        if not self._looked and len(self):  # a transform may tell grey from colour
            with undrawn():
                self._mode = one_mode(as_picture(inner.picture(j)) for j in spread(len(self), PROBED))
            self._looked = True
        if self._mode is not None:
            return in_mode(picture, self._mode)
        made: Image.Image = like(picture, as_picture(inner.picture(i)), lambda: f"item {i}")
        return made


def open_base(dataset: Any, transform: Callable[[Any], Any] | None = None, image_key: Any = None) -> Swappable:
    """How ``dataset`` makes its items, found out from its class or by a look at its first item.

    ``transform``: from a PIL image to the image that the data set yields, for one that hides its own. ``image_key``: the
    key or index of the image in an item that holds several. No random number generator is advanced.

    Raises UsageError (one line) for a data set without len() or [i], for items without an image or with several, and
    for images that a hidden transform has made into floats.
    """
    if isinstance(dataset, Swappable):
        return dataset
    if isinstance(dataset, type):
        raise UsageError(
            f"base: expected a dataset, came the class {dataset.__name__} itself; make one: {dataset.__name__}(...)"
        )
    indexed = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if not indexed or isinstance(dataset, IterableDataset):
        raise UsageError(
            f"base: expected a dataset with len() and [i], came {type(dataset).__name__}; iterables have no index"
        )
    if isinstance(dataset, Mapping):
        raise UsageError(
            f"base: expected one dataset, came {type(dataset).__name__} of {', '.join(map(str, dataset))}; choose one"
        )
    try:
        len(dataset)
    except Exception as error:  # whatever a user's class raises there
        raise UsageError(
            f"base: expected a dataset with len() and [i], came {type(dataset).__name__}, whose len() fails "
            f"({type(error).__name__}: {one_line(error)}); give it a length"
        ) from error
    if transform is not None:
        return SwappableTold(dataset, transform, image_key)
    from cfaug.learn.swap.adapters import OPENERS

    with undrawn():
        for opened in OPENERS:
            base = opened(dataset, image_key)
            if base is not None:
                return base
    raise UsageError(
        f"base: expected a dataset of images, came {type(dataset).__name__}; give one whose items hold a PIL or uint8 image"
    )


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


def same_label(one: Any, other: Any) -> bool:
    """Whether two labels are equal, arrays and tensors element by element."""
    try:
        return bool(np.array_equal(np.asarray(one), np.asarray(other)))
    except (TypeError, ValueError, RuntimeError):
        return False


def same_image(one: Any, other: Any) -> bool:
    """Whether two images, transformed or not, are of one kind and have the same values (floats: to rounding)."""
    one_array, other_array = np.asarray(one), np.asarray(other)
    same = _kind(one) == _kind(other) and one_array.shape == other_array.shape
    return same and bool(np.allclose(one_array, other_array, atol=1e-5, equal_nan=True))


def _kind(image: Any) -> tuple[Any, ...]:
    if isinstance(image, Image.Image):
        return Image.Image, image.mode
    return type(image), getattr(image, "dtype", None)


def is_index(i: Any) -> bool:
    """Whether i names one item: an int, or a numpy or torch number."""
    try:
        operator.index(i)
    except TypeError:
        return False
    return True
